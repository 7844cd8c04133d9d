"""Pre-train Vision Transformers by predicting visual tokens, and find out what the pre-training is worth."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mapet.data.batch import Batch
    from mapet.data.sources import open_source
    from mapet.models.backbone import create_backbone
    from mapet.objectives import create_objective
    from mapet.registry import allow
    from mapet.token_store.read import TokenStore
    from mapet.tokenizers.load import load_tokenizer

__version__ = "0.1.0"

_PUBLIC = {
    "Batch": "mapet.data.batch",
    "TokenStore": "mapet.token_store.read",
    "allow": "mapet.registry",
    "create_backbone": "mapet.models.backbone",
    "create_objective": "mapet.objectives",
    "load_tokenizer": "mapet.tokenizers.load",
    "open_source": "mapet.data.sources",
}

__all__ = ["Batch", "TokenStore", "__version__", "allow", "create_backbone", "create_objective", "load_tokenizer", "open_source"]


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used, so that `mapet --help` need not wait for torch."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'mapet' has no attribute '{name}'")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return __all__
