"""The objective is shown exactly the crop whose tokens it is given, whichever the view and wherever a run was interrupted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mapet.data.order import step_batches
from mapet.data.regions import regions_of
from mapet.data.skipped import UnreadableImages
from mapet.data.source import sample_key
from mapet.errors import CheckpointError, SettingsError, TokenStoreError
from mapet.health.signs import VitalSigns
from mapet.pretraining import pretrain as pretrain_module
from mapet.pretraining.pretrain import pretrain
from mapet.pretraining.training import PreTraining
from mapet.runtime.run_directory import RunDirectory
from mapet.token_store.build import build_store
from mapet.token_store.read import TokenStore
from mapet.token_store.token_source import OnlineTokens, StoredTokens
from mapet.tokenizers.random_projection import RandomProjection
from tests.tiny import (
    BATCH,
    CPU,
    IMAGES,
    LOCATION,
    VOCAB,
    assert_equal_weights,
    at_step,
    tiny_objective,
    tiny_settings,
    tiny_source,
    tiny_store,
    tiny_tokenizer,
    weights_of,
)

FIXED = {"name": "fixed"}
STORED = {"name": "stored", "count": 2, "scale": [0.2, 0.8], "seed": 3}
ONLINE = {"name": "online", "scale": [0.2, 0.8]}
VIEWS = pytest.mark.parametrize("view", [FIXED, STORED, ONLINE], ids=lambda view: view["name"])
# The batch is what was loaded: no jitter, and a normalisation that changes nothing.
BARE = {"training__color_jitter": 0.0, "training__mean": [0, 0, 0], "training__std": [1, 1, 1], "training__drop_path": 0.0}


class Photos:
    """Images of 29 x 22 pixels, no two of them alike; none is symmetric."""

    location, classes, labels = "photos", None, None

    def __len__(self) -> int:
        return IMAGES

    def read(self, index: int) -> bytes:
        return b"P6 29 22 255\n" + np.random.default_rng(index).integers(0, 256, (22, 29, 3), np.uint8).tobytes()

    def describe(self, index: int) -> str:
        return f"photo {index}"


def small_tokenizer() -> RandomProjection:
    """As many patches as the backbone, at half its size, by its own filter."""
    tokenizer = RandomProjection(image_size=8, patch_size=2, vocab_size=VOCAB)
    tokenizer.interpolation = "lanczos"
    return tokenizer


def trainer_for(path: Path, view: dict[str, Any], *, source=None, tokenizer=None, **changes: Any) -> PreTraining:
    settings = tiny_settings(view=view, **changes)
    source, tokenizer = source or Photos(), tokenizer or small_tokenizer()
    regions, tokens = regions_of(settings.view, settings.seed), OnlineTokens(tokenizer, CPU)
    if view["name"] != "online":
        tokens = StoredTokens(build_store(source, tokenizer, path / "store", regions=regions, unreadable=UnreadableImages()))
    return PreTraining(tiny_objective(settings), source, tokens, settings, RunDirectory(path), CPU, monitors=[VitalSigns()])


def shown(trainer: PreTraining) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Images and tokens of every step, as the objective is given them."""
    seen, forward = [], trainer.objective.forward

    def record(batch, corruption, **options):
        seen.append((batch.images.clone(), batch.token_ids.clone()))
        return forward(batch, corruption, **options)

    trainer.objective.forward = record
    trainer.run()
    return seen


def by_hand(index: int, trainer: PreTraining, epoch: int, size: int, filter_: Image.Resampling) -> torch.Tensor:
    """(3, size, size) in [0, 1]: what an epoch shows of an image, made with nothing but Pillow."""
    content = Photos().read(index)
    image = Image.fromarray(np.frombuffer(content[-22 * 29 * 3 :], np.uint8).reshape(22, 29, 3))
    number = {"fixed": 0, "stored": epoch % 2, "online": epoch}[trainer.settings.view.name]
    region = trainer.regions.region(29, 22, sample_key(content), number)
    part = image.crop((region.left, region.top, region.right, region.bottom)).resize((size, size), filter_)
    pixels = torch.from_numpy(np.array(part)).permute(2, 0, 1) / 255
    return pixels.flip(2) if region.flip else pixels


