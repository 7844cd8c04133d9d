"""Whether a name means features, without making them."""

from __future__ import annotations

from mapet.tokenizers.features.base import FEATURES, resolve_features
from mapet.tokenizers.features.timm_model import require_model


def check_features_name(name: str) -> None:
    """Refuses a name of features that `create_features` would refuse. Nothing is loaded or fetched.

    Raises:
        TokenizerError: With the nearest name.
    """
    kind, options = resolve_features(name, {})
    FEATURES.get(kind)
    if kind == "timm":
        require_model(options["model"])
