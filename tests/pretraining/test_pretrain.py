"""The main job: what it makes, what it records, what it refuses to continue."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from mapet.checkpoints.address import load_backbone
from mapet.data.skipped import UnreadableImages
from mapet.data.sources import open_source
from mapet.engine.checkpoint import newest_checkpoint
from mapet.errors import (
    CheckpointError,
    DataError,
    InUseError,
    ModelError,
    SettingsError,
    TokenizerError,
    TokenStoreError,
    UsageError,
)
from mapet.export.card import model_card
from mapet.pretraining import pretrain as module
from mapet.pretraining.pretrain import pretrain
from mapet.pretraining.record import RunRecord
from mapet.runtime import lock
from mapet.runtime.lock import only_writer
from mapet.runtime.run_directory import RunDirectory
from mapet.token_store.build import build_store
from mapet.tokenizers.random_projection import RandomProjection
from tests.data.images import write_images
from tests.tiny import LOCATION, TinyImages, assert_equal_weights, tiny_settings, tiny_store, tiny_tokenizer, tiny_values


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    tiny_tokenizer().save(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    tiny_store(tmp_path / "tokens")
    return tmp_path / "tokens"


def config(run: RunDirectory) -> dict[str, Any]:
    return json.loads(run.config.read_text())


def start(out: Path, data: str = LOCATION, settings: dict[str, Any] | None = None, **inputs: Any) -> RunDirectory:
    return pretrain(data, tiny_settings(training__steps=4, **(settings or {})), out, **inputs)


def test_everything_that_is_missing_is_made_once(tmp_path: Path, monkeypatch) -> None:
    settings = {"tokenizer": {"features": "pixels", "vocab_size": 20, "iterations": 2, "restarts": 1, "num_points": 500}}
    run = start(tmp_path / "run", settings=settings)
    made = {path.name for path in run.path.iterdir()}
    assert {
        "config.json",
        "environment.json",
        "metrics.jsonl",
        "tensorboard",
        "tokenizer",
        "tokens",
        "checkpoints",
        "backbone",
    } <= made
    assert config(run)["tokenizer"] is config(run)["tokens"] is None
    assert config(run)["tokenizer_fingerprint"] == json.loads((run.tokenizer / "tokenizer.json").read_text())["fingerprint"]
    monkeypatch.setattr(module, "fit_tokenizer", None)
    weights = load_file(run.backbone / "weights.safetensors")
    assert_equal_weights(load_file(start(run.path, settings=settings).backbone / "weights.safetensors"), weights)


def test_the_objective_is_built_once(tmp_path: Path, tokens: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For MVP, building it fetches the teacher's weights."""
    built, create = [], module.create_objective
    monkeypatch.setattr(module, "create_objective", lambda name, **options: (built.append(name), create(name, **options))[1])
    start(tmp_path / "run", tokens=tokens)
    assert len(built) == 1


