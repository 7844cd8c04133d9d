from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from mapet.data.loader import make_loader
from mapet.data.mask_files import PADDED
from mapet.data.masked import open_segmentation
from mapet.data.order import step_batches
from mapet.data.skipped import UnreadableImages
from mapet.data.views import IMAGENET_MEAN, IMAGENET_STD, normalise
from mapet.engine.loop import LoopSettings
from mapet.errors import CheckpointError, DataError, InterruptedRunError, NonFiniteLossError
from mapet.evaluation.frozen_backbone import FrozenBackbone
from mapet.evaluation.segmentation.augment import Augmentation, MaskedRenderer
from mapet.evaluation.segmentation.loss import pixel_loss
from mapet.evaluation.segmentation.protocol import Segment
from mapet.evaluation.segmentation.training import SegmentationTraining
from mapet.models.spec import BackboneSpec
from tests.evaluation.segmentation.pictures import write_pair
from tests.tiny import StopAfter

OPTIONS = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 4, "num_heads": 2, "num_classes": 0}
SPEC = BackboneSpec("vit_tiny_patch16_224", OPTIONS, 16, IMAGENET_MEAN, IMAGENET_STD, seed=0)
SMALL = {
    "steps": 6, "batch_size": 3, "lr": 2e-3, "warmup_steps": 1, "drop_path": 0.2, "crop": 32, "stride": 21, "scale": (128, 32),
    "channels": 8, "aux_channels": 8,
}  # fmt: skip


def training_in(
    folder: Path, pictures: Path, kept: bool = True, seed: int = 0, unreadable: int = 0, loop: Any = None, **settings
) -> SegmentationTraining:
    train, test = open_segmentation(str(pictures))
    spec = BackboneSpec(SPEC.name, SPEC.options, 16, SPEC.mean, SPEC.std, seed)
    frozen = FrozenBackbone(
        "tiny", spec.build(), spec, train, test, device=torch.device("cpu"), workers=0, unreadable=UnreadableImages(unreadable)
    )
    frozen.folder = folder if kept else None
    return SegmentationTraining(frozen, train, Segment(**{**SMALL, **settings}), folder, **(loop or {}))


def test_an_interrupted_training_goes_on_exactly(tmp_path: Path, folder: Path) -> None:
    whole = training_in(tmp_path / "whole", folder)
    expected = whole.trained_model().state_dict()
    with pytest.raises(InterruptedRunError, match=r"after step 4 .*same command continues"):
        training_in(tmp_path / "cut", folder, loop={"stop": lambda: StopAfter(4)}).run()
    continued = training_in(tmp_path / "cut", folder)
    assert continued.first_step == 4
    found = continued.trained_model().state_dict()
    assert all(torch.equal(value, found[name]) for name, value in expected.items())
    lines = [training.run_directory.read_metrics() for training in (whole, continued)]
    assert [entry["step"] for entry in lines[0]] == [6]
    assert [entry["step"] for entry in lines[1]] == [6]
    assert lines[0][0]["loss"] == lines[1][0]["loss"]  # F21
    again = training_in(tmp_path / "cut", folder)  # what is finished is not trained again
    assert again.first_step == 6
    assert torch.equal(again.trained_model().state_dict()["backbone.pos_embed"], expected["backbone.pos_embed"])


def test_checkpoints_come_every_few_minutes(tmp_path: Path, folder: Path) -> None:
    for name, seconds, kept in (("minutes", 300.0, [6]), ("always", 0.0, [1, 2, 3, 4, 5, 6])):
        settings = LoopSettings(checkpoint_seconds=seconds, keep_checkpoints=9)
        training_in(tmp_path / name, folder, loop={"when": settings}).run()
        assert [int(path.name[5:]) for path in sorted((tmp_path / name / "checkpoints").iterdir())] == kept


