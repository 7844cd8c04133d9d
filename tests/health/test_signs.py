from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from mapet.data.skipped import UnreadableImages
from mapet.engine.callbacks import Monitor, evaluating
from mapet.engine.warnings import read_warnings
from mapet.health.fixed_batch import FixedBatch, TokenSigns, effective_rank, feature_ranks, token_signs
from mapet.health.signs import VitalSigns
from mapet.health.token_floor import count_stored, floor_of
from mapet.health.updates import UpdateMeter, parts_of, ratios_by_group
from mapet.pretraining.training import PreTraining
from mapet.runtime.run_directory import RunDirectory
from mapet.runtime.seeding import seeded_generator
from mapet.token_store.build import build_store
from mapet.token_store.read import TokenStore
from mapet.token_store.token_source import OnlineTokens, StoredTokens
from mapet.tokenizers.random_projection import RandomProjection
from tests.tiny import (
    BATCH,
    CPU,
    VOCAB,
    assert_equal_weights,
    at_step,
    tiny_objective,
    tiny_settings,
    tiny_source,
    tiny_tokenizer,
    tiny_trainer,
    weights_of,
)

STEPS = 100


class FlatImages:
    """Images of one of eight colours with a little noise: what one patch shows, all do."""

    def __init__(self, count: int = 1000) -> None:
        generator = np.random.default_rng(0)
        self.labels = np.arange(count) % 8
        colours = np.array([[60 + 130 * (kind >> bit & 1) for bit in range(3)] for kind in self.labels])
        noise = generator.integers(0, 20, (count, 16, 16, 3))
        self._pixels = (colours[:, None, None] + noise).astype(np.uint8)
        self.location, self.classes = "flat", None

    def __len__(self) -> int:
        return len(self._pixels)

    def read(self, index: int) -> bytes:
        return b"P6 16 16 255\n" + self._pixels[index].tobytes()

    def describe(self, index: int) -> str:
        return f"flat image {index}"


@pytest.fixture(scope="module")
def flat_store(tmp_path_factory) -> TokenStore:
    tokenizer = RandomProjection(image_size=16, patch_size=4, vocab_size=VOCAB, seed=0)
    return build_store(FlatImages(), tokenizer, tmp_path_factory.mktemp("flat") / "store", unreadable=UnreadableImages())


def flat_trainer(path: Path, store: TokenStore, **changes) -> PreTraining:
    values = {"training__steps": STEPS, "training__warmup_steps": 0, "training__lr": 5e-3, "training__min_lr": 0.0}
    mechanics = {"mechanics__log_every": 10, "mechanics__checkpoint_every": 1000}
    settings = tiny_settings(**(values | mechanics | changes))
    objective, tokens = tiny_objective(settings), StoredTokens(store)
    return PreTraining(objective, FlatImages(), tokens, settings, RunDirectory(path), CPU, monitors=[VitalSigns()])


def warned_of(trainer: PreTraining) -> dict[str, str]:
    trainer.run()
    return {line["name"]: line["message"] for line in read_warnings(trainer.run_directory) if line["message"]}


def test_a_healthy_run_is_warned_of_nothing(tmp_path: Path, flat_store, capsys) -> None:
    trainer = flat_trainer(tmp_path, flat_store)
    assert warned_of(trainer) == {}
    assert read_warnings(trainer.run_directory) == []
    assert "WARNING" not in capsys.readouterr().err
    entries = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert all(isinstance(value, (int, float)) for entry in entries for value in entry.values())
    measured = [entry for entry in entries if "bits_from_image" in entry]
    assert [entry["step"] for entry in measured] == [100]
    assert measured[-1]["bits_from_image"] > 0.3
    assert measured[-1]["effective_rank/patches"] > 2


def test_a_learning_rate_that_is_too_high_is_warned_of(tmp_path: Path, flat_store, capsys) -> None:
    found = warned_of(flat_trainer(tmp_path, flat_store, training__lr=0.5))
    assert {"large_update", "sluggish", "diverging"} & found.keys()
    assert any("probably too high (training.lr is 0.5): try a tenth" in message for message in found.values())
    assert "WARNING at step" in capsys.readouterr().err


def test_a_learning_rate_that_is_too_low_is_warned_of(tmp_path: Path, flat_store) -> None:
    found = warned_of(flat_trainer(tmp_path, flat_store, training__lr=5e-6))
    assert "probably too low (training.lr is 5e-06)" in found["sluggish"]
    assert "a blind guess has 3, the token frequencies alone give" in found["sluggish"]