@VIEWS
@pytest.mark.parametrize("workers", [0, 2])
def test_the_objective_sees_exactly_the_crop_whose_tokens_it_gets(tmp_path: Path, view: dict, workers: int) -> None:
    trainer = trainer_for(tmp_path, view, training__steps=12, mechanics__workers=workers, **BARE)
    seen, flips = shown(trainer), 0
    assert len(seen) == 12
    for step, indices in enumerate(step_batches(IMAGES, BATCH, 3, 0, 12)):
        images = [by_hand(index, trainer, step // 5, 16, Image.Resampling.BICUBIC) for index in indices]
        small = torch.stack([by_hand(index, trainer, step // 5, 8, Image.Resampling.LANCZOS) for index in indices])
        assert torch.equal(seen[step][0], torch.stack(images))
        assert torch.equal(seen[step][1], small_tokenizer().encode(small).flatten(1))
        flips += sum(
            trainer.regions.region(29, 22, sample_key(Photos().read(i)), trainer.regions.view_index(step // 5)).flip
            for i in indices
        )
    assert 20 < flips < 76 if view is not FIXED else flips == 0


@pytest.mark.parametrize(("view", "different"), [(FIXED, 1), (STORED, 2), (ONLINE, 4)])
def test_views_come_by_in_turn(tmp_path: Path, view: dict, different: int) -> None:
    """Four epochs of one batch: every image is seen in each."""
    trainer = trainer_for(tmp_path, view, training__batch_size=IMAGES, training__steps=4, **BARE)
    seen = [images[0] for images in shown_by_image(trainer)]
    assert len(torch.stack(seen).unique(dim=0)) == different
    assert torch.equal(seen[0], seen[2]) == (different < 3)


def shown_by_image(trainer: PreTraining) -> list[torch.Tensor]:
    """The images of every epoch, in the order of the source."""
    batches = step_batches(IMAGES, IMAGES, 3, 0, 4)
    return [images[torch.tensor(order).argsort()] for (images, _), order in zip(shown(trainer), batches, strict=True)]


def test_stored_and_online_views_train_the_same_as_long_as_no_crop_repeats(tmp_path: Path) -> None:
    weights = []
    for view in ({**STORED, "count": 3}, {**ONLINE, "seed": 5}):
        trainer = trainer_for(tmp_path / view["name"], view, training__steps=12)
        trainer.run()
        weights.append(weights_of(trainer.objective))
    assert_equal_weights(*weights)


@pytest.mark.parametrize("view", [STORED, ONLINE], ids=lambda view: view["name"])
def test_a_run_stopped_within_an_epoch_continues_bitwise(tmp_path: Path, view: dict) -> None:
    whole = trainer_for(tmp_path / "whole", view)
    whole.run()
    stopped = trainer_for(tmp_path / "stopped", view)

    def interrupt() -> None:
        raise KeyboardInterrupt

    at_step(stopped, 8, interrupt)
    with pytest.raises(KeyboardInterrupt):
        stopped.run()
    again = trainer_for(tmp_path / "stopped", view, mechanics__workers=2)
    assert again.first_step == 6
    again.run()
    assert_equal_weights(weights_of(again.objective), weights_of(whole.objective))


def test_jitter_changes_the_images_and_not_the_tokens(tmp_path: Path) -> None:
    plain = shown(trainer_for(tmp_path / "plain", ONLINE, **BARE))
    jittered = shown(trainer_for(tmp_path / "jittered", ONLINE, **{**BARE, "training__color_jitter": 0.5}))
    for (images, tokens), (others, same) in zip(plain, jittered, strict=True):
        assert not torch.equal(images, others)
        assert torch.equal(tokens, same)


def test_an_online_batch_of_which_nothing_is_left_is_survived(tmp_path: Path) -> None:
    class Unreadable(Photos):
        def read(self, index: int) -> bytes:
            return super().read(index) if index else b""

    trainer = trainer_for(tmp_path, ONLINE, source=Unreadable(), training__batch_size=1, mechanics__max_unreadable=1)
    trainer.settings = trainer.settings.model_copy(update={"seed": seed_with_image_0_first()})
    trainer.run()


def seed_with_image_0_first() -> int:
    return next(seed for seed in range(1000) if next(iter(step_batches(IMAGES, 1, seed, 0, 1))) == [0])


def start(out: Path, view: dict, **inputs: Any) -> RunDirectory:
    changes = inputs.pop("changes", {})
    return pretrain(LOCATION, tiny_settings(training__steps=8, view=view, **changes), out, **inputs)


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    tiny_tokenizer().save(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


FIT = {"tokenizer": {"features": "pixels", "vocab_size": VOCAB, "iterations": 2, "restarts": 1, "num_points": 500}}


def test_a_run_stores_its_views_itself(tmp_path: Path, tokenizer: Path) -> None:
    run = start(tmp_path / "run", STORED, tokenizer=tokenizer)
    store = TokenStore.open(run.tokens)
    assert (store.num_views, store.view["scale"], store.view["seed"]) == (2, [0.2, 0.8], 3)
    given = start(tmp_path / "given", STORED, tokens=run.tokens)
    assert not given.tokens.exists()
    assert (given.backbone / "weights.safetensors").read_bytes() == (run.backbone / "weights.safetensors").read_bytes()


def test_an_online_run_fits_a_tokenizer_and_stores_no_tokens(tmp_path: Path, monkeypatch) -> None:
    run = start(tmp_path / "run", ONLINE, changes=FIT)
    assert run.tokenizer.is_dir()
    assert not run.tokens.exists()
    recorded = json.loads(run.config.read_text())
    assert recorded["tokenizer_fingerprint"] == json.loads((run.tokenizer / "tokenizer.json").read_text())["fingerprint"]
    assert recorded["images"]["count"] == IMAGES
    monkeypatch.setattr(pretrain_module, "fit_tokenizer", None)
    again = start(tmp_path / "again", ONLINE, changes=FIT, tokenizer=run.tokenizer)
    assert (again.backbone / "weights.safetensors").read_bytes() == (run.backbone / "weights.safetensors").read_bytes()
    start(run.path, ONLINE, changes=FIT)


def test_another_tokenizer_cannot_continue_an_online_run(tmp_path: Path, tokenizer: Path) -> None:
    run = start(tmp_path / "run", ONLINE, tokenizer=tokenizer)
    tiny_tokenizer(seed=1).save(tmp_path / "other")
    with pytest.raises(CheckpointError, match="was begun with tokens of the tokenizer"):
        start(run.path, ONLINE, tokenizer=tmp_path / "other")


def test_another_view_cannot_continue_a_run(tmp_path: Path, tokenizer: Path) -> None:
    run = start(tmp_path / "run", STORED, tokenizer=tokenizer)
    with pytest.raises(
        CheckpointError, match=r"other settings: view\.count was 2, is 4\. Continue it with the command in .*environment\.json"
    ):
        start(run.path, {**STORED, "count": 4})


@pytest.mark.parametrize(
    ("view", "options"),
    [
        (STORED, r"--views 2 --scale 0\.2 0\.8 --seed 3 "),
        ({**STORED, "flip": False}, r"--views 2 --scale 0\.2 0\.8 --no-flip --seed 3 "),
    ],
)
def test_a_store_of_another_view_is_refused_with_the_command_for_this_one(tmp_path: Path, view: dict, options: str) -> None:
    tiny_store(tmp_path / "tokens")
    with pytest.raises(TokenStoreError, match=rf'view name "fixed", but the images are shown as .* TOK {options}--out'):
        start(tmp_path / "run", view, tokens=tmp_path / "tokens")
    assert not (tmp_path / "run").exists()


def test_the_online_view_takes_no_store(tmp_path: Path, tokenizer: Path) -> None:
    tiny_store(tmp_path / "tokens")
    with pytest.raises(SettingsError, match=r"tokens cannot be used\. Give --tokenizer .*view\.name to fixed or stored"):
        start(tmp_path / "run", ONLINE, tokens=tmp_path / "tokens", tokenizer=tokenizer)
    assert not (tmp_path / "run").exists()


def test_a_store_cannot_stand_in_for_one_of_other_crops(tmp_path: Path) -> None:
    """Even handed to the trainer directly, a store of fewer views is refused rather than read beside its rows."""
    source = tiny_source()
    store = build_store(
        source,
        tiny_tokenizer(),
        tmp_path / "store",
        regions=regions_of(tiny_settings(view={**STORED, "count": 1}).view, 0),
        unreadable=UnreadableImages(),
    )
    settings = tiny_settings(view=STORED)
    trainer = PreTraining(tiny_objective(settings), source, StoredTokens(store), settings, RunDirectory(tmp_path), CPU)
    with pytest.raises(TokenStoreError, match="no view 1 of an image; allowed: 0 to 0"):
        trainer.run()
