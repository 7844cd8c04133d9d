"""Crops of every image, each decoded once and rendered for whoever looks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from mapet.data import loader as loader_module
from mapet.data.loader import RegionRenderer, make_loader
from mapet.data.order import BatchItem
from mapet.data.regions import FixedCrop, RandomCrops
from mapet.data.source import ImageSource, sample_key
from mapet.data.sources import open_source
from mapet.data.views import FixedView, Rendering
from tests.data.images import write_images

CROPS = RandomCrops(3, seed=2)
BATCHES = [BatchItem([4, 0], (0, 1, 2)), BatchItem([3], (2,)), BatchItem([1, 2], (7,))]
SMALL, LARGE = Rendering(6), Rendering(10, "lanczos")
BOTH = RegionRenderer(CROPS, SMALL, LARGE)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_images(tmp_path, " ".join(f"{number}.png" for number in range(5)))
    return tmp_path


@pytest.fixture
def source(folder: Path) -> ImageSource:
    return open_source(folder, "all")


def rendered(source: ImageSource, rendering: Rendering, batch: BatchItem) -> torch.Tensor:
    """What a batch must show, from the files."""
    seen = []
    for index in batch.indices:
        image, key = Image.open(source.describe(index)).convert("RGB"), sample_key(source.read(index))
        seen += [rendering(image, CROPS.region(*image.size, key, number)) for number in batch.views]
    return torch.stack(seen)


@pytest.mark.parametrize("workers", [0, 2])
def test_both_renderings_show_the_same_crops_in_the_order_asked_for(source: ImageSource, workers: int) -> None:
    loaded = list(make_loader(source, BOTH, BATCHES, workers))
    assert [batch.views for batch in loaded] == [batch.views for batch in BATCHES]
    assert [batch.indices.tolist() for batch in loaded] == [batch.indices for batch in BATCHES]
    for batch, wanted in zip(loaded, BATCHES, strict=True):
        assert batch.keys == [sample_key(source.read(index)) for index in wanted.indices]
        assert torch.equal(batch.images, rendered(source, SMALL, wanted))
        assert torch.equal(batch.tokenizer_images, rendered(source, LARGE, wanted))


def test_without_a_tokenizer_there_is_one_rendering(source: ImageSource) -> None:
    (loaded,) = make_loader(source, RegionRenderer(FixedCrop(), SMALL), [BatchItem([1, 3])])
    assert loaded.tokenizer_images is None
    images = [Image.open(source.describe(index)) for index in (1, 3)]
    assert torch.equal(loaded.images, torch.stack([FixedView(6)(image) for image in images]))


def test_an_image_is_decoded_once_for_all_its_crops(source: ImageSource, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded, decode = [], loader_module.decode_image
    monkeypatch.setattr(loader_module, "decode_image", lambda content: (decoded.append(sample_key(content)), decode(content))[1])
    list(make_loader(source, BOTH, BATCHES[:1]))
    assert decoded == [sample_key(source.read(index)) for index in BATCHES[0].indices]


def test_unreadable_images_leave_no_gap(folder: Path, source: ImageSource) -> None:
    (folder / "0.png").write_text("no image")
    (folder / "3.png").unlink()
    first, second, _ = make_loader(source, BOTH, BATCHES)
    assert first.indices.tolist() == [4]
    assert torch.equal(first.images, rendered(source, SMALL, BatchItem([4], (0, 1, 2))))
    assert [image.index for image in first.unreadable] == [0]
    assert second.keys == []
    assert second.images.shape == (0, 3, 6, 6)
    assert second.tokenizer_images is not None
    assert second.tokenizer_images.shape == (0, 3, 10, 10)