def test_tokens_of_other_images_are_warned_of(tmp_path: Path, flat_store) -> None:
    shutil.copytree(flat_store.path, tmp_path / "shuffled")
    shuffled = TokenStore.open(tmp_path / "shuffled")
    shuffled._ids = np.array(shuffled.ids)[np.random.default_rng(1).permutation(len(shuffled))]
    found = warned_of(flat_trainer(tmp_path / "run", shuffled))
    assert "fit the tokens of other images as well as those of their own" in found["blind"]


@pytest.mark.parametrize(
    ("part", "named"),
    [("", "patch embed, norm, all 2 blocks"), ("patch_embed", "patch embed"), ("blocks.1", "block 1"), ("norm", "norm")],
)
def test_a_frozen_backbone_is_warned_of_by_the_name_of_the_part(tmp_path: Path, flat_store, part: str, named: str) -> None:
    trainer = flat_trainer(tmp_path, flat_store, training__steps=10)
    trainer.objective.backbone.get_submodule(part).requires_grad_(False)
    message = warned_of(trainer)["frozen"]
    assert f"weights of {named}" in message.replace("embeddings, ", "")
    assert read_warnings(trainer.run_directory)[0]["step"] == 10


@pytest.mark.parametrize("name", ["mapet", "mim", "cae"])
def test_vital_signs_change_no_bit_of_the_training(tmp_path: Path, store, name: str) -> None:
    options = {"teacher": "lagging"} if name == "cae" else {"num_context": 4}
    changes = {"objective__name": name, "objective__options": options, "training__drop_path": 0.2, "training__steps": 20}
    settings = tiny_settings(**changes, mechanics__log_every=2, mechanics__checkpoint_every=11)
    often = VitalSigns(updates_every=2, evaluate_every=4, share_of_time=10)
    watched = tiny_trainer(tmp_path / "watched", store, settings, monitors=[often])
    watched.run()
    assert sum("effective_rank/patches" in entry for entry in watched.run_directory.read_metrics()) == 5
    alone = tiny_trainer(tmp_path / "alone", store, settings, monitors=[])
    alone.run()
    assert not any("effective_rank/patches" in entry for entry in alone.run_directory.read_metrics())
    assert_equal_weights(weights_of(watched.objective), weights_of(alone.objective))
    assert [entry["loss"] for entry in watched.run_directory.read_metrics()] == [
        entry["loss"] for entry in alone.run_directory.read_metrics()
    ]


def test_the_floor_of_stored_tokens(store) -> None:
    counts = count_stored(store, tiny_source())
    naive = np.zeros((16, VOCAB), int)
    for row in np.array(store.ids).reshape(-1, 16):
        for position, token in enumerate(row):
            naive[position, token] += 1
    np.testing.assert_array_equal(counts, naive)
    floor = floor_of(counts)
    shares = naive.sum(axis=0) / naive.sum()
    assert floor.entropy == pytest.approx(-sum(share * math.log(share) for share in shares if share))
    assert floor.accuracy == pytest.approx(shares.max())
    assert floor.bits_gained(floor.entropy - math.log(2)) == pytest.approx(1)
    few = floor_of(naive[:, :] * 0 + np.eye(16, VOCAB, dtype=int))
    assert few.entropy_by_position is None


def test_the_floor_by_position_is_corrected_for_few_images() -> None:
    generator = np.random.default_rng(0)
    shares = generator.dirichlet(np.ones(30), size=4)
    true = float(np.mean([-(row * np.log(row)).sum() for row in shares]))
    estimates = [floor_of(np.stack([generator.multinomial(60, row) for row in shares])) for _ in range(200)]
    corrected = np.mean([floor.entropy_by_position for floor in estimates])
    plain = np.mean([_plain_entropy(generator.multinomial(60, row)) for row in shares for _ in range(200)])
    assert abs(corrected - true) < 0.5 * abs(plain - true)
    everywhere = np.tile(shares[0] * 1e6, (4, 1)).astype(int)
    assert floor_of(everywhere).entropy_by_position == pytest.approx(floor_of(everywhere).entropy, abs=1e-3)


