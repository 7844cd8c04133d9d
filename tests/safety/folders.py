"""Hostile changes to files that mapet reads: each names code, an address or a foreign file, or is a value that no version wrote."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ADDRESS = "http://127.0.0.1:9/weights.pth"
FOREIGN = "FOREIGN"  # stands for a folder that no file may have opened
CODE = ("canary:Payload", "this:s", "antigravity:fly", "transformers:pipeline", "os:system", "builtins:exec")
FETCHED = ("hf-hub:somebody/model", "local-dir:FOREIGN", "hf://somebody/model", ADDRESS)
VIT = "vit_tiny_patch16_224"
Change = Callable[[str], str]


def put(place: str, value: Any) -> Change:
    """Sets an entry, by its dotted name."""

    def change(text: str) -> str:
        content = json.loads(text)
        *outer, last = place.split(".")
        inner = content
        for name in outer:
            inner = inner.setdefault(name, {})
        inner[last] = value
        return json.dumps(content)

    change.__name__ = f"{place}={json.dumps(value)[:60]}"
    return change


def raw(name: str, text: str) -> Change:
    """Writes a text in place of the whole file."""

    def change(_: str) -> str:
        return text

    change.__name__ = name
    return change


def repeated(text: str) -> str:
    """Names an entry twice."""
    return text.replace("{", '{"format": 1, "format": 1,', 1)


ODD: tuple[Change, ...] = (
    raw("nothing", ""),
    raw("a list", "[]"),
    raw("null", "null"),
    raw("a text", '"text"'),
    raw("deep", "[" * 100_000),
    raw("deep object", '{"settings":' * 3_000 + "1" + "}" * 3_000),
    raw("digits", '{"format": ' + "1" * 5_000 + "}"),
    raw("infinite", '{"format": 1e999, "step": -Infinity}'),
    raw("no text", "\udcff\udcfe{"),
    raw("a zero byte", "\0{}"),
    repeated,
)
OPTIONS: tuple[dict[str, Any], ...] = (
    {"pretrained": True},
    {"checkpoint_path": "FOREIGN/weights.pth"},
    {"pretrained_cfg": {"url": ADDRESS}, "pretrained": True},
    {"pretrained_cfg_overlay": {"hf_hub_id": "somebody/model"}},
    {"cache_dir": "FOREIGN"},
    {"features_only": True},
    {"block_fn": "os.system"},
    {"act_layer": "os.system"},
    {"norm_layer": "no_such_norm"},
    {"depth": 10**9},
    {"embed_dim": 10**6},
    {"img_size": [32, 32, 32]},
    {"depth": "2"},
    {"patch_size:8": None},
    {"class_token": 1},
)
TOKENIZER = (
    *ODD,
    *(put("kind", kind) for kind in (*CODE, *FETCHED, 5, None, ["pixels"])),
    *(put("settings.features.name", name) for name in (*CODE, *FETCHED, "run:FOREIGN", "FOREIGN", "timm:resnet18@FOREIGN/x", 5)),
    *(
        put("settings.features", {"name": "timm", "image_size": 32, "patch_size": 32, **options})
        for options in (
            {"model": "hf-hub:somebody/model"},
            {"model": "test_vit", "pretrained": True},
            {"model": "test_vit", "checkpoint": "FOREIGN/weights.pth"},
            {"model": 5},
            {"model": "test_vit", "cache_dir": "FOREIGN"},
        )
    ),
    put("settings.features", {"name": "run", "image_size": 16, "patch_size": 8, "run": "FOREIGN"}),
    *(
        put(
            "settings.features",
            {
                "name": "run",
                "image_size": 16,
                "patch_size": 8,
                "backbone": {"name": VIT, "options": options, "mean": [0, 0, 0], "std": [1, 1, 1]},
            },
        )
        for options in (*OPTIONS, 5)
    ),
    put("settings.features", {"name": "run", "image_size": 16, "patch_size": 8, "backbone": {"name": "hf-hub:somebody/model"}}),
    put("settings.features", {"name": "coates", "image_size": 16, "patch_size": 8, "num_filters": 10**9}),
    put("settings.features", {"name": "pixels", "image_size": 10**9, "patch_size": 10**9}),
    put("settings.features.window", 10**7),
    put("settings.vocab_size", 10**11),
    put("settings.vocab_size", "many"),
    put("settings", 5),
    put("fit_report", [1]),
    put("fingerprint", 5),
)
OTHER_TOKENIZERS = (
    *({"kind": "vq_kd", "settings": {"image_size": 16, "vocab_size": 8, "encoder_options": options}} for options in (*OPTIONS, 5)),
    {"kind": "vq_kd", "settings": {"image_size": 16, "vocab_size": 10**11}},
    {"kind": "vq_kd", "settings": {"encoder": "hf-hub:somebody/model"}},
    {"kind": "dall_e", "settings": {"hidden_size": 10**9}},
    {"kind": "dall_e", "settings": {"hidden_size": 64, "blocks_per_group": 10**9}},
    {"kind": "dall_e", "settings": {"hidden_size": 64, "cache_dir": "FOREIGN"}},
    {"kind": "random_projection", "settings": {"image_size": 16, "patch_size": 8, "vocab_size": 10**11}},
    {"kind": "random_projection", "settings": {"image_size": 2**40, "patch_size": 2**40, "vocab_size": 8}},
    {"kind": "random_projection", "settings": {"image_size": 16, "patch_size": 8, "vocab_size": 8, "seed": "x"}},
)
MODEL = (
    *ODD,
    *(put("name", name) for name in (*FETCHED, *CODE, 5)),
    *(put("options", options) for options in (*OPTIONS, 5, [])),
    put("image_size", 10**9),
    put("image_size", "large"),
    put("mean", [1]),
    put("std", [0.5, 0.5, "x"]),
    put("crop_fraction", None),
    put("module", "os.system"),
)
RUN = (
    *ODD,
    *(put("data", data) for data in (*CODE, "hf://datasets/somebody/images", "hf://somebody/images", 5, "a\0b", "")),
    *(put("tokenizer", name) for name in (5, "hf://somebody/model", "FOREIGN/nowhere")),
    *(put("tokens", name) for name in (5, "hf://somebody/model", "FOREIGN/nowhere")),
    *(put("science.objective.name", name) for name in (*CODE, 5)),
    put("science.objective", {"name": "mvp", "options": {"teacher": "test_vit"}}),
    put("science.objective", {"name": "mvp", "options": {"teacher": "FOREIGN"}}),
    put("science.objective", {"name": "mvp", "options": {"teacher": "test_vit", "teacher_options": {"checkpoint": "FOREIGN/x"}}}),
    *(put("science.tokenizer.features", name) for name in (*CODE, "timm:resnet18", "run:FOREIGN")),
    *(put("science.backbone.name", name) for name in FETCHED),
    *(put("science.backbone.options", options) for options in OPTIONS),
    put("science.training.batch_size", "many"),
    put("science.view.name", "online"),
    put("science", 5),
    put("mechanics", {"device": "canary:Payload"}),
)
RESULT = (
    *ODD,
    put("protocol", "text"),
    put("protocol", {"name": "canary:Payload"}),
    put("protocol", {"name": ["segment"]}),
    put("figures", {"top1": "high"}),
    put("figures", {}),
    put("test_images", 0),
    put("details", {"overlays": "FOREIGN"}),
    put("details", {"overlays": "../../.."}),
    put("details", {"most_frequent_class": 5}),
    put("data", 5),
)
STORE = (
    *ODD,
    *(put("space.tokenizer.kind", kind) for kind in CODE[:2]),
    put("space.view", {"name": "canary:Payload"}),
    put("space.vocab_size", 10**11),
    put("space.vocab_size", 1),
    put("space.grid_size", [10**9, 10**9]),
    put("rows", 10**12),
    put("rows", -1),
    put("unreadable", 5),
    put("sha256", {"keys.npy": "FOREIGN"}),
)
HUGGING_FACE = (
    *ODD,
    *(put("architecture", name) for name in (*FETCHED, *CODE, 5)),
    *(put("model_args", options) for options in (*OPTIONS, 5, ["depth"])),
    put("pretrained_cfg", {"url": ADDRESS, "hf_hub_id": "somebody/model", "mean": [0, 0, 0], "std": [1, 1, 1]}),
    put("pretrained_cfg", {"mean": 5, "std": "x"}),
    put("num_classes", 10**12),
    put("auto_map", {"AutoModel": "canary.Payload"}),
    put("custom_load", "canary"),
)
TRANSFORMERS: tuple[dict[str, Any], ...] = (
    {"model_type": "vit", "auto_map": {"AutoModel": "canary--canary.Payload"}, "trust_remote_code": True},
    {"model_type": "canary:Payload"},
    {"model_type": 5},
    {"model_type": "vit", "num_attention_heads": "os.system"},
    {"model_type": "vit", "num_attention_heads": 10**12},
)
RECIPES = (
    "objective: {name: 'canary:Payload'}",
    "objective: {name: 'this:s'}",
    "objective: {name: mvp, options: {teacher: test_vit}}",
    "objective: {name: mvp, options: {teacher: FOREIGN}}",
    "tokenizer: {features: 'canary:Payload'}",
    "tokenizer: {features: 'timm:test_vit'}",
    "tokenizer: {features: test_vit, options: {pretrained: true}}",
    "tokenizer: {features: 'run:FOREIGN'}",
    "backbone: {name: 'hf-hub:somebody/model'}",
    *(f"backbone: {{options: {json.dumps(options)}}}" for options in OPTIONS),
    "seed: !!python/object/apply:os.system ['true']",
    "seed: !!python/name:canary.Payload",
    "backbone: &a {options: *a}",
    "image_size: 100000000000",
    f"seed: {'1' * 5000}",
    f"backbone: {'[' * 5000}",
    "objective: {name: 5}",
    "training: {steps: 1, epochs: 1}",
)


def few(changes: Sequence[Change]) -> list[Change]:
    """Some of every sort: the first of each place that is changed, and two of the odd texts."""
    first = {change.__name__.partition("=")[0]: change for change in reversed(changes) if change not in ODD}
    return [*first.values(), ODD[1], ODD[4]]


def write(path: Path, text: str, foreign: Path) -> None:
    """Writes a changed file, with the true name of the foreign folder."""
    path.write_bytes(text.replace(FOREIGN, str(foreign)).encode(errors="surrogateescape"))
