"""What is hidden, what is predicted, what is minimised: one objective a file."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from mapet.errors import SettingsError
from mapet.registry import Registry

if TYPE_CHECKING:
    from mapet.compat import VisionTransformer
    from mapet.objectives.base import Objective, ObjectiveOutput

OBJECTIVES: Registry[type[Objective]] = Registry(
    "objective",
    {
        "mim": "mapet.objectives.mim:MIM",
        "pim": "mapet.objectives.pim:PIM",
        "mapet": "mapet.objectives.mapet:MaPeT",
        "beit": "mapet.objectives.beit:BEiT",
        "beit_v2": "mapet.objectives.beit_v2:BEiTv2",
        "cae": "mapet.objectives.cae:CAE",
        "simmim": "mapet.objectives.simmim:SimMIM",
        "maskfeat": "mapet.objectives.maskfeat:MaskFeat",
        "mvp": "mapet.objectives.mvp:MVP",
        "mask_pixels": "mapet.objectives.mask_pixels:MaskPixels",
        "zoomed_in": "mapet.objectives.zoomed_in:ZoomedIn",
        "zoomed_out": "mapet.objectives.zoomed_out:ZoomedOut",
        "distorted": "mapet.objectives.distorted:Distorted",
        "blurred": "mapet.objectives.blurred:Blurred",
        "decolorized": "mapet.objectives.decolorized:Decolorized",
    },
    base="mapet.objectives.base:Objective",
)


def create_objective(name: str, *, backbone: VisionTransformer, vocab_size: int | None = None, **options: Any) -> Objective[Any]:
    """The objective called `name` on `backbone`.

    Args:
        name: An entry of `OBJECTIVES`, or `package.module:Class`; nothing out of a file that was not checked by `OBJECTIVES.get`.
        backbone: A plain timm ViT; it becomes the objective's `backbone`, is trained in place, and gives device and dtype.
        vocab_size: Number of visual tokens, for objectives that need tokens; others are not given it.
        **options: Options of the objective, such as `num_context`, the number of visible patches.

    Raises:
        SettingsError: There is no such objective, an option or its value is wrong, or `vocab_size` is needed and not
            given.
        ModelError: The options do not fit the backbone.
    """
    objective = OBJECTIVES.get_or_import(name)
    if "tokens" in objective.needs:
        if vocab_size is None:
            raise SettingsError(
                f"The objective '{name}' predicts visual tokens. Give vocab_size, how many different ones there are."
            )
        options["vocab_size"] = vocab_size
    return OBJECTIVES.create(name, backbone=backbone, **options).to(next(backbone.parameters()))


def __getattr__(name: str) -> Any:
    """`Objective` and `ObjectiveOutput`, whose module imports torch: the names above are had without it."""
    if name in ("Objective", "ObjectiveOutput"):
        return getattr(importlib.import_module("mapet.objectives.base"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = ["OBJECTIVES", "Objective", "ObjectiveOutput", "create_objective"]
