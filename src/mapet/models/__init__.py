"""Backbones (plain timm ViTs), two-stream attention over their blocks, and weights in and out."""

from mapet.models.backbone import create_backbone

__all__ = ["create_backbone"]
