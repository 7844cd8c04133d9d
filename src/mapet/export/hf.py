"""Exports for transformers.

A plain ViT becomes ViTModel, or ViTForImageClassification with its classifier. LayerScale, which that one lacks, is folded into the
projection before it: gamma * (W x + b) = (gamma W) x + gamma b. Where the classifier averages patches, and for timm's Beit, it
becomes Beit, which has LayerScale; its keys have no bias, and none is needed: it would shift all scores of a query alike, which
softmax takes out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import floor
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mapet.checkpoints.address import LoadedBackbone
from mapet.compat import Block, VisionTransformer
from mapet.errors import ModelError
from mapet.export.export import Written, largest_difference
from mapet.export.preprocessing import check_preprocessing, floor_note
from mapet.models.backbone import blocks_of, image_size, num_heads, patch_size
from mapet.runtime.files import write_json
from mapet.runtime.tensors import write_tensors

_BICUBIC = 3  # as Pillow numbers its filters


class _Model(NamedTuple):
    """A class of transformers, its configuration and weights under the names that it has on disk."""

    kind: str
    config: dict[str, Any]
    weights: dict[str, Tensor]
    notes: tuple[str, ...] = ()


def write(loaded: LoadedBackbone, folder: Path) -> Written:
    """Writes config.json, model.safetensors and preprocessor_config.json, and loads them again through transformers.

    Raises:
        ModelError: Neither ViT nor Beit of transformers can express the backbone.
        FailedRunError: The image processor gives other pixels than `EvaluationView` with the crop of transformers.
    """
    import transformers

    backbone = loaded.backbone
    _check(backbone)
    averaged = backbone.num_classes > 0 and backbone.global_pool == "avg"
    model = _beit(backbone) if averaged or not _is_plain(backbone) else _vit(backbone)
    config = getattr(transformers, f"{model.kind.partition('For')[0].removesuffix('Model')}Config")(**model.config)
    config.architectures = [model.kind]
    if loaded.classes:
        config.id2label = dict(enumerate(loaded.classes))
        config.label2id = {name: index for index, name in enumerate(loaded.classes)}
    config.save_pretrained(folder)
    write_tensors(folder / "model.safetensors", model.weights, {"format": "pt"})
    write_json(folder / "preprocessor_config.json", _processor(loaded))
    options = {} if backbone.num_classes else {"add_pooling_layer": False}
    with _without_progress_bars():
        network = getattr(transformers, model.kind).from_pretrained(folder, **options).eval()
        processor = transformers.AutoImageProcessor.from_pretrained(folder)
    check_preprocessing(loaded.spec, lambda picture: processor(picture, return_tensors="pt")["pixel_values"][0], floor)
    difference = largest_difference(backbone, _runner(network, classifies=backbone.num_classes > 0))
    arguments = "".join(f", {name}={value}" for name, value in options.items())
    usage = (
        f"from transformers import AutoImageProcessor, {model.kind}\n\n"
        f'processor = AutoImageProcessor.from_pretrained("FOLDER")\nmodel = {model.kind}.from_pretrained("FOLDER"{arguments})'
    )
    return Written("transformers", usage, difference, (*model.notes, floor_note(loaded.spec)))


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    from transformers.utils import logging

    were_enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if were_enabled:
            logging.enable_progress_bar()


def _check(backbone: VisionTransformer) -> None:
    """Names the first part that transformers' ViT has no place for."""
    first: Any = next(iter(blocks_of(backbone)))
    height, width = image_size(backbone)
    reasons = {
        "register tokens": getattr(backbone, "reg_token", None) is not None,
        "no class token": backbone.cls_token is None,
        "no position for the class token": getattr(backbone, "no_embed_class", False),
        "a norm before its blocks": not isinstance(getattr(backbone, "norm_pre", nn.Identity()), nn.Identity),
        "a gated MLP": not (hasattr(first.mlp, "fc1") and first.mlp.fc1.out_features == first.mlp.fc2.in_features),
        "norms of queries and keys": not isinstance(getattr(first.attn, "q_norm", nn.Identity()), nn.Identity),
        "images that are not square": height != width,
        "another activation than GELU": not isinstance(first.mlp.act, nn.GELU),
        f"pooling '{backbone.global_pool}'": backbone.num_classes > 0 and backbone.global_pool not in ("avg", "token"),
    }
    for reason, holds in reasons.items():
        if holds:
            raise ModelError(f"This backbone has {reason}, which ViT in transformers has not. Use --to timm, safetensors or onnx.")


def _is_plain(backbone: VisionTransformer) -> bool:
    return type(next(iter(blocks_of(backbone)))) is Block


def _common(backbone: VisionTransformer) -> dict[str, Any]:
    first: Any = next(iter(blocks_of(backbone)))
    common = {
        "hidden_size": backbone.embed_dim,
        "num_hidden_layers": len([*blocks_of(backbone)]),
        "num_attention_heads": num_heads(backbone),
        "intermediate_size": first.mlp.fc1.out_features,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "layer_norm_eps": first.norm1.eps,
        "image_size": image_size(backbone)[0],
        "patch_size": patch_size(backbone),
        "num_channels": 3,
    }
    return common | ({"num_labels": backbone.num_classes} if backbone.num_classes else {})


