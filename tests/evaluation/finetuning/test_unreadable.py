"""Fine-tuning on images of which some cannot be read, and batches of which nothing is left."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mapet.data.batch import LoadedBatch
from mapet.data.skipped import UnreadableImages
from mapet.errors import DataError, SettingsError, UnreadableImageError
from mapet.evaluation.finetuning.classifier import build_classifier
from mapet.evaluation.finetuning.evaluate import evaluate_models
from mapet.evaluation.finetuning.training import FineTuning
from tests.evaluation.finetuning.tiny import quick, tiny_frozen
from tests.tiny import LOCATION, TinyImages, assert_equal_weights, weights_of


class Damaged(TinyImages):
    def read(self, index: int) -> bytes:
        if index in (3, 17):
            raise UnreadableImageError("the file is empty")
        return super().read(index)


def test_unreadable_images_are_skipped_up_to_the_limit(tmp_path: Path) -> None:
    for limit in (2, 1):
        frozen = tiny_frozen(limit=limit)
        frozen.train = Damaged(LOCATION, 40, seed=0)
        tuning = FineTuning(frozen, quick(mixup=0.8), tmp_path / str(limit))
        if limit == 2:
            tuning.run()
            assert sorted(frozen.unreadable.names) == ["tiny image 17", "tiny image 3"]
        else:
            with pytest.raises(DataError, match="2 images cannot be read"):
                tuning.run()


def test_unreadable_test_images_count_for_nothing() -> None:
    frozen = tiny_frozen()
    frozen.unreadable = UnreadableImages(2)
    model, spec, _ = build_classifier(frozen, quick())
    frozen.test = Damaged(LOCATION, 20, seed=1)
    assert 0 <= evaluate_models({"": model}, spec, frozen, quick()).values["top1"] <= 1
    assert len(frozen.unreadable) == 2


def test_what_was_skipped_is_known_after_a_restart(tmp_path: Path) -> None:
    def tuning() -> FineTuning:
        frozen = tiny_frozen(tmp_path, limit=2)
        frozen.train = Damaged(LOCATION, 40, seed=0)
        return FineTuning(frozen, quick(), tmp_path)

    tuning().run()
    again = tuning()
    assert again.first_step == again.total_steps
    assert sorted(again.frozen.unreadable.names) == ["tiny image 17", "tiny image 3"]
    assert again.frozen.unreadable.among(again.frozen.train) == 2


class Unreadable(TinyImages):
    """Images 0 to 38 cannot be read."""

    readable = (39,)

    def read(self, index: int) -> bytes:
        if index not in self.readable:
            raise UnreadableImageError("the file is empty")
        return super().read(index)


def test_r14_mixing_needs_pairs() -> None:
    """R14: one image a batch, to be mixed, left nothing in every batch."""
    for mixing in ({"mixup": 0.8}, {"cutmix": 1.0}):
        with pytest.raises(SettingsError, match=r"in pairs, and batch_size is 1; allowed with them: 2 or more.*mixup=0"):
            quick(batch_size=1, **mixing)
    quick(batch_size=1)


def test_r14_a_batch_of_which_one_image_is_left_is_not_mixed(tmp_path: Path) -> None:
    """R14: and one of which none is left is no step."""
    tuning = FineTuning(tiny_frozen(), quick(mixup=0.8, smoothing=0.0), tmp_path)
    images = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    inputs, targets = tuning.step.prepare(images, torch.tensor([1]), 0)
    assert (len(inputs), targets.tolist()) == (1, [[0.0, 1.0]])
    nothing = LoadedBatch(images[:0], [], torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), [])
    before = weights_of(tuning.model)
    assert tuning.training_step(0, nothing, 1.0) is None
    assert_equal_weights(before, weights_of(tuning.model))


@pytest.mark.parametrize("readable", [(), (39,)])
def test_r14_a_training_without_a_step_is_refused(tmp_path: Path, readable: tuple[int, ...]) -> None:
    """R14: where no batch holds an image."""
    frozen = tiny_frozen(limit=40)
    frozen.train = Unreadable(LOCATION, 40, seed=0)
    frozen.train.readable = readable
    tuning = FineTuning(frozen, quick(), tmp_path)
    if readable:
        tuning.run()
    else:
        with pytest.raises(DataError, match="No batch of the fine-tuning held anything to learn from"):
            tuning.run()
