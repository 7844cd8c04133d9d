"""Weights in: files of weights, folders and addresses as backbones of timm's."""
