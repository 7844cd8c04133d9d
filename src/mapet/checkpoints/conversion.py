"""A published checkpoint as a backbone of timm's, and an account of what became of every entry."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

from torch import Tensor, nn

from mapet.checkpoints.architecture import Architecture, apart_by_options, skeleton, timm_name, timm_options
from mapet.checkpoints.by_timm import translated_by_timm
from mapet.checkpoints.contents import listing
from mapet.checkpoints.entries import Entry, TensorMap
from mapet.checkpoints.families import Published, recognise
from mapet.compat import VisionTransformer, resample_abs_pos_embed, timm
from mapet.errors import ModelError, in_one_line
from mapet.models.backbone import grid_size, image_size, num_heads
from mapet.models.relative_positions import resize_relative_positions
from mapet.models.spec import BackboneSpec
from mapet.models.vit import is_beit

_FRESH = re.compile(r"(head|fc_norm|norm)\.(weight|bias)")


@dataclass(frozen=True)
class Conversion:
    """What became of the entries of a file.

    Args:
        family: What the file is ("MaPeT pre-training checkpoint").
        kept: Names in the file of entries that are in the model as they were, perhaps under another name.
        converted: Names in the file of entries that were joined, resized or changed otherwise.
        dropped: Names in the file of entries that the model has no place for.
        new: Names in the model that are not in the file; they are at their initialisation.
        notes: Further remarks, each a sentence.
    """

    family: str
    kept: tuple[str, ...]
    converted: tuple[str, ...]
    dropped: tuple[str, ...]
    new: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def summary(self) -> str:
        """For people, in one paragraph."""
        used = len(self.kept) + len(self.converted)
        parts = [f"{self.family}: {used} of {used + len(self.dropped)} entries used"]
        for title, names in (("converted", self.converted), ("dropped", self.dropped), ("new", self.new)):
            if names:
                parts.append(f"{title}: {', '.join(_grouped(names))}")
        return "; ".join(parts) + "." + "".join(f" {note}" for note in self.notes)


def convert(
    tensors: Mapping[str, Tensor],
    title: str,
    *,
    model: str | None = None,
    options: Mapping[str, Any] | None = None,
    normalisation: tuple[tuple[float, float, float], tuple[float, float, float]] | None = None,
    configured: bool = False,
) -> tuple[VisionTransformer, BackboneSpec, Conversion]:
    """The backbone of a checkpoint, in evaluation mode on the CPU.

    Args:
        tensors: Of the file, under its own names.
        title: What to call the file in messages.
        model: timm's name of the model; by default it is derived from names and shapes.
        options: Keyword arguments of `timm.create_model`. `img_size` other than the file's has the positions resized (bicubic),
            `num_classes=0` drops a classifier.
        normalisation: Mean and standard deviation per channel, if they are known; by default those of the model's weights at
            timm where `model` names some, else those that the family was trained with.
        configured: A configuration beside the weights tells what they do not tell: heads, activation, epsilon.

    Raises:
        ModelError: The file is none that is known, or does not fit; what was expected and what was found.
    """
    try:
        return _convert(tensors, title, model, dict(options or {}), normalisation, configured)
    except ModelError as error:
        if title in str(error):
            raise
        raise ModelError(f"{title} cannot be used: {error}") from error
    except (RuntimeError, IndexError, ValueError, TypeError, ArithmeticError) as error:  # shapes that cannot be joined, if damaged
        raise ModelError(
            f"{title} cannot be converted: {in_one_line(error)}. If the model and its options are right, the file is damaged: get "
            "it again."
        ) from error


def _convert(
    tensors: Mapping[str, Tensor],
    title: str,
    model: str | None,
    options: dict[str, Any],
    normalisation: tuple[tuple[float, float, float], tuple[float, float, float]] | None,
    configured: bool,
) -> tuple[VisionTransformer, BackboneSpec, Conversion]:
    published = recognise(tensors)
    if published is None and model is not None:
        published = translated_by_timm(tensors, model, options, title)
    if published is None:
        raise ModelError(
            f"{title} is no checkpoint that is known here. If timm can read it, give timm's name for it (--model NAME). "
            f"It contains {listing(tensors)}"
        )
    weights, apart = published.entries.tensors, published.family.apart
    if apart is None:
        apart = apart_by_options(weights, options)
    if apart is None and model is not None:
        apart = getattr(skeleton(str(_named(model)), {}), "no_embed_class", None)
    architecture = Architecture.of(weights, apart)
    name = _named(model) or timm_name(architecture, published.family)
    all_options = timm_options(name, architecture, published.family, options, strictly=model is not None)
    image_statistics = normalisation or _normalisation(model)
    mean, std = image_statistics or (published.family.mean, published.family.std)
    spec = BackboneSpec(name, all_options, 0, mean, std, seed=0)
    expected = skeleton(name, all_options).state_dict()  # before memory is spent on what does not fit
    _check_names("Beit" if is_beit(name) else "VisionTransformer", published.entries, expected, architecture)
    backbone = spec.build()
    spec = replace(spec, image_size=image_size(backbone)[0])
    conversion = _load(backbone, published, architecture, tuple(tensors), all_options)
    notes = [] if configured else _assumptions(backbone, architecture, options, model)
    if image_statistics is None:
        notes.append(f"The file does not say how images were normalised; mean {mean} and standard deviation {std} are taken.")
    conversion = replace(conversion, notes=(*conversion.notes, *notes))
    return backbone.eval(), spec, conversion


def _assumptions(
    backbone: VisionTransformer, architecture: Architecture, options: Mapping[str, Any], model: str | None
) -> list[str]:
    """What no file of weights tells, and what is taken: the number of heads, the activation, the epsilon of the norms, the grid."""
    first = cast(Any, backbone.blocks)[0]
    act = type(first.mlp.act).__name__
    if model is not None:
        openai = architecture.pre_norm and act == "GELU" and "clip" in model
        return (
            ["Its activation is GELU; OpenAI's weights of CLIP have quick GELU (--model ..._clip_quickgelu_...)."] if openai else []
        )
    notes = []
    if architecture.heads is None and "num_heads" not in options:
        heads = num_heads(backbone)
        wide = architecture.width // heads
        notes.append(f"The file does not contain the number of heads; {heads} are assumed ({wide} wide). --option num_heads=N.")
    values, properties = [act, f"{first.norm1.eps:g}"], ["activation", "epsilon of its norms"]
    if "img_size" not in options:
        values, properties = [*values, "{} x {} patches".format(*architecture.grid())], [*properties, "shape of its images"]
    notes.append(
        f"The file does not tell {', '.join(properties[:-1])} and {properties[-1]}: {', '.join(values[:-1])} and {values[-1]} are "
        "taken. timm's name for the model (--model NAME) tells the first two."
    )
    return notes


def _named(model: str | None) -> str | None:
    """MaPeT's release calls its models vit_standard_SIZE_patch16_224."""
    return None if model is None else model.replace("vit_standard_", "vit_", 1)


