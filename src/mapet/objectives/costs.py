"""What a pre-training step of every objective was measured to cost: `python benchmarks/objectives.py`."""

from __future__ import annotations

CONDITIONS = "ViT-Tiny/16, 224 px, fp32, batch 4, one thread of an x86 machine; mvp with a ViT-Base/16 as its teacher"

TIMES_MIM = {
    "mim": 1.0,
    "pim": 1.5,
    "mapet": 2.3,
    "beit": 1.0,
    "beit_v2": 1.2,
    "cae": 1.0,
    "simmim": 0.9,
    "maskfeat": 0.9,
    "mvp": 4.4,
    "mask_pixels": 1.1,
    "zoomed_in": 2.0,
    "zoomed_out": 2.0,
    "distorted": 1.8,
    "blurred": 1.9,
    "decolorized": 1.8,
}
"""Forward and backward at default settings, relative to MIM; an objective that is not here has not been measured yet."""