def test_nothing_is_kept_where_nothing_may_be(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(InterruptedRunError, match=r"Nothing was kept: give --out"):
        training_in(tmp_path, folder, kept=False, loop={"stop": lambda: StopAfter(2)}).run()
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize("other", ["backbone", "settings", "masks"])
def test_another_training_is_not_continued(tmp_path: Path, folder: Path, other: str) -> None:
    training_in(tmp_path / "out", folder, steps=1).run()
    if other == "masks":
        path = folder / "annotations" / "train" / "picture0.png"
        Image.open(path).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(path)
    changes = {"backbone": {"seed": 1}, "settings": {"lr": 1e-3}, "masks": {}}[other]
    with pytest.raises(CheckpointError, match=r"another backbone, on other images or labels, or with other settings.*--out"):
        training_in(tmp_path / "out", folder, steps=1, **changes)


def test_nan_stops_before_the_optimizer_moves(tmp_path: Path, folder: Path) -> None:
    training = training_in(tmp_path, folder)
    with torch.no_grad():
        training.model.decode_head.classifier[1].bias[0] = float("nan")
    before = {name: value.clone() for name, value in training.model.named_parameters()}
    with pytest.raises(NonFiniteLossError, match=r"step 0 .*Sample keys of that batch: [0-9a-f]{32}"):
        training.run()
    unchanged = [torch.equal(value, before[name]) for name, value in training.model.named_parameters() if "classifier" not in name]
    assert all(unchanged)
    assert not (tmp_path / "checkpoints").exists()


def test_padding_has_the_mean_colour_and_rates_follow_the_layers(tmp_path: Path, folder: Path) -> None:
    training = training_in(tmp_path, folder)
    seen = []
    training.model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    images = torch.full((2, 3, 32, 32), 200, dtype=torch.uint8)
    labels = torch.zeros(2, 32, 32, dtype=torch.int16)
    labels[:, 16:] = PADDED
    training.step(images, labels, 0, 0.01)
    assert (seen[0][:, :, 16:] == 0).all()
    assert seen[0][0, 0, 0, 0].item() == pytest.approx((200 / 255 - IMAGENET_MEAN[0]) / IMAGENET_STD[0], rel=1e-5)
    rates = sorted({group["lr"] for group in training.step.optimizer.param_groups})
    assert rates == pytest.approx([0.01 * 0.75**power for power in (5, 4, 3, 2, 1, 0)])


def test_the_loss_is_that_of_both_heads(tmp_path: Path, folder: Path) -> None:
    images = torch.randint(0, 255, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels = torch.zeros(2, 32, 32, dtype=torch.int16)
    labels[:, :8] = -1
    weighted = {
        weight: training_in(tmp_path / str(weight), folder, aux_weight=weight, dropout=0.0, drop_path=0.0)
        .step(images, labels, 0, 0.0)
        .loss
        for weight in (0.0, 0.4, 1.0)
    }
    aux = weighted[1.0] - weighted[0.0]
    assert aux > 0.5
    assert weighted[0.4].item() == pytest.approx((weighted[0.0] + 0.4 * aux).item(), rel=1e-5)
    published = training_in(tmp_path / "published", folder, dropout=0.0, drop_path=0.0, published_denominator=True)
    assert published.step(images, labels, 0, 0.0).loss.item() == pytest.approx(0.75 * weighted[0.4].item(), rel=1e-5)


def test_what_is_dropped_is_a_function_of_the_step(tmp_path: Path, folder: Path) -> None:
    step = training_in(tmp_path, folder, dropout=0.5, drop_path=0.5).step
    images = torch.randint(0, 255, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels = torch.zeros(2, 32, 32, dtype=torch.int16)
    first, second, again = (step(images, labels, number, 0.0).loss for number in (0, 1, 0))
    assert first == again
    assert first != second


def test_workers_change_nothing(folder: Path) -> None:
    train, _ = open_segmentation(str(folder))
    augment = Augmentation(32, (128, 32), (0.5, 2.0), 0.75)
    renderer, items = MaskedRenderer(train, augment, 0), [*step_batches(6, 3, 0, 1, 4).items()]
    alone, helped = ([*make_loader(train, renderer, items, workers)] for workers in (0, 1))
    assert len(alone) == len(helped) == 3
    for one, other in zip(alone, helped, strict=True):
        assert one.keys == other.keys
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)  # type: ignore[arg-type]


def test_every_epoch_draws_anew(folder: Path) -> None:
    train, _ = open_segmentation(str(folder))
    augment = Augmentation(32, (128, 32), (0.5, 2.0), 0.75)
    first, second = make_loader(train, MaskedRenderer(train, augment, 0), step_batches(6, 6, 0, 0, 2).items())
    places = [second.keys.index(key) for key in first.keys]
    assert not any(torch.equal(first.images[index], second.images[place]) for index, place in enumerate(places))


def test_an_unreadable_image_is_refused_or_skipped(tmp_path: Path, folder: Path) -> None:
    path = folder / "images" / "train" / "picture0.png"
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(DataError, match=r"picture0.png: damaged or cut short"):
        training_in(tmp_path / "strict", folder).run()
    lenient = training_in(tmp_path / "lenient", folder, unreadable=1)
    lenient.run()
    assert lenient.frozen.unreadable.names == [str(path)]


def test_one_image_is_too_few(tmp_path: Path) -> None:
    for part in ("train", "val"):
        write_pair(tmp_path / "pictures", part, "only", 0)
    (tmp_path / "pictures" / "labels.txt").write_text("a\nb\nc\nd")
    with pytest.raises(DataError, match=r"has 1 image to train on; at least two"):
        training_in(tmp_path / "out", tmp_path / "pictures")


def test_blocks_of_a_beit_learn_tables_of_their_own(tmp_path: Path, folder: Path) -> None:
    options = {**OPTIONS, "use_shared_rel_pos_bias": True, "use_rel_pos_bias": False, "use_abs_pos_emb": False}
    spec = BackboneSpec("beit_base_patch16_224", options, 16, SPEC.mean, SPEC.std, seed=0)
    train, test = open_segmentation(str(folder))
    parts = {"device": torch.device("cpu"), "workers": 0, "unreadable": UnreadableImages()}
    frozen = FrozenBackbone("beit", spec.build(), spec, train, test, **parts)
    frozen.folder = tmp_path / "out"
    model = SegmentationTraining(frozen, train, Segment(**{**SMALL, "steps": 2}), tmp_path / "out").trained_model()
    first, last = (model.get_parameter(f"backbone.blocks.{n}.attn.relative_position_bias_table") for n in (0, 3))
    assert first.shape == (7 * 7 + 3, 2)
    assert not torch.equal(first, last)
    assert SegmentationTraining(frozen, train, Segment(**{**SMALL, "steps": 2}), tmp_path / "out").first_step == 2


def test_bf16_ends_with_the_logits(tmp_path: Path, folder: Path) -> None:
    training = training_in(tmp_path, folder, precision="bf16", dropout=0.0, drop_path=0.0)
    for head in (training.model.decode_head, training.model.auxiliary_head):
        torch.nn.init.normal_(head.classifier[-1].weight, generator=torch.Generator().manual_seed(1))
    images = torch.randint(0, 255, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels = torch.zeros(2, 32, 32, dtype=torch.int16)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        both = training.model.train()(normalise(images))
    assert {logits.dtype for logits in both} == {torch.bfloat16}
    losses = [pixel_loss(logits.float(), labels.long()) for logits in both]
    expected = losses[0] + training.settings.aux_weight * losses[1]
    torch.testing.assert_close(training.step(images, labels, 0, 0.0).loss, expected, rtol=1e-6, atol=0)


def test_r14_a_batch_whose_pixels_are_all_ignored_is_no_step(tmp_path: Path, folder: Path) -> None:
    """R14: weights, and the means of batch norm, stay as they are."""
    training = training_in(tmp_path, folder)
    batch = next(iter(training.batches()))
    before = {name: value.clone() for name, value in training.model.state_dict().items()}
    assert batch.labels is not None
    ignored = replace(batch, labels=torch.full_like(batch.labels, -1))
    assert training.training_step(0, ignored, 1.0) is None
    assert all(torch.equal(value, before[name]) for name, value in training.model.state_dict().items())
    assert training.training_step(0, batch, 1.0) is not None
