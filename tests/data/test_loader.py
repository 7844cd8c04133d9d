import os
import signal
from collections.abc import Iterable
from dataclasses import replace

import pytest
import torch

from mapet.data.batch import LoadedBatch, UnreadableImage
from mapet.data.digits import DigitImages
from mapet.data.loader import ViewRenderer, make_loader
from mapet.data.order import BatchItem, sequential_batches, step_batches
from mapet.data.skipped import UnreadableImages
from mapet.data.source import sample_key, subset
from mapet.data.sources import open_source
from mapet.data.views import AugmentedView, FixedView
from mapet.errors import DataError, SettingsError
from tests.data.images import encoded, png, random_image, write_images


def steps(*args, **kwargs) -> list[list[int]]:
    return list(step_batches(*args, **kwargs))


def test_an_epoch_shows_every_sample_once_and_drops_the_remainder():
    batches = step_batches(11, 3, 0, 0, 6)
    assert batches.steps_per_epoch == 3
    assert len(batches) == 6
    first, second = steps(11, 3, 0, 0, 3), steps(11, 3, 0, 3, 6)
    assert list(batches) == first + second
    for epoch in (first, second):
        flat = [index for batch in epoch for index in batch]
        assert len(set(flat)) == 9
        assert set(flat) <= set(range(11))
    assert first != second


def test_order_is_a_function_of_the_step():
    whole = steps(20, 4, 7, 0, 15)
    assert [steps(20, 4, 7, step, step + 1)[0] for step in range(15)] == whole
    assert steps(20, 4, 8, 0, 15) != whole


def test_steps_know_their_epoch():
    batches = step_batches(20, 4, 7, 3, 13)
    assert [item.views for item in batches.items()] == [(0,), (0,)] + [(1,)] * 5 + [(2,)] * 3
    assert [item.indices for item in batches.items()] == [*batches]
    assert [item.views for item in batches.items(lambda epoch: epoch % 2)][-3:] == [(0,)] * 3


def test_ranks_share_the_same_global_batch():
    whole = steps(20, 4, 7, 3, 9)
    ranks = [steps(20, 4, 7, 3, 9, rank=rank, world=2) for rank in range(2)]
    assert [left + right for left, right in zip(*ranks, strict=True)] == whole


def test_batches_that_cannot_be():
    with pytest.raises(DataError, match="3 images, fewer than one batch of 4"):
        step_batches(3, 4, 0, 0, 1)
    with pytest.raises(SettingsError, match="batch size is 5; it must be a positive multiple of the 2 processes"):
        step_batches(30, 5, 0, 0, 1, world=2)
    with pytest.raises(SettingsError, match="batch size is 0"):
        step_batches(30, 0, 0, 0, 1)


def test_sequential_batches():
    assert sequential_batches(5, 2) == [BatchItem([0, 1]), BatchItem([2, 3]), BatchItem([4])]
    assert sequential_batches(0, 2) == []


def loaded(batches: Iterable[LoadedBatch]) -> list[LoadedBatch]:
    return list(batches)


def test_batch_content():
    source = DigitImages()
    (batch,) = loaded(make_loader(source, ViewRenderer(FixedView(8)), [BatchItem([30, 4])], workers=0))
    assert batch.images.shape == (2, 3, 8, 8)
    assert batch.images.dtype == torch.uint8
    assert batch.images[1, 0].flatten().tolist() == list(source.read(4)[-64:])
    assert batch.keys == [sample_key(source.read(30)), sample_key(source.read(4))]
    assert batch.indices.tolist() == [30, 4]
    assert batch.labels is not None
    assert batch.labels.tolist() == [0, 4]
    assert batch.unreadable == []


def test_workers_and_global_random_state_change_nothing():
    source = subset(DigitImages(), range(40))
    batches = sequential_batches(40, 7)
    alone = loaded(make_loader(source, ViewRenderer(AugmentedView(8), 3), batches, workers=0))
    torch.manual_seed(123)
    state = torch.random.get_rng_state()
    helped = loaded(make_loader(source, ViewRenderer(AugmentedView(8), 3), batches, workers=2))
    assert torch.equal(state, torch.random.get_rng_state())
    assert [batch.keys for batch in alone] == [batch.keys for batch in helped]
    assert all(torch.equal(a.images, b.images) for a, b in zip(alone, helped, strict=True))


def test_random_views_differ_by_seed_and_epoch_but_not_by_position():
    def images(samples: list[int], seed: int, epoch: int) -> torch.Tensor:
        source = subset(DigitImages(), samples)
        return loaded(make_loader(source, ViewRenderer(AugmentedView(8), seed), [BatchItem([0, 1], (epoch,))]))[0].images

    reference = images([1, 2], seed=0, epoch=0)
    assert torch.equal(images([2, 1], seed=0, epoch=0).flip(0), reference)
    assert not torch.equal(images([1, 2], seed=1, epoch=0), reference)
    assert not torch.equal(images([1, 2], seed=0, epoch=1), reference)


