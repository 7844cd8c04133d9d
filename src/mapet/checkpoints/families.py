"""The family of a checkpoint, detected from its parameter names, and its backbone under timm's names.

MaPeT        q and kv apart, LayerScale            https://github.com/aimagelab/MaPeT
BEiT         q_bias and v_bias, relative positions https://github.com/microsoft/unilm (beit, beit2)
CAE          as BEiT, below "encoder.", fixed absolute positions
MAE, DINOv2  timm's names and some more
Hugging Face names of its own for ViT, ViTMAE, Dinov2 (with and without registers) and Beit
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mapet.checkpoints.entries import Entry, TensorMap
from mapet.errors import ModelError

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)

_STEMS = ("patch_embed.proj.weight", "embeddings.patch_embeddings.projection.weight")
_PREFIXES = ("", "module.", "model.", "backbone.", "encoder.", "teacher.backbone.", "visual.trunk.")
_HUGGING_FACE = (
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.", ""),
    (r"^(?:encoder\.layer|layers)\.(\d+)\.", r"blocks.\1."),
    (r"\.attention\.attention\.(q|k|v)(?:uery|ey|alue)\.", r".attn.\1."),
    (r"\.attention\.(q|k|v)_proj\.", r".attn.\1."),
    (r"\.attention\.(?:output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.attention\.(?:attention\.)?relative_position_bias\.", ".attn."),
    (r"^(?:encoder\.relative_position_bias|shared_position_bias)\.", "rel_pos_bias."),
    (r"\.(?:intermediate\.dense|mlp\.weights_in)\.", ".mlp.fc1."),
    (r"\.(?:output\.dense|mlp\.weights_out)\.", ".mlp.fc2."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
    (r"\.lambda_([12])$", r".gamma_\1"),
    (r"^layernorm\.", "norm."),
    (r"^pooler\.layernorm\.", "fc_norm."),
)
_SWIGLU = ((r"\.mlp\.w12\.", ".mlp.fc1."), (r"\.mlp\.w3\.", ".mlp.fc2."))


@dataclass(frozen=True)
class Family:
    """Checkpoints that look alike.

    Args:
        title: What to call one, as in "a TITLE".
        marks: Regular expressions, each of which some name in the file must match wholly.
        mean: Per channel, by which its images were normalised in training.
        std: Likewise.
        models: timm's names for its usual sizes, by width; other widths take those of a plain ViT.
        init_values: LayerScale's initial value, where it has LayerScale.
        spare: Names, under timm's, of what is no part of a backbone.
        apart: Class token and registers have no places among the positions; None where checkpoints differ in that.
    """

    title: str
    marks: tuple[str, ...]
    mean: tuple[float, float, float] = IMAGENET[0]
    std: tuple[float, float, float] = IMAGENET[1]
    models: dict[int, str] = field(default_factory=dict)
    init_values: float = 0.1
    spare: str = "mask_token"
    apart: bool | None = False


_BEIT = {768: "beit_base_patch16_224", 1024: "beit_large_patch16_224"}
_BEIT2 = {768: "beitv2_base_patch16_224", 1024: "beitv2_large_patch16_224"}
_SIZES = {384: "small", 768: "base", 1024: "large", 1536: "giant"}
_DINO2 = {width: f"vit_{size}_patch14_dinov2" for width, size in _SIZES.items()}
_DINO2_REGISTERS = {width: f"vit_{size}_patch14_reg4_dinov2" for width, size in _SIZES.items()}
_BEIT_SPARE = r"mask_token|lm_head\..*|.*relative_position_index|cls_pt_.*"
_MAE_SPARE = r"mask_token|decoder.*"

# The first that fits is taken: those with more marks come before their kin.
FAMILIES = (
    Family(
        "training checkpoint of mapet",
        (r"backbone\.blocks\.0\.attn\.qkv\.weight", r"backbone\.patch_embed\.proj\.weight"),
        apart=None,
    ),
    Family(
        "MaPeT pre-training checkpoint",
        (r"blocks\.0\.attn\.kv\.weight", "mask_positional_token"),
        spare=r"mask_positional_token|decoder\..*",
    ),
    Family("MaPeT fine-tuned checkpoint", (r"blocks\.0\.attn\.kv\.weight",)),
    Family("CAE pre-training checkpoint", (r"encoder\.blocks\.0\.attn\.q_bias", r"pretext_neck\..*")),
    Family("BEiT v2 pre-training checkpoint", (r"blocks\.0\.attn\.q_bias", r"cls_pt_layers\..*"), models=_BEIT2, spare=_BEIT_SPARE),
    Family(
        "BEiT pre-training checkpoint", (r"blocks\.0\.attn\.q_bias", r"lm_head\.weight"), *HALF, models=_BEIT, spare=_BEIT_SPARE
    ),
    Family(
        "BEiT checkpoint", (r"blocks\.0\.attn\.q_bias", r".*relative_position_bias_table"), *HALF, models=_BEIT, spare=_BEIT_SPARE
    ),
    Family("BEiT or CAE checkpoint with absolute positions", (r"(?:encoder\.)?blocks\.0\.attn\.q_bias",), spare=_BEIT_SPARE),
    Family("MAE pre-training checkpoint", (r"blocks\.0\.attn\.qkv\.weight", r"decoder_embed\.weight"), spare=_MAE_SPARE),
    Family(
        "DINOv2 checkpoint with registers",
        (r"(?:teacher\.backbone\.)?register_tokens",),
        models=_DINO2_REGISTERS,
        init_values=1e-5,
        apart=True,
    ),
    Family(
        "DINOv2 checkpoint",
        (r"(?:teacher\.backbone\.)?mask_token", r"(?:teacher\.backbone\.)?blocks\.0\.ls1\.gamma"),
        models=_DINO2,
        init_values=1e-5,
    ),
    Family(
        "ViT with timm's names (timm, MAE, DINO, DeiT)",
        (r".*blocks\.0\.attn\.qkv\.weight", r".*patch_embed\.proj\.weight"),
        apart=None,
    ),
    Family(
        "Hugging Face Dinov2 with registers",
        (r"(?:.*\.)?embeddings\.register_tokens",),
        models=_DINO2_REGISTERS,
        init_values=1e-5,
        apart=True,
    ),
    Family(
        "Hugging Face Dinov2",
        (r"(?:.*\.)?embeddings\.cls_token", r".*\.layer_scale1\.lambda1"),
        models=_DINO2,
        init_values=1e-5,
    ),
    Family("Hugging Face Beit", (r"(?:.*\.)?embeddings\.cls_token", r".*\.lambda_1"), *HALF, models=_BEIT, spare=_BEIT_SPARE),
    Family("Hugging Face ViTMAE", (r"(?:.*\.)?embeddings\.cls_token", r"decoder\.decoder_embed\.weight"), spare=_MAE_SPARE),
    Family("Hugging Face ViT", (r"(?:.*\.)?embeddings\.cls_token", r".*\.layernorm_before\.weight"), *HALF, spare=r"pooler\..*"),
)


@dataclass(frozen=True)
class Published:
    """The backbone of a checkpoint under timm's names.

    Args:
        family: Whose it is.
        entries: What timm's model may take; `dropped` are the file's other names.
        dropped: Names in the file that no backbone has.
    """

    family: Family
    entries: TensorMap
    dropped: tuple[str, ...]


def recognise(tensors: Mapping[str, Tensor]) -> Published | None:
    """Finds out whose checkpoint it is, and gives its backbone timm's names; None if it is none that is known.

    Args:
        tensors: Of the file, under its own names.

    Raises:
        ModelError: It is known, but a part of it is missing.
    """
    family = next((family for family in FAMILIES if _fits(family, tensors)), None)
    if family is None:
        return None
    entries = TensorMap.of(tensors)
    trunk = _trunk(entries, family.title)
    renamed = _in_timm_names(trunk, tensors)
    backbone_entries = renamed.without(family.spare)
    used = {source for entry in backbone_entries.values() for source in entry.sources}
    return Published(family, backbone_entries, tuple(name for name in tensors if name not in used))


def _fits(family: Family, names: Mapping[str, Tensor]) -> bool:
    return all(any(re.fullmatch(mark, name) for name in names) for mark in family.marks)


def _trunk(entries: TensorMap, title: str) -> TensorMap:
    """What stands below the prefix of the backbone, without it; with the classifier that Hugging Face puts beside it."""
    prefixes = [name.removesuffix(stem) for stem in _STEMS for name in entries if name.endswith(stem)]
    candidates = [prefix for prefix in _PREFIXES if prefix in prefixes] or prefixes
    if not candidates:
        raise ModelError(f"This {title} has no patch embedding (none of its names ends in {' or '.join(_STEMS)}).")
    prefix = candidates[0]
    renames = {"classifier.": "head.", "layernorm.": "norm."} if prefix in ("vit.", "beit.") else {}
    trunk = TensorMap()
    for name, entry in entries.items():
        part = name.partition(".")[0] + "."
        if name.startswith(prefix):
            trunk[name.removeprefix(prefix)] = entry
        elif part in renames:
            trunk[renames[part] + name.removeprefix(part)] = entry
    return trunk


def _in_timm_names(entries: TensorMap, tensors: Mapping[str, Tensor]) -> TensorMap:
    if any(name.startswith("embeddings.") for name in entries):
        entries = _from_hugging_face(entries)
    entries = entries.rename(_SWIGLU)
    for kind in ("weight", "bias"):
        entries.join((f".attn.q.{kind}", f".attn.kv.{kind}"), f".attn.qkv.{kind}")
    if "register_tokens" in entries:
        _separate_registers(entries)
    if not any(name.endswith("relative_position_bias_table") for name in entries):
        entries = _as_plain_vit(entries)
    return entries


def _from_hugging_face(entries: TensorMap) -> TensorMap:
    entries = entries.rename(_HUGGING_FACE)
    entries.join((".attn.q.weight", ".attn.k.weight", ".attn.v.weight"), ".attn.qkv.weight")
    if any(name.endswith(".attn.k.bias") for name in entries):
        entries.join((".attn.q.bias", ".attn.k.bias", ".attn.v.bias"), ".attn.qkv.bias")
    return entries.rename(((r"\.attn\.(q|v)\.bias$", r".attn.\1_bias"),))


def _as_plain_vit(entries: TensorMap) -> TensorMap:
    """BEiT's names without relative positions; keys have no bias there, which is a bias of 0."""
    entries = entries.rename(((r"\.gamma_([12])$", r".ls\1.gamma"),))
    for name in [name for name in entries if name.endswith(".attn.q_bias")]:
        stem = name.removesuffix("q_bias")
        if f"{stem}v_bias" not in entries:
            raise ModelError(f"The weights have {name} but not {stem}v_bias.")
        query, value = entries[name].value, entries[f"{stem}v_bias"].value
        entries.replace(f"{stem}qkv.bias", [name, f"{stem}v_bias"], torch.cat([query, torch.zeros_like(query), value]))
    return entries


def _separate_registers(entries: TensorMap) -> None:
    """In timm, DINOv2 with registers has positions for patches only; the class token's is added to it once and for all."""
    positions = entries["pos_embed"]
    if positions.value.ndim != 3 or "cls_token" not in entries:
        raise ModelError("The weights have register tokens, but no class token, or positions of another form than (1, N, width).")
    table = positions.value
    token = entries["cls_token"]
    entries["reg_token"] = entries.pop("register_tokens")
    entries["cls_token"] = Entry(token.value + table[:, :1], (*token.sources, *positions.sources), changed=True)
    entries["pos_embed"] = Entry(table[:, 1:], positions.sources, changed=True)
