"""What a pre-training step of every objective was measured to cost: `python benchmarks/objectives.py`."""

from __future__ import annotations

CONDITIONS = "ViT-Tiny/16, 224 px, fp32, batch 4, one thread of a busy x86 machine; mvp with a ViT-Base/16 as its teacher"

TIMES_MIM = {
    "mim": 1.0,
    "pim": 1.4,
    "mapet": 2.1,
    "beit": 0.9,
    "beit_v2": 1.1,
    "cae": 0.9,
    "simmim": 0.8,
    "maskfeat": 0.8,
    "mvp": 3.5,
    "mask_pixels": 1.0,
    "zoomed_in": 1.7,
    "zoomed_out": 1.5,
    "distorted": 1.6,
    "blurred": 1.5,
    "decolorized": 1.5,
}
"""Forward and backward at default settings, relative to MIM; an objective that is not here has not been measured yet."""