def test_batches_are_pinned_on_request(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor + 1)  # as there may be no GPU
    source = DigitImages()
    (batch,) = loaded(make_loader(source, ViewRenderer(FixedView(8)), [BatchItem([30, 4])], workers=0))
    pinned = batch.pin_memory()
    assert torch.equal(pinned.images, batch.images + 1)
    assert torch.equal(pinned.labels, batch.labels + 1)
    assert pinned.keys == batch.keys
    assert pinned.tokenizer_images is None
    both = replace(batch, tokenizer_images=batch.images).pin_memory()
    assert torch.equal(both.tokenizer_images, batch.images + 1)
    for device in ("cpu", "cuda"):
        loader = make_loader(source, ViewRenderer(FixedView(8)), [BatchItem([30, 4])], device=device)
        assert loader.pin_memory is (device == "cuda")
    source.labels = None
    (batch,) = loaded(make_loader(source, ViewRenderer(FixedView(8)), [BatchItem([30, 4])], workers=0))
    assert batch.pin_memory().labels is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("workers", [0, 1])
def test_batches_for_a_cuda_device_are_pinned(workers):
    (batch,) = loaded(make_loader(DigitImages(), ViewRenderer(FixedView(8)), [BatchItem([30, 4])], workers, "cuda"))
    assert batch.images.is_pinned()
    assert batch.labels is not None
    assert batch.labels.is_pinned()


@pytest.fixture
def partly_unreadable(tmp_path):
    """Six files, of which 1, 2, 3 and 4 cannot be read."""
    write_images(tmp_path, "0.png 1.jpg 2.jpg 3.png 4.png 5.png")
    (tmp_path / "1.jpg").write_text("not a picture at all")
    (tmp_path / "2.jpg").write_bytes(encoded(random_image(0, 64, 64), "JPEG")[:500])
    (tmp_path / "3.png").write_bytes(b"")
    source = open_source(tmp_path, "all")
    (tmp_path / "4.png").unlink()
    return source


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_images_are_reported_not_raised(partly_unreadable, workers):
    batches = [BatchItem([0, 1, 2, 3, 4, 5]), BatchItem([1, 2])]
    first, second = loaded(make_loader(partly_unreadable, ViewRenderer(FixedView(8)), batches, workers))
    assert first.indices.tolist() == [0, 5]
    assert first.keys == [sample_key(png(0)), sample_key(png(5))]
    assert first.images.shape == (2, 3, 8, 8)
    assert [image.index for image in first.unreadable] == [1, 2, 3, 4]
    reasons = " | ".join(image.reason for image in first.unreadable)
    assert "not an image" in reasons
    assert "cut short" in reasons
    assert "empty" in reasons
    assert "No such file" in reasons
    assert [bool(image.key) for image in first.unreadable] == [True, True, True, False]
    assert second.images.shape == (0, 3, 8, 8)
    assert second.images.dtype == torch.uint8


def test_labels_stay_with_their_images(tmp_path):
    write_images(tmp_path, "cat/0.png cat/1.png dog/0.png eel/0.png")
    (tmp_path / "cat" / "1.png").write_bytes(b"")
    (batch,) = loaded(make_loader(open_source(tmp_path, "all"), ViewRenderer(FixedView(8)), [BatchItem([3, 1, 2])], 0))
    assert batch.labels is not None
    assert batch.labels.tolist() == [2, 1]


def some_unreadable(*names: str) -> list[UnreadableImage]:
    return [UnreadableImage(number, "key", name, "the file is empty") for number, name in enumerate(names)]


def test_limit_on_unreadable_images():
    unreadable = UnreadableImages(limit=2)
    unreadable.record(some_unreadable("a.png", "b.png"))
    unreadable.record(some_unreadable("a.png"))
    assert len(unreadable) == 2
    assert unreadable.names == ["a.png", "b.png"]
    assert unreadable.summary().splitlines() == [
        "2 images skipped as unreadable:",
        "  a.png: the file is empty",
        "  b.png: the file is empty",
    ]
    with pytest.raises(
        DataError, match=r"3 images cannot be read, 2 may be skipped:\n  a\.png: the file.*\n.*\n.*\n.*--max-unreadable N"
    ):
        unreadable.record(some_unreadable("c.png"))


def test_no_unreadable_image_is_allowed_unless_the_user_says_so():
    assert UnreadableImages().summary() == ""
    with pytest.raises(DataError, match=r"1 image cannot be read, 0 may be skipped:\n  a\.png"):
        UnreadableImages().record(some_unreadable("a.png"))
    with pytest.raises(DataError, match="and 4 more"):
        UnreadableImages().record(some_unreadable(*"abcdefghi"))


class SignalledImages(DigitImages):
    """Every read sends the reading process a signal, as Ctrl-C does to all processes of a terminal."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__()
        self.number = number

    def read(self, index: int) -> bytes:
        os.kill(os.getpid(), self.number)
        return super().read(index)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_workers_leave_signals_to_the_main_process(number):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs start with it ignored
    try:
        batches = loaded(make_loader(SignalledImages(number), ViewRenderer(FixedView(8)), sequential_batches(6, 2), workers=1))
    finally:
        signal.signal(signal.SIGINT, before)
    assert sum(len(batch.keys) for batch in batches) == 6