def _vit(backbone: VisionTransformer) -> _Model:
    state = {name: value.detach().cpu() for name, value in backbone.state_dict().items()}
    weights = _embeddings(state)
    for index, _ in enumerate(blocks_of(backbone)):
        weights |= _block(state, index, scale_away=True)
    norm = "fc_norm" if "fc_norm.weight" in state else "norm"
    weights |= {f"layernorm.{kind}": state[f"{norm}.{kind}"] for kind in ("weight", "bias") if f"{norm}.{kind}" in state}
    config = _common(backbone) | {"qkv_bias": "blocks.0.attn.qkv.bias" in state}
    scaled = any(name.endswith("ls1.gamma") for name in state)
    notes = ("LayerScale was folded into the projections before it.",) if scaled else ()
    if backbone.num_classes == 0:
        return _Model("ViTModel", config, weights, notes)
    return _Model("ViTForImageClassification", config, _below("vit.", weights) | _classifier(state), notes)


def _beit(backbone: VisionTransformer) -> _Model:
    state = {name: value.detach().cpu() for name, value in backbone.state_dict().items()}
    weights, absolute = _embeddings(state), "pos_embed" in state
    notes = []
    for index, _ in enumerate(blocks_of(backbone)):
        weights |= _block(state, index, scale_away=False)
        key_bias = weights.pop(f"encoder.layer.{index}.attention.attention.key.bias", None)
        if key_bias is not None and key_bias.any() and not notes:
            notes.append("The bias of the keys was left out: it has no effect.")
    tables = [name for name in state if name.endswith("relative_position_bias_table")]
    for name in tables:
        block = name.removeprefix("blocks.").partition(".")[0]
        stem = "encoder" if name.startswith("rel_pos_bias") else f"encoder.layer.{block}.attention.attention"
        weights[f"{stem}.relative_position_bias.relative_position_bias_table"] = state[name]
    shared = tables == ["rel_pos_bias.relative_position_bias_table"]
    scales = [value for name, value in weights.items() if name.endswith("lambda_1")]
    config = _common(backbone) | {
        "use_absolute_position_embeddings": absolute,
        "use_relative_position_bias": bool(tables) and not shared,
        "use_shared_relative_position_bias": shared,
        "use_mean_pooling": backbone.num_classes > 0,
        "layer_scale_init_value": 0.1 if scales else 0.0,
        "drop_path_rate": 0.0,
    }
    norm = "fc_norm" if "fc_norm.weight" in state else "norm"
    place = "pooler.layernorm" if backbone.num_classes else "layernorm"
    weights |= {f"{place}.{kind}": state[f"{norm}.{kind}"] for kind in ("weight", "bias")}
    if backbone.num_classes == 0:
        return _Model("BeitModel", config, weights, tuple(notes))
    return _Model("BeitForImageClassification", config, _below("beit.", weights) | _classifier(state), tuple(notes))


def _embeddings(state: dict[str, Tensor]) -> dict[str, Tensor]:
    patches = {f"embeddings.patch_embeddings.projection.{kind}": state[f"patch_embed.proj.{kind}"] for kind in ("weight", "bias")}
    positions = {"embeddings.position_embeddings": state["pos_embed"]} if "pos_embed" in state else {}
    return {"embeddings.cls_token": state["cls_token"], **positions, **patches}


def _block(state: dict[str, Tensor], index: int, *, scale_away: bool) -> dict[str, Tensor]:
    """One block under the names that transformers gives it on disk."""
    ours, theirs = f"blocks.{index}.", f"encoder.layer.{index}."
    block = {name.removeprefix(ours): value for name, value in state.items() if name.startswith(ours)}
    if "attn.q_bias" in block:
        query, value = block["attn.q_bias"], block["attn.v_bias"]
        block["attn.qkv.bias"] = torch.cat([query, torch.zeros_like(query), value])
    gammas = [block.get(f"ls{part}.gamma", block.get(f"gamma_{part}")) for part in (1, 2)]
    renamed: dict[str, Tensor] = {}
    for kind in ("weight", "bias"):
        if f"attn.qkv.{kind}" in block:
            parts = zip(("query", "key", "value"), block[f"attn.qkv.{kind}"].chunk(3), strict=True)
            renamed |= {f"{theirs}attention.attention.{name}.{kind}": part for name, part in parts}
        for name, place in (("norm1", "layernorm_before"), ("norm2", "layernorm_after"), ("mlp.fc1", "intermediate.dense")):
            renamed[f"{theirs}{place}.{kind}"] = block[f"{name}.{kind}"]
        for name, place, gamma in (("attn.proj", "attention.output", gammas[0]), ("mlp.fc2", "output", gammas[1])):
            folded = gamma is not None and scale_away
            value = block[f"{name}.{kind}"]
            shape = (-1, 1) if kind == "weight" else (-1,)
            renamed[f"{theirs}{place}.dense.{kind}"] = value * gamma.view(shape) if gamma is not None and folded else value
    if not scale_away:
        renamed |= {f"{theirs}lambda_{part}": gamma for part, gamma in enumerate(gammas, 1) if gamma is not None}
    return renamed


def _classifier(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"classifier.{kind}": state[f"head.{kind}"] for kind in ("weight", "bias")}


def _below(prefix: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in weights.items()}


def _processor(loaded: LoadedBackbone) -> dict[str, Any]:
    """`EvaluationView` but for the rounding of odd margins, see `mapet.export.preprocessing`; normalised."""
    size, spec = loaded.spec.image_size, loaded.spec
    return {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": floor(size / spec.crop_fraction)},
        "resample": _BICUBIC,
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(spec.mean),
        "image_std": list(spec.std),
    }


def _runner(network: Any, *, classifies: bool) -> Callable[[Tensor], Tensor]:
    def run(images: Tensor) -> Tensor:
        output = network(pixel_values=images)
        return output.logits if classifies else output.last_hidden_state

    return run