def _normalisation(model: str | None) -> tuple[tuple[float, float, float], tuple[float, float, float]] | None:
    """Of the weights at timm, where the name has their tag ("vit_base_patch16_224.mae") or is that of a Beit."""
    config = timm.get_pretrained_cfg(model) if model and ("." in model or model.startswith("beit")) else None
    return (config.mean, config.std) if config else None  # type: ignore[return-value]


def _load(
    backbone: VisionTransformer,
    published: Published,
    architecture: Architecture,
    names: tuple[str, ...],
    options: Mapping[str, Any],
) -> Conversion:
    expected, notes = backbone.state_dict(), []
    entries = _without_unused_ends(published.entries, expected, architecture, options)
    for name, entry in entries.items():
        if entry.value.shape != expected[name].shape:
            resized = _resized(name, entry.value, backbone, architecture, options)
            entries[name] = Entry(resized, entry.sources, changed=True)
            if not name.startswith("blocks.") or name.startswith("blocks.0."):
                notes.append(_resizing_note(name, backbone, architecture, options))
    backbone.load_state_dict(entries.tensors, strict=False)
    changed = {source for entry in entries.values() if entry.changed for source in entry.sources}
    used = {source for entry in entries.values() for source in entry.sources}
    notes += _remarks(published, architecture, backbone)
    return Conversion(
        published.family.title,
        kept=tuple(name for name in names if name in used - changed),
        converted=tuple(name for name in names if name in changed),
        dropped=tuple(name for name in names if name not in used),
        new=tuple(name for name in expected if name not in entries),
        notes=tuple(notes),
    )


