"""Training on labels, of whatever kind: what fine-tuning and segmentation share."""
