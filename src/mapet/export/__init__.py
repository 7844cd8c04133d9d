"""Weights out: backbones in the forms that other libraries read."""
