"""Vital signs: whether a pre-training is healthy, for next to nothing."""
