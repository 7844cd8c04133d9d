"""A tokenizer fitted by several processes together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mapet.data.skipped import UnreadableImages
from mapet.data.source import subset
from mapet.data.sources import open_source
from mapet.tokenizers.fit import fit_tokenizer
from mapet.tokenizers.fit_settings import FitSettings

SETTINGS = FitSettings(
    features="pixels",
    feature_options={"dim": 12},
    image_size=16,
    patch_size=4,
    vocab_size=32,
    share=0.3,
    max_images=None,
    iterations=10,
    restarts=1,
)


def fit(folder: Path) -> dict[str, Any]:
    digits = subset(open_source("digits"), range(400))
    tokenizer = fit_tokenizer(digits, SETTINGS, out=folder / "tokenizer", unreadable=UnreadableImages())
    return {"fingerprint": tokenizer.fingerprint, "report": tokenizer.fit_report}