def test_tokens_on_the_fly_are_counted_as_they_come_by(tmp_path: Path) -> None:
    settings = tiny_settings(view__name="online", training__steps=100, mechanics__log_every=10, mechanics__checkpoint_every=100)
    vital, tokens = VitalSigns(), OnlineTokens(tiny_tokenizer(), CPU)
    run = RunDirectory(tmp_path)
    trainer = PreTraining(tiny_objective(settings), tiny_source(), tokens, settings, run, CPU, monitors=[vital])
    seen = np.zeros(VOCAB, int)

    class Counting(Monitor):
        def before_step(self, step, batch):
            nonlocal seen
            seen += np.bincount(batch.token_ids.flatten().numpy(), minlength=VOCAB)

    trainer.monitors.append(Counting())
    trainer.run()
    assert vital._running is not None
    np.testing.assert_array_equal(vital._running.read().sum(axis=0), seen)
    entries = trainer.run_directory.read_metrics()
    assert ["bits_gained" in entry for entry in entries] == [False] * 9 + [True]
    floor = floor_of(vital._running.read())
    assert entries[-1]["bits_gained"] == pytest.approx(floor.bits_gained(entries[-1]["loss"]))


def test_updates_are_the_change_of_one_step_relative_to_the_weights(tmp_path: Path, store) -> None:
    trainer = tiny_trainer(
        tmp_path, store, tiny_settings(training__steps=10, mechanics__log_every=5, mechanics__checkpoint_every=10)
    )
    before, after = {}, {}
    at_step(trainer, 9, lambda: before.update(weights_of(trainer.objective)))
    trainer.run()
    after = weights_of(trainer.objective)
    entries = trainer.run_directory.read_metrics()
    assert not any(name.startswith("update/") for name in entries[0])

    def ratio(names: list[str]) -> float:
        moved = sum(float((after[name].double() - before[name].double()).square().sum()) for name in names)
        return math.sqrt(moved / sum(float(before[name].double().square().sum()) for name in names))

    blocks = [name for name in before if name.startswith("backbone.blocks.")]
    assert entries[1]["update/blocks"] == pytest.approx(ratio(blocks), rel=1e-3)
    assert entries[1]["update/patch_embed"] == pytest.approx(ratio([n for n in before if "patch_embed" in n]), rel=1e-3)
    assert entries[1]["update/head"] == pytest.approx(ratio(["mask_token", "head.weight", "head.bias"]), rel=1e-3)
    assert entries[1]["update/embeddings"] == pytest.approx(ratio(["backbone.cls_token", "backbone.pos_embed"]), rel=1e-3)


def test_the_parts_of_an_objective_are_all_that_it_trains() -> None:
    objective = tiny_objective(tiny_settings(objective__name="cae", objective__options={"teacher": "lagging"}))
    parts = parts_of(objective)
    assert {*parts} == {"head", "embeddings", "patch_embed", "blocks.0", "blocks.1", "norm"}
    trained = {parameter for parameter in objective.parameters() if parameter.requires_grad}
    assert {parameter for part in parts.values() for parameter in part} == trained
    meter = UpdateMeter(objective)
    meter.before_step()
    assert ratios_by_group(meter.read()) == dict.fromkeys(["head", "embeddings", "patch_embed", "blocks", "norm"], 0.0)
    assert not meter.pending


def test_effective_rank_of_known_spectra() -> None:
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(50, 7, generator=generator, dtype=torch.float64))[0]
    basis = torch.linalg.qr(basis - basis.mean(dim=0))[0]  # centring changes nothing
    directions = torch.linalg.qr(torch.randn(20, 7, generator=generator, dtype=torch.float64))[0]
    spectrum = torch.tensor([4.0, 2, 1, 1, 0.5, 0.25, 0.25], dtype=torch.float64)
    shares = spectrum / spectrum.sum()
    expected = float((-(shares * shares.log()).sum()).exp())
    features = basis * spectrum @ directions.T
    assert effective_rank(features + 100) == pytest.approx(expected, rel=1e-6)
    assert effective_rank(features.T - features.T.mean(dim=0)) <= 7.001
    assert effective_rank(basis @ directions.T) == pytest.approx(7, rel=1e-6)
    assert effective_rank(torch.ones(9, 4)) == 1


def test_ranks_are_those_of_the_features_of_timm(store, tmp_path: Path) -> None:
    settings = tiny_settings(training__mean=[0.1, 0.2, 0.3], training__std=[0.5, 0.6, 0.7])
    trainer = tiny_trainer(tmp_path, store, settings)
    shown = FixedBatch.load(trainer.context())
    backbone = trainer.objective.backbone.eval()
    with torch.no_grad():
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (settings.training.mean, settings.training.std))
        tokens = backbone.forward_features((shown.images / 255 - mean) / std)[:, 1:]
    expected = effective_rank(tokens.flatten(0, 1)), effective_rank(tokens.mean(dim=1))
    assert feature_ranks(backbone, shown, settings, torch.device("cpu")) == pytest.approx(expected, rel=1e-4)


