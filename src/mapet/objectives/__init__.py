"""What is hidden, what is predicted, what is minimised: one objective a file."""

from __future__ import annotations

from typing import Any

from mapet.compat import VisionTransformer
from mapet.objectives.base import Objective, ObjectiveOutput
from mapet.registry import Registry

OBJECTIVES: Registry[type[Objective]] = Registry(
    "objective",
    {
        "mim": "mapet.objectives.mim:MIM",
        "pim": "mapet.objectives.pim:PIM",
        "mapet": "mapet.objectives.mapet:MaPeT",
    },
)


def create_objective(name: str, *, backbone: VisionTransformer, vocab_size: int, **options: Any) -> Objective:
    """The objective called `name` on `backbone`.

    Args:
        name: An entry of `OBJECTIVES`, or `package.module:Class`.
        backbone: A plain timm ViT; it becomes the objective's `backbone`, is trained in place, and gives device and dtype.
        vocab_size: Number of visual tokens.
        **options: Options of the objective, such as `num_context`, the number of visible patches.

    Raises:
        SettingsError: There is no such objective, or it has no such option.
        ModelError: The options do not fit the backbone.
    """
    objective = OBJECTIVES.get(name).create(backbone=backbone, vocab_size=vocab_size, **options)
    return objective.to(next(backbone.parameters()))


__all__ = ["OBJECTIVES", "Objective", "ObjectiveOutput", "create_objective"]