def _remarks(published: Published, architecture: Architecture, backbone: nn.Module) -> list[str]:
    """What was taken for granted, and what is wrong with the numbers."""
    notes = []
    if not architecture.norms and isinstance(getattr(backbone, "norm", None), nn.Identity):
        notes.append("The file has no norm behind the blocks, and the model has none.")
    broken = next((entry.sources[0] for entry in published.entries.values() if not bool(entry.value.isfinite().all())), None)
    if broken is not None:
        notes.append(f"{broken} holds numbers that are not finite: what the model computes will not be either.")
    return notes


def _without_unused_ends(
    entries: TensorMap, expected: Mapping[str, Tensor], architecture: Architecture, options: Mapping[str, Any]
) -> TensorMap:
    """Drops the norm and the classifier that other options than the file's leave without a place."""
    classes = options.get("num_classes")
    if architecture.classes and classes and classes != architecture.classes:
        raise ModelError(
            f"The classifier of these weights has {architecture.classes} classes, {classes} expected. Leave num_classes out to "
            "keep it, or give num_classes=0 to drop it."
        )
    return TensorMap({name: entry for name, entry in entries.items() if name in expected or not _FRESH.fullmatch(name)})


def _check_names(kind: str, entries: TensorMap, expected: Mapping[str, Tensor], architecture: Architecture) -> None:
    """Refuses weights some of which a ViT of their shape has no place for, or which lack some."""
    unknown = [entry.sources[0] for name, entry in entries.items() if name not in expected and not _FRESH.fullmatch(name)]
    absent = [name for name in expected if name not in entries and not _FRESH.fullmatch(name)]
    for title, names in (("The model has no place for", unknown), ("Its weights lack", absent)):
        if names:
            more = f" and {len(names) - 4} more" if len(names) > 4 else ""
            raise ModelError(
                f"{title} {', '.join(names[:4])}{more}: these are not the weights of a plain {kind} of {architecture.depth} "
                "blocks. If timm has the model, give timm's name for it (--model NAME)."
            )


def _resized(
    name: str, value: Tensor, backbone: VisionTransformer, architecture: Architecture, options: Mapping[str, Any]
) -> Tensor:
    """Positions for the grid of the backbone: absolute ones bicubic, relative ones as BEiT resizes its own."""
    expected, grid = backbone.state_dict()[name], grid_size(backbone)
    if name == "pos_embed" and value.shape[2] == expected.shape[2]:
        prefix = architecture.prefix_positions
        return resample_abs_pos_embed(value, list(grid), _checkpoint_grid(architecture, options), prefix, antialias=False)
    if name.endswith("relative_position_bias_table") and value.shape[1] == expected.shape[1]:
        rows, columns = _checkpoint_grid(architecture, options)
        return resize_relative_positions(value, (rows, columns), grid)
    raise ModelError(f"{name} is {tuple(value.shape)}, expected {tuple(expected.shape)}. Give another model, or none.")


def _checkpoint_grid(architecture: Architecture, options: Mapping[str, Any]) -> list[int]:
    """Rows and columns that the file has positions for."""
    return list(architecture.grid(options.get("img_size")))


def _resizing_note(name: str, backbone: nn.Module, architecture: Architecture, options: Mapping[str, Any]) -> str:
    (rows, columns), (new_rows, new_columns) = _checkpoint_grid(architecture, options), grid_size(backbone)  # type: ignore[arg-type]
    kind = "Relative positions" if "relative" in name else "Positions"
    return f"{kind} were resized from {rows} x {columns} to {new_rows} x {new_columns} patches."


def _grouped(names: tuple[str, ...]) -> list[str]:
    """Names with numbers as *, and those of one part put together: "blocks.*.attn.q.weight", "decoder.*"."""
    starred = list(dict.fromkeys(re.sub(r"(?<![^.])\d+(?![^.])", "*", name) for name in names))
    tops: dict[str, list[str]] = {}
    for name in starred:
        tops.setdefault(name.partition(".")[0], []).append(name)
    return [name for top, kinds in tops.items() for name in (kinds if len(kinds) < 5 else [f"{top}.* ({len(kinds)} kinds)"])]
