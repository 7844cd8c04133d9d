"""A classifier from a published checkpoint: the model, its weights and its preprocessing.

MaPeT's fine-tuned checkpoints are timm training checkpoints of `vit_standard_{tiny,small,base}_patch16_224`: timm's ViT of the same
size with LayerScale, queries apart from keys and values (facts: MaPeT's release, README and key names). Any other timm model is
read too. The checkpoint's own description is compared with the model before anything is loaded.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mapet.checkpoints.archive import read_tensors, state_dict_of
from mapet.checkpoints.backbone_folder import read_backbone, what_lies_in
from mapet.checkpoints.classifier_architecture import PUBLISHED, check_fit, released_name, vit_facts
from mapet.checkpoints.classifier_preprocessing import Preprocessing
from mapet.checkpoints.contents import listing
from mapet.checkpoints.huggingface import is_hugging_face
from mapet.checkpoints.projections import join_qkv
from mapet.compat import Beit, VisionTransformer, resolve_model_data_config, timm
from mapet.data.views import IMAGENET_MEAN, IMAGENET_STD
from mapet.errors import ModelError, in_one_line, nearest
from mapet.models.backbone import check_grid
from mapet.models.weights import load_strictly
from mapet.runtime.device import without_memory
from mapet.runtime.files import sha256
from mapet.runtime.json_files import read_json
from mapet.runtime.run_directory import RunDirectory

POOLS = {"avg": "fc_norm", "token": "norm"}  # --gp, and the norm that its checkpoints have in front of the head
_MISFIT = "If --model and --model-kwargs are those that it was saved from, the file is damaged or cut down: get it again."
_EMA = ("state_dict_ema", "model_ema")


@dataclass(frozen=True)
class Classifier:
    """A model with its head.

    Args:
        model: In evaluation mode, on the CPU.
        name: As the user calls it.
        preprocessing: Of its images.
        classes: Outputs of its head.
        checkpoint: The file or folder.
        sha256: Of the weights' file.
        names: Of its outputs, in order, where they are known.
    """

    model: nn.Module
    name: str
    preprocessing: Preprocessing
    classes: int
    checkpoint: Path
    sha256: str
    names: tuple[str, ...] | None = None

    @property
    def title(self) -> str:
        """What results call it."""
        return str(self.checkpoint)

    @property
    def run(self) -> None:
        """None: images of its own are not known."""

    @property
    def untrained(self) -> bool:
        """Never."""
        return False

    @property
    def fingerprint(self) -> str:
        """Results of other weights have other names."""
        return self.sha256


@dataclass(frozen=True)
class ModelChoice:
    """The user's options of the model; None is detected from the checkpoint.

    Args:
        name: A name of the release or of timm.
        pool: "avg" (mean of the patches) or "token" (class token), of a ViT.
        classes: Outputs of the head.
        image_size: Side of the images in pixels; position embeddings are resized to it.
        options: More keyword arguments of `timm.create_model`.
    """

    name: str | None = None
    pool: str | None = None
    classes: int | None = None
    image_size: int | None = None
    options: Mapping[str, Any] | None = None


def load_classifier(
    checkpoint: Path | str, choice: ModelChoice | None = None, *, use_ema: bool = False, names: tuple[str, ...] | None = None
) -> Classifier:
    """The classifier in a checkpoint.

    Args:
        checkpoint: A file (torch.save, safetensors), or a folder with a saved model (model.json). Code in it is never run.
        choice: The user's options.
        use_ema: Take the moving average of the weights, where the checkpoint keeps one.
        names: Of the outputs, in order; by default those that are kept beside a fine-tuned model.

    Raises:
        ModelError: The file cannot be read, holds no classifier, or one of another architecture; the message has both.
    """
    path, choice = Path(checkpoint), choice or ModelChoice()
    if path.is_dir():
        if use_ema:
            raise ModelError(f"{path} is a folder of a saved model, which keeps no moving average beside it. Leave out --use-ema.")
        saved = _saved_classifier(path, choice)
        return saved if names is None else replace(saved, names=names)
    weights, digest = read_weights(path, use_ema=use_ema), sha256(path)
    published = any(name.endswith(".attn.q.weight") for name in weights)
    weights = join_qkv(weights)
    name = choice.name or released_name(weights, path, published)
    timm_name = PUBLISHED.get(name, name)
    if not timm.is_model(timm_name):
        raise ModelError(f"There is no model '{name}'. {nearest(name, [*PUBLISHED, *timm.list_models('vit_*')])}")
    options = _options(timm_name, weights, choice, path)
    model = _build(timm_name, options)
    if isinstance(model, VisionTransformer | Beit) and not hasattr(model.patch_embed, "backbone"):  # as hybrids have
        check_grid(model.patch_embed)
    check_fit(weights, model, name, path, published=published)
    load_strictly(model, _in_model_names(weights, model), file=path, way_out=_MISFIT)
    preprocessing = _preprocessing(model, published or name in PUBLISHED)
    return Classifier(model.eval().requires_grad_(False), name, preprocessing, options["num_classes"], path, digest, names)


def read_weights(path: Path, *, use_ema: bool = False) -> dict[str, Tensor]:
    """The tensors of the model in a checkpoint, without the prefixes that DistributedDataParallel and torch.compile leave."""
    if use_ema:
        tensors = read_tensors(path)
        averages = {f"{key}.": [name for name in tensors if name.startswith(f"{key}.")] for key in _EMA}
        prefix = next((prefix for prefix, names in averages.items() if names), None)
        if prefix is None:
            raise ModelError(f"{path} keeps no moving average of the weights ({' or '.join(_EMA)}). Leave out --use-ema.")
        tensors = {name.removeprefix(prefix): tensors[name] for name in averages[prefix]}
    else:
        tensors = state_dict_of(path, ("state_dict", "model", "module"))
    return {re.sub(r"^(module\.|_orig_mod\.)+", "", name): value for name, value in tensors.items()}


def _saved_classifier(path: Path, choice: ModelChoice) -> Classifier:
    """The model that our fine-tuning saved."""
    if not (path / "model.json").is_file():
        raise ModelError(_no_classifier_in(path))
    model, spec = read_backbone(path)
    if not model.num_classes:
        raise ModelError(f"{path} holds a backbone without a classifier. Fine-tune it first: mapet evaluate finetune {path} DATA")
    if choice.image_size not in (None, spec.image_size) or choice.classes not in (None, model.num_classes):
        raise ModelError(
            f"{path} was made for images of {spec.image_size} pixels and {model.num_classes} classes. Leave out --img-size and "
            "--num-classes."
        )
    preprocessing = Preprocessing(spec.image_size, spec.crop_fraction, mean=spec.mean, std=spec.std)
    digest = sha256(path / "weights.safetensors")
    names = tuple(read_json(path.parent / "classes.json")) if (path.parent / "classes.json").is_file() else None
    name = choice.name or spec.name
    return Classifier(model.requires_grad_(False), name, preprocessing, model.num_classes, path, digest, names)


def _no_classifier_in(path: Path) -> str:
    run = RunDirectory(path)
    if not run.config.is_file() or is_hugging_face(path):
        return what_lies_in(path)
    tuned = [model.parent for model in sorted(run.evaluations.glob("**/model/model.json"))]
    way_out = (
        f"Give a fine-tuned model of it: {', '.join(map(str, tuned[:3]))}."
        if tuned
        else f"Fine-tune it (mapet evaluate finetune {path} DATA) and give the model/ folder that is written then."
    )
    return f"{path} is the run of a pre-training, whose backbone has no classifier. {way_out}"


def _options(timm_name: str, weights: Mapping[str, Tensor], choice: ModelChoice, path: Path) -> dict[str, Any]:
    """Keyword arguments of `timm.create_model` for these weights."""
    options: dict[str, Any] = {"num_classes": _head_classes(timm_name, weights, choice, path), **(choice.options or {})}
    if not vit_facts(weights):
        return options
    pool = choice.pool or ("avg" if POOLS["avg"] + ".weight" in weights else None)
    if pool is not None:
        _check_pool(pool, weights, path)
        options["global_pool"] = pool
    if "blocks.0.ls1.gamma" in weights:
        options.setdefault("init_values", 0.1)
    size = choice.image_size or _size_of_positions(weights, timm_name)
    if size is not None:
        options.setdefault("img_size", size)
    return options


def _head_classes(timm_name: str, weights: Mapping[str, Tensor], choice: ModelChoice, path: Path) -> int:
    config = timm.models.get_pretrained_cfg(timm_name)
    heads = getattr(config, "classifier", None) or "head"
    head = next((weights[name] for name in (f"{one}.weight" for one in _as_tuple(heads)) if name in weights), None)
    if head is None:
        what = (
            "a pre-training checkpoint: probe or fine-tune it with `mapet evaluate`"
            if _is_pretraining(weights)
            else "no classifier"
        )
        raise ModelError(
            f"{path} has no head for '{timm_name}' ({' or '.join(_as_tuple(heads))}), so it is {what}. It contains "
            f"{listing(weights)}"
        )
    if choice.classes not in (None, head.shape[0]):
        raise ModelError(f"The head in {path} has {head.shape[0]} classes, but --num-classes is {choice.classes}. Leave it out.")
    return head.shape[0]


def _is_pretraining(weights: Mapping[str, Tensor]) -> bool:
    return any(re.match(r"mask_|decoder|lm_head", name) for name in weights)


def _check_pool(pool: str, weights: Mapping[str, Tensor], path: Path) -> None:
    if pool not in POOLS:
        raise ModelError(f"There is no pooling '{pool}'. {nearest(pool, POOLS)}")
    if f"{POOLS[pool]}.weight" not in weights:
        other = next((name for name, norm in POOLS.items() if f"{norm}.weight" in weights), None)
        way_out = f"It was trained with --gp {other}." if other else "Leave out --gp."
        raise ModelError(
            f"With --gp {pool}, a checkpoint has {POOLS[pool]}.weight in front of its head; {path} has none. {way_out}"
        )


def _size_of_positions(weights: Mapping[str, Tensor], timm_name: str) -> int | None:
    """Side in pixels of the images that position embeddings were learned for, if those are square."""
    table = weights.get("pos_embed")
    if table is None or table.ndim != 3:
        return None
    with without_memory():
        model = _build(timm_name, {})
    prefix = 0 if getattr(model, "no_embed_class", False) else getattr(model, "num_prefix_tokens", 1)
    side = round(max(table.shape[1] - prefix, 0) ** 0.5)
    return side * weights["patch_embed.proj.weight"].shape[-1] if side and side**2 + prefix == table.shape[1] else None


def _build(name: str, options: Mapping[str, Any]) -> nn.Module:
    try:
        return timm.create_model(name, **options)
    except Exception as error:  # what options of a wrong type raise comes through timm as it is
        raise ModelError(f"timm cannot build '{name}' with {dict(options)}: {in_one_line(error)}.") from error


def _in_model_names(weights: Mapping[str, Tensor], model: Any) -> Mapping[str, Tensor]:
    """The weights as they are where they fit; else as timm translates them (other names, positions of another image size)."""
    expected = model.state_dict()
    if weights.keys() == expected.keys() and all(weights[name].shape == expected[name].shape for name in expected):
        return weights
    translate = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    try:
        return translate(dict(weights), model) if translate else weights
    except (KeyError, IndexError, AttributeError, RuntimeError, TypeError, ValueError):  # made for other names than these
        return weights


def _preprocessing(model: nn.Module, published: bool) -> Preprocessing:
    """That of the paper for the checkpoints of the release; timm's of the model for others."""
    config = resolve_model_data_config(model)
    size = (getattr(getattr(model, "patch_embed", None), "img_size", None) or config["input_size"][1:])[0]
    if published:
        return Preprocessing(size, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    return Preprocessing(size, config["crop_pct"], config["interpolation"], config["mean"], config["std"], config["crop_mode"])


def _as_tuple(names: Any) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)