def test_inputs_are_recorded_as_absolute_paths(tmp_path: Path, tokens: Path, tokenizer: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = start(Path("run"), tokens="tokens", tokenizer=Path("tokenizer"))
    recorded = config(run)
    assert recorded["tokens"] == str(tokens.absolute())
    assert recorded["tokenizer"] == str(tokenizer.absolute())
    assert recorded["tokenizer_fingerprint"] == tiny_tokenizer().fingerprint
    assert recorded["images"]["count"] == 40
    assert recorded["data"] == LOCATION
    assert recorded["science"] == tiny_settings(training__steps=4).science
    assert not run.tokens.exists()


def test_a_folder_of_images_is_recorded_as_an_absolute_path(tmp_path: Path, tokenizer: Path, monkeypatch) -> None:
    write_images(tmp_path / "images", " ".join(f"{number}.png" for number in range(16)))
    monkeypatch.chdir(tmp_path)
    assert config(start(Path("run"), data="images", tokenizer=tokenizer))["data"] == str(tmp_path / "images")


def test_a_continued_run_takes_the_tokens_that_it_began_with(tmp_path: Path, tokens: Path, monkeypatch) -> None:
    run = start(tmp_path / "run", tokens=tokens)
    monkeypatch.setattr(module, "fit_tokenizer", None)
    start(run.path)
    assert config(run)["tokens"] == str(tokens)
    assert not run.tokenizer.exists()


def test_the_store_of_another_tokenizer_is_refused(tmp_path: Path, tokens: Path) -> None:
    run = start(tmp_path / "run", tokens=tokens)
    tiny_store(tmp_path / "others", seed=1)
    before = config(run)
    one, other = tiny_tokenizer().fingerprint[:12], tiny_tokenizer(seed=1).fingerprint[:12]
    with pytest.raises(CheckpointError, match=f"begun with tokens of the tokenizer {one}, these are of {other}.*--out"):
        start(run.path, tokens=tmp_path / "others")
    assert before["tokenizer_fingerprint"] == tiny_tokenizer().fingerprint
    start(run.path, tokens=tokens)
    tokens.rename(tmp_path / "moved")
    start(run.path, tokens=tmp_path / "moved")


@pytest.mark.parametrize("damage", ["flipped", "reversed"])
def test_f5_a_damaged_store_is_refused_before_the_first_step(tmp_path: Path, tokens: Path, damage: str) -> None:
    ids = np.load(tokens / "ids.npy")
    if damage == "flipped":
        ids[3, 1, 1] ^= 1
    np.save(tokens / "ids.npy", ids[::-1] if damage == "reversed" else ids)
    with pytest.raises(TokenStoreError, match=r"damaged: ids\.npy has the SHA-256"):
        start(tmp_path / "run", tokens=tokens)
    assert not (tmp_path / "run").exists()


def test_f6_a_second_start_in_the_same_run_directory_is_refused(tmp_path: Path, tokens: Path, monkeypatch) -> None:
    monkeypatch.setattr(lock, "PATIENCE", 0.0)
    with only_writer(tmp_path / "run"), pytest.raises(InUseError, match=r"run is being written by process \d+ on "):
        start(tmp_path / "run", tokens=tokens)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("key", ["science", "science_hash"])
def test_f15_a_config_that_lacks_a_key_is_not_continued(tmp_path: Path, tokens: Path, key: str) -> None:
    """F15: the way out is named in place of settings that do not differ."""
    run = start(tmp_path / "run", tokens=tokens)
    left = {name: value for name, value in config(run).items() if name != key}
    run.config.write_text(json.dumps(left))
    with pytest.raises(CheckpointError, match=rf"config\.json .*damaged \(it has no '{key}'\).*Restore it from a copy"):
        start(tmp_path / "run", tokens=tokens)


def test_another_tokenizer_is_refused(tmp_path: Path, tokenizer: Path) -> None:
    run = start(tmp_path / "run", tokenizer=tokenizer)
    tiny_tokenizer(seed=1).save(tmp_path / "other")
    with pytest.raises(TokenStoreError, match=tiny_tokenizer(seed=1).fingerprint[:12]):
        start(run.path, tokenizer=tmp_path / "other")


def test_a_tokenizer_that_did_not_make_the_tokens_is_refused(tmp_path: Path, tokens: Path) -> None:
    tiny_tokenizer(seed=1).save(tmp_path / "other")
    with pytest.raises(TokenStoreError, match="was made by the tokenizer"):
        start(tmp_path / "run", tokens=tokens, tokenizer=tmp_path / "other")


@pytest.mark.parametrize("count", [39, 41])
def test_other_images_are_refused(tmp_path: Path, tokenizer: Path, count: int, monkeypatch) -> None:
    run = start(tmp_path / "run", tokenizer=tokenizer)
    monkeypatch.setattr(module, "open_source", lambda data, _: TinyImages(data, count, seed=0))
    with pytest.raises(CheckpointError, match=rf"was begun on 40 images.*now they are {count}.*cannot be continued exactly"):
        start(run.path, tokenizer=tokenizer)


def test_the_place_of_then_is_named_beside_the_place_of_now(tmp_path: Path) -> None:
    """A run that was begun elsewhere names where, and not where its images are looked for now."""
    record = RunRecord(RunDirectory(tmp_path), "digits", tiny_settings(), None, None)
    record.begin()
    record.fix_inputs(None, ["a", "b"])
    RunDirectory(tmp_path).tokens.mkdir()
    moved = RunRecord(RunDirectory(tmp_path), str(tmp_path / "elsewhere"), tiny_settings(), None, None)
    with pytest.raises(CheckpointError, match=rf"was begun on 2 images of digits; now they are 1 of {tmp_path / 'elsewhere'}\."):
        moved.fix_inputs(None, ["a"])


def test_images_in_another_order_are_refused(tmp_path: Path, tokenizer: Path, monkeypatch) -> None:
    run = start(tmp_path / "run", tokenizer=tokenizer)

    def reversed_source(data: str, _: str) -> TinyImages:
        source = TinyImages(data, 40, seed=0)
        source._pixels = source._pixels[::-1]
        return source

    monkeypatch.setattr(module, "open_source", reversed_source)
    with pytest.raises(CheckpointError, match="or in another order"):
        start(run.path, tokenizer=tokenizer)


def test_other_science_is_refused_naming_what_differs(tmp_path: Path, tokens: Path) -> None:
    run = start(tmp_path / "run", tokens=tokens)
    before = run.config.read_bytes()
    changes = {"training__lr": 1e-4, "objective__options": {"num_context": 5}, "seed": 4}
    with pytest.raises(CheckpointError) as caught:
        start(run.path, settings=changes, tokens=tokens)
    for text in (
        "training.lr was 0.002, is 0.0001",
        "objective.options.num_context was 4, is 5",
        "seed was 3, is 4",
        "another --out",
    ):
        assert text in str(caught.value)
    assert "betas" not in str(caught.value)
    assert run.config.read_bytes() == before


def test_other_mechanics_are_welcome(tmp_path: Path, tokens: Path) -> None:
    run = start(tmp_path / "run", tokens=tokens)
    changes = {"workers": 1, "micro_batch": 3, "log_every": 2, "activation_checkpointing": True, "checkpoint_every": 2}
    start(run.path, settings={f"mechanics__{name}": value for name, value in changes.items()}, tokens=tokens)
    assert config(run)["mechanics"]["micro_batch"] == 3
    assert newest_checkpoint(run.checkpoints).step == 4


@pytest.mark.parametrize("refused", ["tokens", "tokenizer", "data"])
def test_a_start_that_was_refused_leaves_the_record_alone(tmp_path: Path, tokenizer: Path, refused: str) -> None:
    run = start(tmp_path / "run", tokenizer=tokenizer)
    before = run.config.read_bytes()
    tiny_store(tmp_path / "tokens", seed=1)
    tiny_tokenizer(seed=1).save(tmp_path / "tokenizer1")
    write_images(tmp_path / "data", " ".join(f"{number}.png" for number in range(16)))
    others = {"tokens": tmp_path / "tokens", "tokenizer": tmp_path / "tokenizer1", "data": str(tmp_path / "data")}
    with pytest.raises(UsageError):
        start(run.path, **{refused: others[refused]})
    assert run.config.read_bytes() == before
    start(run.path)


def test_a_tokenizer_of_another_vocabulary_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    RandomProjection(image_size=16, patch_size=4, vocab_size=30).save(tmp_path / "tokenizer")
    with pytest.raises(TokenizerError, match=r"vocabulary of 30 codes, but 20 are set\. Set tokenizer\.vocab_size to 30"):
        start(tmp_path / "run", tokenizer=tmp_path / "tokenizer")
    assert not (tmp_path / "run").exists()
    start(tmp_path / "run", tokenizer=tmp_path / "tokenizer", settings={"tokenizer__vocab_size": 30})


def test_a_tokenizer_of_another_grid_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    RandomProjection(image_size=16, patch_size=8, vocab_size=20).save(tmp_path / "tokenizer")
    with pytest.raises(
        TokenizerError, match=r"makes 2 x 2 tokens an image, but the backbone 4 x 4 patches.*image size / patch size"
    ):
        start(tmp_path / "run", tokenizer=tmp_path / "tokenizer")
    assert not (tmp_path / "run").exists()
    start(tmp_path / "run", tokenizer=tmp_path / "tokenizer", settings={"image_size": 8, "objective__options": {"num_context": 1}})


@pytest.mark.parametrize("given", ["tokens", "nothing"])
def test_images_without_tokens_are_counted_and_named(tmp_path: Path, given: str, capsys: pytest.CaptureFixture[str]) -> None:
    write_images(tmp_path / "images", " ".join(f"{number:02}.png" for number in range(16)))
    for name in ("03.png", "copy.png"):
        (tmp_path / "images" / name).write_text("no image")
    data, inputs = str(tmp_path / "images"), {}
    if given == "tokens":
        inputs = {"tokens": tmp_path / "tokens"}
        build_store(open_source(data), tiny_tokenizer(), inputs["tokens"], unreadable=UnreadableImages(2))
    else:
        tiny_tokenizer().save(tmp_path / "tokenizer")
        inputs = {"tokenizer": tmp_path / "tokenizer"}
    for limit in (0, 1):
        with pytest.raises(DataError, match=r"may be skipped:\n  .*03\.png: not an image(.|\n)*--max-unreadable"):
            start(tmp_path / "run", data=data, settings={"mechanics__max_unreadable": limit}, **inputs)
    capsys.readouterr()
    start(tmp_path / "run", data=data, settings={"mechanics__max_unreadable": 2}, **inputs)
    said = capsys.readouterr().err
    assert "2 images skipped as unreadable" in said
    assert "03.png: not an image" in said
    assert "copy.png: " in said


def test_images_that_pixels_cannot_be_had_of_are_in_no_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a token store, an image that cannot be read is met while training."""
    write_images(tmp_path / "images", " ".join(f"{number:02}.png" for number in range(8)))
    (tmp_path / "images" / "03.png").write_text("no image")
    settings = {"objective": {"name": "simmim"}, "mechanics__max_unreadable": 1, "training__batch_size": 4}
    run = start(tmp_path / "run", data=str(tmp_path / "images"), settings=settings)
    assert "1 image skipped as unreadable" in capsys.readouterr().err
    assert (run.read_config()["images"]["count"], run.read_config()["unreadable_images"]) == (8, 1)
    assert sum(entry["images"] for entry in run.read_metrics()) == 4 * 4 - 2  # two epochs, each of which meets it once
    card = model_card(load_backbone(run.path), library="timm", usage="", notes=(), difference=None)
    assert re.search(r"Images\W+7\b", card)


def test_a_start_that_was_refused_leaves_the_way_free(tmp_path: Path, tokens: Path) -> None:
    with pytest.raises(TokenStoreError, match="vocabulary of 20 codes, but 30 are set"):
        start(tmp_path / "run", settings={"tokenizer__vocab_size": 30}, tokens=tokens)
    start(tmp_path / "run", tokens=tokens)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"training__batch_size": 64}, DataError, "40 images, fewer than one batch of 64"),
        ({"objective__options": {"num_context": 16}}, ModelError, "num_context is 16"),
        ({"objective__options": {"contexts": 3}}, SettingsError, "has no option 'contexts'"),
        ({"objective__name": "bert"}, SettingsError, "no objective called 'bert'"),
        ({"backbone__name": "resnet18", "backbone__options": {}}, ModelError, "resnet18"),
        ({"tokenizer__image_size": 18}, SettingsError, "the backbone makes 4 patches a side.*a multiple of 4, such as 16"),
        ({"image_size": 18}, ModelError, "not a multiple of the patch size"),
        ({"mechanics__device": "gpu"}, SettingsError, "no device 'gpu'"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_made(tmp_path: Path, changes: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        start(tmp_path / "run", settings=changes)
    assert not (tmp_path / "run").exists()


def test_tokens_of_another_grid_are_refused(tmp_path: Path, tokens: Path) -> None:
    with pytest.raises(TokenStoreError, match="4 x 4 tokens an image, but the backbone makes 2 x 2"):
        start(
            tmp_path / "run",
            settings={
                "backbone": tiny_values()["backbone"] | {"options": {"patch_size": 8, "depth": 1}},
                "objective__options": {"num_context": 1},
            },
            tokens=tokens,
        )


def test_inputs_that_are_not_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TokenStoreError):
        start(tmp_path / "run", tokens=tmp_path / "none")
    with pytest.raises(TokenizerError):
        start(tmp_path / "run", tokenizer=tmp_path / "none")


def test_a_folder_of_code_that_is_not_installed_trains(tmp_path: Path, tokens: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine where only PYTHONPATH leads to mapet: a run records that its version is not known."""
    from importlib.metadata import PackageNotFoundError

    from mapet.runtime import run_directory

    def missing(package: str) -> str:
        raise PackageNotFoundError(package)

    monkeypatch.setattr(run_directory, "version", missing)
    pretrain(LOCATION, tiny_settings(training__steps=1, training__warmup_steps=0), tmp_path / "run", tokens=tokens)
    assert RunDirectory(tmp_path / "run").read_environments()[0]["packages"]["mapet"] is None
