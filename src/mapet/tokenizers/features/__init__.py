"""Patch features: what a tokenizer clusters, and what a VQ-KD tokenizer learns from."""
