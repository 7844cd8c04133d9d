"""Semantic segmentation: UperNet on a backbone, trained and tested as the field does."""
