"""Models in Hugging Face's form: a folder with config.json and weights, of transformers or of timm; on the Hub or here."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from mapet.checkpoints.archive import read_tensors
from mapet.config.architecture import check_architecture
from mapet.errors import ModelError, in_one_line, nearest
from mapet.runtime.json_files import read_json
from mapet.runtime.progress import say

MODEL_TYPES = ("vit", "vit_mae", "dinov2", "dinov2_with_registers", "beit")
_ADDRESS = re.compile(r"hf://(?P<name>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^@\s]+))?/?")
_SMALL = ["config.json", "preprocessor_config.json", "model.safetensors.index.json", "pytorch_model.bin.index.json"]
_EPS = 1e-6

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class HuggingFaceModel:
    """The content of such a folder.

    Args:
        tensors: The weights under their own names.
        model: timm's name, where timm wrote the folder.
        options: Keyword arguments of `timm.create_model` that only config.json has.
        normalisation: Mean and standard deviation per channel, if the folder has them.
        notes: What differs from timm's model, each a sentence.
    """

    tensors: dict[str, Tensor]
    model: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    normalisation: tuple[Triple, Triple] | None = None
    notes: tuple[str, ...] = ()


def is_hugging_face(folder: Path) -> bool:
    """Whether a folder is a model of transformers or timm."""
    if not (folder / "config.json").is_file():
        return False
    config = read_json(folder / "config.json", object, ModelError)
    return isinstance(config, dict) and ("model_type" in config or "architecture" in config)


def read_model(folder: Path) -> HuggingFaceModel:
    """Reads configuration and weights; nothing in the folder is executed.

    Raises:
        ModelError: It is no ViT that is known here, or a file is missing or damaged.
    """
    config = read_json(folder / "config.json", dict, ModelError)
    if "architecture" in config:
        return _of_timm(folder, config)
    if config["model_type"] not in MODEL_TYPES:
        raise ModelError(
            f"{folder} holds a model of type '{config['model_type']}'. {nearest(str(config['model_type']), MODEL_TYPES)}"
        )
    act = config.get("hidden_act", "gelu")
    if act != "gelu":
        raise ModelError(f"{folder} holds a model with the activation '{act}'; timm's ViT has 'gelu'.")
    eps = config.get("layer_norm_eps", 1e-12)
    notes = () if eps == _EPS else (f"Its LayerNorms add {eps} to the variance, timm's {_EPS}.",)
    heads = {"num_heads": config["num_attention_heads"]} if "num_attention_heads" in config else {}
    check_architecture(heads, ModelError, f"num_attention_heads in {folder / 'config.json'}")
    return HuggingFaceModel(_weights(folder), None, heads, _processor(folder), notes)


def fetch(address: str) -> Path:
    """The folder of a model on the Hub, fetched if the cache lacks it.

    Args:
        address: hf://OWNER/NAME, with @REVISION (a commit, tag or branch) behind it if needed.

    Raises:
        ModelError: It cannot be had.
    """
    import huggingface_hub

    match = _ADDRESS.fullmatch(address)
    if match is None:
        raise ModelError(f"'{address}' is no model on the Hub. Write hf://OWNER/NAME or hf://OWNER/NAME@REVISION.")
    name, revision = match["name"], match["revision"]
    try:
        for weights in ("model*.safetensors", "pytorch_model*.bin"):
            files = [*_SMALL, weights]
            folder = Path(huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=files))
            if any(folder.glob(weights)):
                say(f"{name} is taken from the Hub's cache at revision {folder.name[:12]}.")
                return folder
    except Exception as error:  # what its parts raise (network, cache, names) comes through huggingface_hub as it is
        raise ModelError(
            f"Cannot fetch {address}: {in_one_line(error)}. Check owner and name; if it is private or gated, run `hf auth login` "
            f"once. Without a connection, run `hf download {name} --local-dir FOLDER` where there is one, and give FOLDER."
        ) from error
    raise ModelError(f"{address} has no weights (model.safetensors or pytorch_model.bin). Give another model.")


def _of_timm(folder: Path, config: dict[str, Any]) -> HuggingFaceModel:
    data = _section(folder, config, "pretrained_cfg")
    normalisation = (_triple(data["mean"]), _triple(data["std"])) if "mean" in data and "std" in data else None
    options = {name: value for name, value in _section(folder, config, "model_args").items() if value is not None}
    options |= {name: config[name] for name in ("num_classes", "global_pool") if name in config}
    check_architecture(options, ModelError, f"model_args in {folder / 'config.json'}")
    if not isinstance(config["architecture"], str) or not config["architecture"].isidentifier():
        raise ModelError(
            f"{folder / 'config.json'} names the architecture {config['architecture']!r:.80}, which timm does not have."
        )
    return HuggingFaceModel(_weights(folder), config["architecture"], options, normalisation)


def _weights(folder: Path) -> dict[str, Tensor]:
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return read_tensors(folder / name)
        if (folder / f"{name}.index.json").is_file():
            index = read_json(folder / f"{name}.index.json", dict, ModelError)
            shards = sorted({str(shard) for shard in _section(folder, index, "weight_map").values()})
            # only names of files beside the index: it may come from anybody
            return {key: value for shard in shards for key, value in read_tensors(folder / Path(shard).name).items()}
    raise ModelError(f"{folder} has config.json but no weights: model.safetensors or pytorch_model.bin is missing.")


def _processor(folder: Path) -> tuple[Triple, Triple] | None:
    path = folder / "preprocessor_config.json"
    values = read_json(path, dict, ModelError) if path.is_file() else {}
    if not values.get("image_mean") or not values.get("image_std"):
        return None
    return _triple(values["image_mean"]), _triple(values["image_std"])


def _section(folder: Path, values: dict[str, Any], name: str) -> dict[str, Any]:
    """An object in a configuration; empty where there is none."""
    section = values.get(name) or {}
    if not isinstance(section, dict):
        raise ModelError(f"'{name}' in {folder} is {section!r:.80}, and must be names with values. Get the folder again.")
    return section


def _triple(values: Any) -> Triple:
    try:
        red, green, blue = map(float, values)
    except (TypeError, ValueError, OverflowError):
        raise ModelError(f"Mean and standard deviation are three numbers, not {values!r:.80}. Get the folder again.") from None
    return red, green, blue
