from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from mapet.checkpoints.address import load_backbone
from mapet.checkpoints.backbone_folder import read_backbone
from mapet.data.folder import FolderImages
from mapet.data.skipped import UnreadableImages
from mapet.data.sources import open_source
from mapet.errors import DataError, MapetError, ModelError, SettingsError
from mapet.evaluation import protocol as module
from mapet.evaluation.classes import check_same_classes
from mapet.evaluation.evaluate import evaluate
from mapet.evaluation.frozen_backbone import FrozenBackbone
from mapet.evaluation.presets import protocol_of
from mapet.evaluation.probes.knn import KNN
from mapet.evaluation.probes.linear import LinearProbe
from mapet.models.spec import BackboneSpec
from mapet.pretraining.training import PreTraining
from mapet.runtime.run_directory import RunDirectory
from tests.data.images import write_images
from tests.tiny import LOCATION, TinyImages, assert_equal_weights, open_tiny, tiny_settings, tiny_store, weights_of

CPU = torch.device("cpu")
QUICK = LinearProbe(epochs=2, min_steps=3, batch_size=16)


def make_frozen(spec: BackboneSpec, backbone=None, **options) -> FrozenBackbone:
    backbone = spec.build() if backbone is None else backbone
    sources = [open_source(LOCATION, split) for split in ("train", "test")]
    options = {"device": CPU, "workers": 0, "unreadable": UnreadableImages(), **options}
    return FrozenBackbone("tiny", backbone, spec, *sources, **options)


def test_results_are_kept_in_the_run_directory(run: RunDirectory) -> None:
    protocols = [KNN(), QUICK, KNN(pool="mean")]
    results = evaluate(run, None, protocols, device=CPU)
    assert [result.data for result in results] == [LOCATION] * 3
    for protocol, result in zip(protocols, results, strict=True):
        assert json.loads((run.evaluations / f"{protocol.stem(LOCATION)}.json").read_text()) == dataclasses.asdict(result)
        assert (result.classes, result.train_images, result.test_images) == (2, 40, 20)
        assert 0 <= result.random_value <= 1
    assert results[0].value > 0.9, "dark and bright images are told apart by any backbone"


def test_the_random_backbone_is_the_one_that_the_run_began_with(run: RunDirectory, tmp_path: Path, monkeypatch) -> None:
    began_with, compared_with = {}, {}
    monkeypatch.setattr(PreTraining, "run", lambda self: began_with.update(weights_of(self.objective.backbone)))
    from mapet.pretraining.pretrain import pretrain

    store = tiny_store(tmp_path / "tokens")
    pretrain(LOCATION, tiny_settings(training__steps=4), tmp_path / "run", tokens=store.path)

    class Remembering(FrozenBackbone):
        def __init__(self, title: str, backbone, *arguments, **options) -> None:
            compared_with[title] = weights_of(backbone)
            super().__init__(title, backbone, *arguments, **options)

    monkeypatch.setattr(module, "FrozenBackbone", Remembering)
    evaluate(run, None, [KNN()], device=CPU)
    assert_equal_weights(compared_with["random"], began_with)
    trained, _ = read_backbone(run.backbone)
    assert_equal_weights(compared_with["pre-trained"], weights_of(trained))
    assert not torch.equal(compared_with["random"]["pos_embed"], compared_with["pre-trained"]["pos_embed"])


