"""Comparisons: the same pre-training with several objectives, tokenizers or backbones, over several seeds, and what differs."""
