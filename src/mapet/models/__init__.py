"""Networks: backbones (plain timm ViTs), two-stream attention over their blocks, decoders and regressors."""

from mapet.models.backbone import create_backbone

__all__ = ["create_backbone"]