def test_features_are_the_mean_of_the_patches_and_the_class_token(run: RunDirectory) -> None:
    backbone, spec = read_backbone(run.backbone)
    frozen = make_frozen(spec, backbone)
    image = torch.from_numpy(np.frombuffer(frozen.test.read(7)[-768:], np.uint8).reshape(1, 16, 16, 3).copy()).permute(0, 3, 1, 2)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (spec.mean, spec.std))
    with torch.no_grad():
        tokens = backbone.forward_features((image / 255 - mean) / std)
    torch.testing.assert_close(frozen.test_features.cls[7], tokens[0, 0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(frozen.test_features.mean[7], tokens[0, 1:].mean(dim=0), rtol=1e-4, atol=1e-5)
    both = frozen.test_features.pooled("both")
    assert torch.equal(both, torch.cat([frozen.test_features.cls, frozen.test_features.mean], dim=1))
    assert frozen.test_features.labels.tolist() == [index % 2 for index in range(20)]


def test_workers_change_nothing(run: RunDirectory) -> None:
    backbone, spec = read_backbone(run.backbone)
    one, other = (make_frozen(spec, backbone, workers=workers).test_features for workers in (0, 1))
    assert torch.equal(one.mean, other.mean)


def test_the_paper_preset_learns_from_augmented_images(run: RunDirectory) -> None:
    backbone, spec = read_backbone(run.backbone)
    frozen = make_frozen(spec, backbone)
    seen = []
    frozen.features, extract = lambda images: (seen.append(images.clone()), extract(images))[1], frozen.features
    paper = LinearProbe(augment=True, normalise="none", epochs=2, min_steps=1, batch_size=16, lr=0.05)
    assert 0 <= paper.evaluate(frozen).values["top1"] <= 1
    assert [len(images) for images in seen] == [16, 16, 16, 16, 20], "two epochs of two steps, then the test images"
    assert len({float(images.float().sum()) for images in seen}) == 5
    assert paper.hash != dataclasses.replace(paper, augment=False).hash


def test_a_backbone_without_class_token_has_only_the_mean(run: RunDirectory, tmp_path: Path, capsys) -> None:
    _, spec = read_backbone(run.backbone)
    spec = dataclasses.replace(spec, options=spec.options | {"class_token": False, "global_pool": "avg"})
    frozen = make_frozen(spec)
    assert KNN().evaluate(frozen) == KNN(pool="mean").evaluate(frozen)
    with pytest.raises(SettingsError, match=r"no class token, so that pooling 'cls' is impossible\. Use 'mean' or 'both'"):
        KNN(pool="cls").evaluate(frozen)
    target = dataclasses.replace(load_backbone(run.path), backbone=spec.build(), spec=spec, run=None, title="headless")
    (result,) = evaluate(target, LOCATION, [KNN()], device=CPU, folder=tmp_path)
    assert (result.pool, result.protocol["pool"], result.protocol_hash) == ("mean", "both", KNN().hash)
    assert "knn (mean)" in result.line()
    assert "This backbone has no class token: pool 'both' is the mean of the patches." in capsys.readouterr().err


def test_both_splits_come_from_one_pass(run: RunDirectory, tmp_path: Path, monkeypatch, capsys) -> None:
    write_images(tmp_path / "images", " ".join(f"{('cat', 'dog')[n % 2]}/{n}.png" for n in range(60)))
    reads, read = [], FolderImages.read
    monkeypatch.setattr(FolderImages, "read", lambda images, index: (reads.append(index), read(images, index))[1])
    (result,) = evaluate(run, str(tmp_path / "images"), [KNN()], device=CPU)
    assert sorted(reads) == sorted(3 * [*range(60)]), "for its key, and for the features of two backbones"
    said = capsys.readouterr().err
    assert said.count(f"Holding out {result.test_images} of 60 images by content") == said.count("Holding out") == 1


def test_what_cannot_be_read_is_neither_learned_from_nor_counted(run: RunDirectory, tmp_path: Path) -> None:
    write_images(
        tmp_path / "whole", " ".join(f"{part}/{('cat', 'dog')[n % 2]}/{n}.png" for part in ("train", "val") for n in range(10))
    )
    shutil.copytree(tmp_path / "whole", tmp_path / "damaged")
    for broken in ("train/cat/0.png", "train/dog/3.png", "val/dog/1.png"):
        (tmp_path / "damaged" / broken).write_bytes(b"no image")
        (tmp_path / "whole" / broken).unlink()
    damaged, whole = (
        evaluate(run, str(tmp_path / name), [KNN(), QUICK], device=CPU, max_unreadable=3) for name in ("damaged", "whole")
    )
    for result, expected in zip(damaged, whole, strict=True):
        assert (result.train_images, result.test_images) == (8, 9)
        assert (result.figures, result.random_figures) == (expected.figures, expected.random_figures)


def test_a_test_part_that_cannot_be_read_is_refused(run: RunDirectory, tmp_path: Path) -> None:
    write_images(tmp_path, " ".join(f"{part}/{kind}/{n}.png" for part in ("train", "val") for kind in ("cat", "dog") for n in "12"))
    for path in tmp_path.glob("val/*/*.png"):
        path.write_bytes(b"no image")
    with pytest.raises(DataError, match="No test image could be read"):
        evaluate(run, str(tmp_path), [KNN()], device=CPU, max_unreadable=4)


def test_a_folder_without_labels_is_refused(run: RunDirectory, tmp_path: Path) -> None:
    write_images(tmp_path / "images", " ".join(f"{n}.png" for n in range(10)))
    with pytest.raises(DataError, match="has no labels and no held-out part of its own"):
        evaluate(run, str(tmp_path / "images"), [KNN()], device=CPU)


def without_labels(location: str, split: str) -> TinyImages:
    source = open_tiny(location, split)
    source.labels = None
    return source


def one_class(location: str, split: str) -> TinyImages:
    source = open_tiny(location, split)
    source.labels = np.zeros(len(source), np.int64)
    return source


def unknown_labels(location: str, split: str) -> TinyImages:
    source = open_tiny(location, split)
    if split == "test":
        source.labels = source.labels - 1
    return source


@pytest.mark.parametrize(
    ("source", "message"), [("without_labels", "has no labels"), ("one_class", "has one class"), ("unknown_labels", "the label -1")]
)
def test_images_that_cannot_be_judged_are_refused(run: RunDirectory, source: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        evaluate(run, f"{__name__}:{source}", [KNN()], device=CPU)


def test_a_run_that_has_not_ended_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="There is no backbone in"):
        evaluate(RunDirectory(tmp_path), LOCATION, [KNN()], device=CPU)


@pytest.mark.parametrize(
    ("file", "damage"), [("model.json", "half"), ("weights.safetensors", "half"), ("weights.safetensors", "byte")]
)
def test_a_damaged_backbone_is_refused(run: RunDirectory, tmp_path: Path, file: str, damage: str) -> None:
    for path in run.backbone.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    content = bytearray((tmp_path / file).read_bytes())
    if damage == "half":
        content = content[: len(content) // 2]
    else:
        content[len(content) // 2] ^= 1
    (tmp_path / file).write_bytes(content)
    with pytest.raises(MapetError, match=r"damaged|not what was written"):
        read_backbone(tmp_path)


def test_results_of_another_backbone_are_not_written_over(run: RunDirectory, tmp_path: Path) -> None:
    target = load_backbone(run.path)
    evaluate(target, None, [KNN()], device=CPU, folder=tmp_path, with_random=False)
    evaluate(target, None, [KNN()], device=CPU, folder=tmp_path, with_random=False)
    (kept,) = tmp_path.glob("knn-*.json")
    before = kept.read_text()
    with pytest.raises(SettingsError, match=r"is the result of .*, not of another"):
        evaluate(dataclasses.replace(target, title="another"), None, [KNN()], device=CPU, folder=tmp_path, with_random=False)
    assert kept.read_text() == before


def test_a_place_for_results_is_asked_for_before_any_work(run: RunDirectory, tmp_path: Path) -> None:
    nowhere = dataclasses.replace(load_backbone(run.path), run=None, title="random:vit")
    with pytest.raises(SettingsError, match="finetune:short trains a model of its own, and random:vit is no run directory"):
        evaluate(nowhere, LOCATION, [protocol_of("finetune")], device=CPU)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(SettingsError, match="is a file, and results are kept in a folder"):
        evaluate(nowhere, LOCATION, [KNN()], device=CPU, folder=tmp_path / "file")


def test_lists_of_training_and_test_images_number_classes_alike(tmp_path: Path) -> None:
    write_images(tmp_path, "a.png b.png c.png")
    (tmp_path / "train.csv").write_text("path,label\na.png,ant\nb.png,bee\nc.png,cat\n")
    (tmp_path / "test.csv").write_text("path,label\nb.png,bee\nc.png,cat\n")
    train, test = KNN().open_data(str(tmp_path / "{train,test}.csv"))
    assert train.classes == test.classes == ("ant", "bee", "cat")
    assert test.labels.tolist() == [1, 2]


def test_lists_of_other_classes_are_refused() -> None:
    train, test = (open_source(LOCATION, split) for split in ("train", "test"))
    train.classes, test.classes = ("dark", "bright"), ("bright", "dark")
    with pytest.raises(DataError, match=r"different lists of classes .* in another order"):
        check_same_classes(train, test)


def test_images_with_masks_are_for_another_command(run: RunDirectory, tmp_path: Path) -> None:
    write_images(tmp_path / "data", " ".join(f"{part}/{n}.png" for part in ("images", "annotations") for n in range(20)))
    with pytest.raises(
        DataError, match=r"images with masks, not classes\. Use `mapet evaluate segment` for it, give images/ alone"
    ):
        evaluate(run, str(tmp_path / "data"), [KNN()], device=CPU)