def _plain_entropy(counts: np.ndarray) -> float:
    positive = counts[counts > 0] / counts.sum()
    return float(-(positive * np.log(positive)).sum())


class Told(nn.Module):
    """Predicts tokens of its own choice: those of the batch, at the ranks where it is told to."""

    backbone = None

    def __init__(self, right: torch.Tensor) -> None:
        super().__init__()
        self.right = right

    def corrupt(self, batch, generator):
        from mapet.objectives.mapet import PermutationCorruption

        return PermutationCorruption(torch.rand(len(batch.images), 16, generator=generator).argsort(dim=1))

    def forward(self, batch, corruption, return_logits=False):
        from mapet.objectives.base import token_loss

        positions = corruption.permutation[:, 4:]
        targets = batch.token_ids.gather(1, positions)
        shown = torch.where(self.right, targets, (targets + 1) % VOCAB)
        logits = 5.0 * nn.functional.one_hot(shown, VOCAB)
        return token_loss(logits, targets, positions, return_logits=return_logits)


def test_accuracy_by_rank_follows_the_permutation(store, tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, store, tiny_settings())
    shown = FixedBatch.load(trainer.context())
    right = torch.tensor([True] * 6 + [False] * 6)
    signs = token_signs(Told(right), shown, trainer.settings, torch.device("cpu"))
    assert signs.by_rank.tolist() == [1.0] * 6 + [0.0] * 6
    assert [*signs.rank_scalars().values()] == [1, 1, 1, 0, 0, 0, 0, 0]  # four of two ranks, then four of one
    assert len(shown) == 40


def test_costs_compare_predictions_with_the_tokens_of_every_image(store, tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, store, tiny_settings(objective__name="mim"))
    shown = FixedBatch.load(trainer.context())
    signs = token_signs(trainer.objective, shown, trainer.settings, torch.device("cpu"))
    assert signs.by_rank is None
    objective = trainer.objective.eval()
    objective.requires_grad_(False)
    part, batch = [*shown.parts(trainer.settings)][1]
    generator = seeded_generator(3, "vital signs", "corruption", part.start)
    output = objective(batch, objective.corrupt(batch, generator), return_logits=True)
    for image, other in ((0, 16), (3, 30), (5, 21)):
        tokens = shown.token_ids[other][output.target_positions[image]]
        expected = nn.functional.cross_entropy(output.logits[image].double(), tokens)
        assert signs.costs[part.start + image, other] == pytest.approx(float(expected), rel=1e-5)


def test_the_gain_is_none_without_a_tie_between_predictions_and_image() -> None:
    generator = np.random.default_rng(0)
    images = 40
    effects = generator.normal(0, 3, (images, 1)) + generator.normal(0, 3, (1, images))
    tied = np.eye(images)
    unrelated = [TokenSigns(5 + effects + generator.normal(0, 0.1, (images, images)), None) for _ in range(300)]
    scores = np.array([signs.gain / signs.gain_error for signs in unrelated])
    assert abs(scores.mean()) < 0.2
    assert scores.std() == pytest.approx(1, abs=0.15)
    related = TokenSigns(5 + effects + generator.normal(0, 0.1, (images, images)) - 0.5 * tied, None)
    assert related.gain == pytest.approx(0.5, abs=0.1)
    assert TokenSigns(5 + effects - 0.5 * tied, None).gain == pytest.approx(0.5, rel=1e-9)
    assert related.gain_error == pytest.approx(0.1 / images**0.5, rel=0.1)


def test_looking_leaves_every_mode_as_it_was() -> None:
    network = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Dropout()))
    network.train()
    network[1].eval()
    with evaluating(network):
        assert not any(part.training for part in network.modules())
    assert [part.training for part in network.modules()] == [True, True, False, False]


def test_large_batches_are_looked_at_more_often(tmp_path: Path, store) -> None:
    def evaluations(batch_size: int, log_every: int) -> list[int]:
        trainer = tiny_trainer(tmp_path, store, tiny_settings(training__batch_size=batch_size, mechanics__log_every=log_every))
        vital = VitalSigns()
        vital.begin(trainer.context())
        return [step for step in range(1, 1001) if step % log_every == 0 and vital._is_evaluated(step)]

    assert evaluations(BATCH, 10) == [100, 200, 400, 800]
    assert evaluations(40, 10) == [*range(100, 1001, 100)]
    assert evaluations(40, 70) == [140, 280, 420, 560, 700, 840, 980]
