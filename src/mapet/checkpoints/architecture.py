"""The architecture that a state dict in timm's names belongs to, and how timm builds it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mapet.checkpoints.families import Family
from mapet.compat import Beit, VisionTransformer, timm
from mapet.errors import ModelError
from mapet.models.backbone import build_by_timm
from mapet.models.vit import create_vit, is_beit
from mapet.runtime.device import without_memory

HEAD_DIM = 64
_PLAIN = {192: "tiny", 384: "small", 768: "base", 1024: "large", 1280: "huge"}


@dataclass(frozen=True)
class Architecture:
    """The architecture as far as the shapes in a state dict determine it; heads and image size are not always known.

    Args:
        width: Of a token.
        depth: Number of blocks.
        patch: Height and width of a patch in pixels.
        hidden: Width inside the MLP.
        heads: Of an attention, if a table of relative positions has them.
        num_patches: That there are positions for.
        classes: Of the classifier; 0 without one.
        pool: What the classifier sees: "token" behind `norm`, or "avg" before `fc_norm`.
        scaled: There is LayerScale.
        class_token: There is a class token.
        registers: Number of register tokens.
        prefix_positions: Positions of tokens before the patches.
        qkv_bias: Queries, keys and values have a bias.
        relative: Relative positions, "shared" by all blocks, of each ("own"), or None.
        absolute: There are absolute positions.
        gated: The MLP is a SwiGLU.
        channels: Of an image.
        norms: Names of the norms behind the blocks: "norm", "fc_norm", both or none.
        pre_norm: There is a norm in front of the blocks.
        proj_bias: Projections behind attention have a bias.
    """

    width: int
    depth: int
    patch: tuple[int, int]
    hidden: int
    heads: int | None
    num_patches: int
    classes: int
    pool: str
    scaled: bool
    class_token: bool
    registers: int
    prefix_positions: int
    qkv_bias: bool
    relative: str | None
    absolute: bool
    gated: bool
    channels: int
    norms: tuple[str, ...]
    pre_norm: bool
    proj_bias: bool

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], apart: bool | None = None) -> Architecture:
        """Of a state dict under timm's names, by shapes alone.

        Args:
            tensors: The state dict.
            apart: Class token and registers have no places among the positions; None where only shapes are known.

        Raises:
            ModelError: A part that every ViT has is missing, or has another form; or two readings fit.
        """
        patches, hidden = _shape(tensors, "patch_embed.proj.weight", 4), _shape(tensors, "blocks.0.mlp.fc1.weight", 2)
        back = _shape(tensors, "blocks.0.mlp.fc2.weight", 2)
        registers, token = _count(tensors, "reg_token"), _count(tensors, "cls_token")
        per_block, shared = (_table(tensors, f"{stem}.relative_position_bias_table") for stem in ("blocks.0.attn", "rel_pos_bias"))
        absolute = "pos_embed" in tensors
        if not (absolute or per_block or shared):
            raise ModelError("The weights have neither pos_embed nor relative positions, one of which every ViT here has.")
        rows = _shape(tensors, "pos_embed", 3)[1] if absolute else 0
        prefix = _prefix(rows, token, registers, patches[2:], apart) if absolute else registers + token
        num_patches = rows - prefix if absolute else _patches_of(per_block or shared)
        return cls(
            width=patches[0],
            depth=_depth(tensors),
            patch=(patches[2], patches[3]),
            hidden=hidden[0],
            heads=(per_block or shared or (0, None))[1],
            num_patches=num_patches,
            classes=_shape(tensors, "head.weight", 2)[0] if "head.weight" in tensors else 0,
            pool="avg" if "fc_norm.weight" in tensors or not token else "token",
            scaled="blocks.0.ls1.gamma" in tensors or "blocks.0.gamma_1" in tensors,
            class_token=token > 0,
            registers=registers,
            prefix_positions=prefix,
            qkv_bias="blocks.0.attn.qkv.bias" in tensors or "blocks.0.attn.q_bias" in tensors,
            relative="own" if per_block else "shared" if shared else None,
            absolute=absolute,
            gated=hidden[0] == 2 * back[1],
            channels=patches[1],
            norms=tuple(name for name in ("norm", "fc_norm") if f"{name}.weight" in tensors),
            pre_norm="norm_pre.weight" in tensors,
            proj_bias="blocks.0.attn.proj.bias" in tensors,
        )

    def grid(self, requested: Any = None) -> tuple[int, int]:
        """Rows and columns of patches: a square, or those of the requested image size if they have as many patches.

        Raises:
            ModelError: The patches make no square, and the requested image size does not fit.
        """
        rows, columns = cells(requested, self.patch)
        if rows * columns == self.num_patches:
            return rows, columns
        side = math.isqrt(max(self.num_patches, 0))
        if side == 0 or side * side != self.num_patches:
            raise ModelError(
                f"The weights have positions for {self.num_patches} patches, which make no square. Give the image size: "
                "options img_size=[HEIGHT, WIDTH]."
            )
        return side, side


def timm_name(architecture: Architecture, family: Family) -> str:
    """The name that timm has for the model that comes closest; what differs are options."""
    if architecture.width in family.models and (architecture.relative or not is_beit(family.models[architecture.width])):
        return family.models[architecture.width]
    if architecture.relative:
        return "beit_base_patch16_224"
    if architecture.gated:
        return "vit_giant_patch14_dinov2"
    size, patch = _PLAIN.get(architecture.width, "tiny"), architecture.patch[0]
    name = f"vit_{size}_patch{patch}_224"
    return name if timm.is_model(name) else "vit_huge_patch14_224" if size == "huge" else f"vit_{size}_patch16_224"


def timm_options(
    name: str, architecture: Architecture, family: Family, requested: Mapping[str, Any], *, strictly: bool
) -> dict[str, Any]:
    """Keyword arguments with which timm's model `name` takes the weights.

    Args:
        name: A timm model.
        architecture: What the weights belong to.
        family: Where they come from.
        requested: Keyword arguments that the user gave; they come first.
        strictly: The user named the model: width, depth, patch and MLP must be those of the model.

    Raises:
        ModelError: The message has the shapes of the model and of the weights.
    """
    model = skeleton(name, requested)
    usual = Architecture.of(model.state_dict(), apart=getattr(model, "no_embed_class", False))
    if architecture.pre_norm != usual.pre_norm:
        raise ModelError(_pre_norm_question(architecture, name if strictly else ""))
    sizes = _sizes(architecture, model, requested)
    if strictly:
        _check_sizes(name, usual, architecture)
        sizes = {key: value for key, value in sizes.items() if key == "img_size"}
    classes = {} if architecture.classes == usual.classes else {"num_classes": architecture.classes}
    options = sizes | classes | _parts(architecture, usual, family, is_beit(name))
    if not is_beit(name):
        options |= _last_norm(architecture, usual, family, requested)
    return {**options, **requested}


def skeleton(name: str, options: Mapping[str, Any]) -> Any:
    """The model without memory for its weights, at its usual image size.

    Raises:
        ModelError: timm has no such model or refuses the options, or it is no ViT that is known here.
    """
    with without_memory():
        model = build_by_timm(name, **{key: value for key, value in options.items() if key != "img_size"})
        return model if isinstance(model, VisionTransformer | Beit) else create_vit(name)


def apart_by_options(tensors: Mapping[str, Tensor], options: Mapping[str, Any]) -> bool | None:
    """Whether the positions of `tensors` are those of patches only, where the user's options determine it.

    `no_embed_class` does, and so does an image size that one reading fits.
    """
    if "no_embed_class" in options:
        return bool(options["no_embed_class"])
    if "img_size" not in options or "pos_embed" not in tensors:
        return None
    rows, patch = _shape(tensors, "pos_embed", 3)[1], _shape(tensors, "patch_embed.proj.weight", 4)[2:]
    patches = math.prod(cells(options["img_size"], patch))
    return {rows: True, rows - _count(tensors, "cls_token") - _count(tensors, "reg_token"): False}.get(patches)


def cells(image_size: Any, patch: Sequence[int]) -> tuple[int, int]:
    """Rows and columns of patches in an image of a size that a user gave; (0, 0) without one.

    Raises:
        ModelError: It is not one or two positive whole numbers.
    """
    if image_size is None:
        return 0, 0
    sides = image_size if isinstance(image_size, list | tuple) else (image_size, image_size)
    if len(sides) != 2 or not all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in sides):
        raise ModelError(f"img_size is {image_size!r}; give one whole number of pixels, or [HEIGHT, WIDTH].")
    return sides[0] // patch[0], sides[1] // patch[1]


def _last_norm(actual: Architecture, usual: Architecture, family: Family, requested: Mapping[str, Any]) -> dict[str, Any]:
    """The options that keep the one trained norm behind the blocks where timm would put another in its place."""
    if len(actual.norms) != 1:
        return {"final_norm": False} if not actual.norms and family.apart is None else {}
    pool, averaged = requested.get("global_pool", actual.pool), actual.norms == ("fc_norm",)
    if "global_pool" in requested and not averaged:  # fine-tuning on the mean of the patches begins with a norm of its own
        return {}
    overridden = (usual.norms == ("fc_norm",)) != (usual.pool == "avg")
    return {"fc_norm": averaged} if overridden or averaged != (pool in ("avg", "avgmax", "max")) else {}


def _prefix(rows: int, token: int, registers: int, patch: Sequence[int], apart: bool | None) -> int:
    """Positions in front of those of the patches.

    timm's models with registers have positions for patches only, others have one for the class token too; a square of patches that
    this leaves is taken. A square without the class token's place is one reading of two: such a number of positions is also that of
    a rectangle, one row less and one column more, and the class token.
    """
    places = token + registers
    if apart is not None or not places:
        return 0 if apart or not places else places
    if registers:
        return places if not _is_square(rows) and _is_square(rows - places) else 0
    side = math.isqrt(rows)
    if not _is_square(rows) or side < 3:  # one row of patches is no reading
        return 0 if _is_square(rows) else token
    raise ModelError(
        f"The weights have {rows} positions, which can be read in two ways: {side} x {side} patches, none for the class token "
        f"(options img_size={side * patch[0]}), or {side - 1} x {side + 1} patches and one for the class token "
        f"(img_size=[{(side - 1) * patch[0]}, {(side + 1) * patch[1]}]; images are square here, so that such weights have to be "
        "resized first). Give the image size of its training, or timm's name for the model (--model NAME)."
    )


def _depth(tensors: Mapping[str, Tensor]) -> int:
    """Number of blocks, all of which have the entries of the first."""
    blocks: dict[str, set[str]] = {}
    for name in tensors:
        if match := re.match(r"blocks\.(\d+)\.(.+)", name):
            blocks.setdefault(match[1], set()).add(match[2])
    for number in map(str, range(len(blocks))):
        lacking = blocks["0"] - blocks.get(number, set())
        if lacking:
            raise ModelError(f"The weights lack blocks.{number}.{min(lacking)}, which their first block has.")
    return len(blocks)


def _sizes(actual: Architecture, model: Any, requested: Mapping[str, Any]) -> dict[str, Any]:
    """Options of width, depth, heads, patch and image size that differ from those of the model."""
    patch, (rows, columns) = actual.patch, actual.grid(requested.get("img_size"))
    image = (rows * patch[0], columns * patch[1])
    first = model.blocks[0]
    heads = actual.heads or requested.get("num_heads") or (first.attn.num_heads if model.embed_dim == actual.width else None)
    if heads is None:
        if actual.width % HEAD_DIM:
            raise ModelError(
                f"The weights do not contain the number of heads, and the width {actual.width} is no multiple of {HEAD_DIM}, the "
                "usual width of a head. Give options num_heads=N."
            )
        heads = actual.width // HEAD_DIM
    present = {
        "img_size": tuple(model.patch_embed.img_size),
        "patch_size": tuple(model.patch_embed.patch_size),
        "embed_dim": model.embed_dim,
        "depth": len(model.blocks),
        "num_heads": first.attn.num_heads,
    }
    sizes = {"img_size": image, "patch_size": patch, "embed_dim": actual.width, "depth": actual.depth, "num_heads": heads}
    options: dict[str, Any] = {key: _side(value) for key, value in sizes.items() if value != present[key]}
    if first.mlp.fc1.out_features / model.embed_dim != actual.hidden / actual.width:
        ratio = actual.hidden / actual.width
        options["mlp_ratio"] = ratio if int(actual.width * ratio) == actual.hidden else (actual.hidden + 0.5) / actual.width
    return options


def _parts(actual: Architecture, usual: Architecture, family: Family, beit: bool) -> dict[str, Any]:
    """Options of what a ViT may have or not, as far as they differ from the usual."""
    parts: dict[str, tuple[Any, Any, Any]] = {
        "global_pool": (actual.pool, usual.pool, actual.pool),
        "qkv_bias": (actual.qkv_bias, usual.qkv_bias, actual.qkv_bias),
        "init_values": (actual.scaled, usual.scaled, family.init_values if actual.scaled else None),
    }
    if beit:
        parts |= {
            "use_abs_pos_emb": (actual.absolute, usual.absolute, actual.absolute),
            "use_rel_pos_bias": (actual.relative == "own", usual.relative == "own", actual.relative == "own"),
            "use_shared_rel_pos_bias": (actual.relative == "shared", usual.relative == "shared", actual.relative == "shared"),
        }
    else:
        apart, usually_apart = (bool(one.class_token or one.registers) and not one.prefix_positions for one in (actual, usual))
        parts |= {
            "in_chans": (actual.channels, usual.channels, actual.channels),
            "proj_bias": (actual.proj_bias, usual.proj_bias, actual.proj_bias),
            "class_token": (actual.class_token, usual.class_token, actual.class_token),
            "reg_tokens": (actual.registers, usual.registers, actual.registers),
            "no_embed_class": (apart, usually_apart, apart),
        }
    return {name: value for name, (here, there, value) in parts.items() if here != there}


def _pre_norm_question(architecture: Architecture, name: str) -> str:
    """What to ask for where a norm in front of the blocks leaves several models, which differ in what weights do not tell."""
    if not architecture.pre_norm:
        return f"'{name}' has a norm in front of the blocks (norm_pre), and these weights have none. Give another model, or none."
    named = f"'{name}' has none" if name else "what else differs is not told by weights"
    return (
        f"The weights have a norm in front of the blocks (norm_pre), as those of CLIP have; {named}. Give timm's name for the "
        "model: --model vit_base_patch16_clip_224, for one (norms with an epsilon of 1e-5 and GELU), or "
        "vit_base_patch16_clip_quickgelu_224 (quick GELU, as in the weights of OpenAI). Give options pre_norm=True for a plain ViT "
        "with this norm (1e-6 and GELU)."
    )


def _check_sizes(model: str, expected: Architecture, actual: Architecture) -> None:
    titles = {"width": "width", "depth": "depth", "patch": "patch size", "hidden": "width of the MLP", "heads": "heads"}
    pairs = {title: (getattr(expected, name), getattr(actual, name)) for name, title in titles.items()}
    wrong = [
        f"{title} {_side(one)} expected, {_side(other)} found"
        for title, (one, other) in pairs.items()
        if one != other and one is not None and other is not None
    ]
    if (expected.relative is None) != (actual.relative is None):
        one, other = ("relative" if each.relative else "absolute" for each in (expected, actual))
        wrong.append(f"{one} positions expected, {other} ones found")
    if wrong:
        raise ModelError(f"These weights are not those of '{model}': {'; '.join(wrong)}. Give another model, or none.")


def _side(value: Any) -> Any:
    """One number where height and width are the same."""
    return value[0] if isinstance(value, tuple) and value[0] == value[1] else value


def _shape(tensors: Mapping[str, Tensor], name: str, dimensions: int) -> tuple[int, ...]:
    if name not in tensors:
        raise ModelError(f"The weights have no {name}, as every ViT has.")
    shape = tuple(tensors[name].shape)
    if len(shape) != dimensions or 0 in shape:
        raise ModelError(f"{name} has the shape {shape}; {dimensions} dimensions are expected.")
    return shape


def _count(tensors: Mapping[str, Tensor], name: str) -> int:
    return _shape(tensors, name, 3)[1] if name in tensors else 0


def _table(tensors: Mapping[str, Tensor], name: str) -> tuple[int, int] | None:
    """Rows and heads of a table of relative positions."""
    if name not in tensors:
        return None
    rows, heads = _shape(tensors, name, 2)
    return rows, heads


def _patches_of(table: tuple[int, int] | None) -> int:
    """A square of g x g patches has (2g - 1)^2 + 3 rows."""
    side = math.isqrt(max(table[0] - 3, 0)) if table else 0
    return ((side + 1) // 2) ** 2


def _is_square(number: int) -> bool:
    return math.isqrt(number) ** 2 == number
