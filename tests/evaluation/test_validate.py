from __future__ import annotations

import argparse
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mapet.checkpoints.backbone_folder import save_backbone
from mapet.checkpoints.classifier import PUBLISHED, Classifier, ModelChoice, load_classifier
from mapet.checkpoints.classifier_preprocessing import Preprocessing, ValidationView
from mapet.compat import timm
from mapet.data.sources import open_source
from mapet.data.views import EvaluationView, normalise
from mapet.errors import DataError, FailedRunError, ModelError, SettingsError
from mapet.evaluation.classify.classes import head_numbers, read_class_map
from mapet.evaluation.classify.protocol import Classify, validation_images
from mapet.evaluation.evaluate import evaluate
from mapet.evaluation.protocol import Result
from mapet.models.spec import BackboneSpec
from tests.data.images import random_image, write_images
from tests.golden import load_golden, with_prefix

CPU = torch.device("cpu")
WNIDS = ("n01440764", "n01443537", "n01484850", "n02123045", "n03255030")
TINY = {"embed_dim": 24, "depth": 2, "num_heads": 2, "patch_size": 8, "img_size": 32}


def split_queries(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The names of the release: queries apart from keys and values."""
    split = {}
    for name, value in state.items():
        if ".attn.qkv." in name:
            width = len(value) // 3
            split[name.replace(".qkv.", ".q.")] = value[:width]
            split[name.replace(".qkv.", ".kv.")] = value[width:]
        else:
            split[name] = value
    return split


def publish(path: Path, state: dict[str, torch.Tensor], **entries) -> Path:
    """A file as timm's CheckpointSaver writes it, with the Namespace that a plain safe load refuses."""
    content = {"epoch": 99, "arch": "vit_standard_tiny_patch16_224", "state_dict": state, "optimizer": {"state": {}}, "version": 2}
    torch.save({**content, "args": argparse.Namespace(lr=5e-4), "amp_scaler": {"scale": 1.0}, "metric": 75.5, **entries}, path)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
    return path


def tiny_state(seed: int = 0, classes: int = 5, **options) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    options = {**TINY, "init_values": 0.1, "global_pool": "avg", "num_classes": classes, **options}
    model = timm.create_model("vit_tiny_patch16_224", **options)
    return {name: value + 0.2 * torch.randn_like(value) for name, value in model.state_dict().items()}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return publish(tmp_path / "vit.tar", split_queries(tiny_state()))


def images_of(folder: Path, classes=WNIDS, each: int = 3) -> Path:
    names = " ".join(f"{name}/ILSVRC2012_val_{index:08}.JPEG.png" for name in classes for index in range(each))
    write_images(folder, names)
    return folder


def tiny_choice(**options) -> ModelChoice:
    return ModelChoice(
        "vit_standard_tiny_patch16_224", options={name: TINY[name] for name in TINY if name != "img_size"}, **options
    )


@pytest.mark.parametrize("pool", ["avg", "token"])
def test_logits_of_the_release(pool: str, tmp_path: Path) -> None:
    golden, tensors = load_golden(f"mapet/finetune_tiny_{pool}_a")
    config = golden["config"]
    state = with_prefix(tensors, "state_dict.")
    assert any(name.endswith("attn.kv.weight") for name in state)
    options = {name: config[name] for name in ("embed_dim", "depth", "num_heads", "patch_size")}
    for given in (pool, None):
        choice = ModelChoice("vit_standard_tiny_patch16_224", given, config["num_classes"], None, options)
        classifier = load_classifier(publish(tmp_path / "file.tar", state), choice)
        assert (classifier.classes, classifier.preprocessing.size) == (config["num_classes"], config["img_size"])
        with torch.no_grad():
            logits = classifier.model.double()(tensors["images"].double())
        torch.testing.assert_close(logits, tensors["logits64"], rtol=0, atol=1e-9)


def test_images_are_prepared_as_in_the_release() -> None:
    golden, tensors = load_golden("mapet/preproc_a")
    numbers = [name.removeprefix("image") for name in golden["tensors"] if name.startswith("image")]
    assert numbers
    for number in numbers:
        expected = tensors[f"eval{number}"]
        preprocessing = Preprocessing(expected.shape[-1])
        seen = ValidationView(preprocessing)(Image.fromarray(tensors[f"image{number}"].numpy()))
        assert seen.dtype == torch.uint8
        torch.testing.assert_close(normalise(seen[None], preprocessing.mean, preprocessing.std)[0], expected, rtol=0, atol=1e-6)


def test_the_view_is_that_of_our_own_evaluation_unless_another_filter_is_asked_for() -> None:
    for width, height in ((40, 30), (31, 97)):
        image = random_image(1, width, height)
        ours = EvaluationView(24)(image)
        assert torch.equal(ValidationView(Preprocessing(24))(image), ours)
        seen = [ours, *(ValidationView(Preprocessing(24, interpolation=name))(image) for name in ("bilinear", "lanczos"))]
        seen.append(ValidationView(Preprocessing(24, crop_pct=0.6))(image))
        assert len({view.numpy().tobytes() for view in seen}) == len(seen)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 0}, "0 pixels"),
        ({"crop_pct": 1.5}, "1.5; allowed"),
        ({"interpolation": "nearest"}, "no interpolation 'nearest'"),
        ({"std": (0.2, 0.0, 0.2)}, r"deviation is 0.2 0.0 0.2; allowed: three numbers above 0"),
        ({"std": (0.2, np.nan, 0.2)}, "above 0"),
        ({"mean": (0.2, np.inf, 0.2)}, "mean is 0.2 inf 0.2"),
    ],
)
def test_preprocessing_is_checked(change: dict, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        Preprocessing(**{"size": 24, **change})


def validate(classifier: Classifier, folder: Path, *, workers: int = 0, max_unreadable: int = 0, **settings) -> Result:
    work = {"device": CPU, "workers": workers, "max_unreadable": max_unreadable}
    (result,) = evaluate(classifier, str(folder), [Classify(**settings)], **work)
    return result


def figures(result: Result) -> tuple[float, float]:
    return result.figures["top1"], result.figures["top5"]


def naive_figures(state: dict[str, torch.Tensor], folder: Path, numbers: list[int]) -> tuple[float, float]:
    """Top-1 and top-5, one image after another in float64, by timm's own model."""
    model = timm.create_model(
        "vit_tiny_patch16_224", **TINY, init_values=0.1, global_pool="avg", num_classes=len(state["head.bias"])
    )
    model.load_state_dict(state)
    first, among_five, count = 0, 0, 0
    for number, name in zip(numbers, sorted(path.name for path in folder.iterdir()), strict=True):
        for file in sorted((folder / name).iterdir()):
            pixels = normalise(EvaluationView(32)(Image.open(file).convert("RGB"))[None]).double()
            with torch.no_grad():
                order = model.double().eval()(pixels)[0].argsort(descending=True).tolist()
            first, among_five, count = first + (order[0] == number), among_five + (number in order[:5]), count + 1
    return first / count, among_five / count


def test_a_folder_in_the_layout_of_imagenet(checkpoint: Path, tmp_path: Path) -> None:
    folder = images_of(tmp_path / "imagenet" / "val", each=8)
    (tmp_path / "imagenet" / "train" / "other").mkdir(parents=True)
    expected = naive_figures(tiny_state(), folder, [0, 1, 2, 3, 4])
    assert 0 < expected[0] < 1
    for location in (folder, folder.parent):
        result = validate(load_classifier(checkpoint, tiny_choice()), location, batch_size=7)
        assert figures(result) == expected
        assert (result.test_images, result.classes, result.details["outputs"]) == (40, 5, 5)
    for share, text in ((expected[0], "top-1"), (expected[1], "top-5")):
        assert f"{text} {100 * share:.3f} %" in Classify().line(result)


def test_workers_and_batches_change_nothing(checkpoint: Path, tmp_path: Path) -> None:
    folder, classifier = images_of(tmp_path / "val"), load_classifier(checkpoint, tiny_choice())
    results = [validate(classifier, folder, batch_size=size, workers=workers) for size, workers in ((4, 0), (15, 1))]
    assert results[0].figures == results[1].figures
    assert results[0].protocol_hash == results[1].protocol_hash != Classify(crop_pct=1.0).hash


def test_some_of_imagenets_classes_are_found_by_their_wnids(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = tiny_state(classes=1000)
    known = timm.data.ImageNetInfo("imagenet-1k").label_names()
    numbers = [known.index(name) for name in WNIDS]
    state["head.bias"][numbers] += 9.0
    path = publish(tmp_path / "vit.tar", split_queries(state))
    source = validation_images(str(images_of(tmp_path / "val")))
    result = validate(load_classifier(path, tiny_choice()), tmp_path / "val")
    assert numbers[-1] > 100
    assert result.figures["top5"] == 1
    assert head_numbers(source, 1000).tolist() == numbers
    assert figures(result) == naive_figures(state, tmp_path / "val", numbers)
    assert "5 of ImageNet's 1,000 classes, found by their wnids" in " ".join(capsys.readouterr().err.split())


def test_classes_that_do_not_fit_the_head_are_refused(tmp_path: Path) -> None:
    source = validation_images(str(images_of(tmp_path / "val", classes=("cat", "dog"))))
    for outputs in (1000, 5, 1):
        with pytest.raises(DataError, match=rf"has 2 classes \(cat, dog\), the head has {outputs}.*--class-map FILE"):
            head_numbers(source, outputs)
    assert head_numbers(source, 2).tolist() == [0, 1]
    assert head_numbers(source, 3, ("dog", "horse", "cat")).tolist() == [2, 0]
    with pytest.raises(DataError, match=r"'cat'.* is none of the 3 of the head"):
        head_numbers(source, 3, ("dog", "horse", "cow"))
    with pytest.raises(DataError, match="class map has 3 classes, the head 2"):
        head_numbers(source, 2, ("dog", "horse", "cat"))


def test_a_class_map_is_read_in_both_forms(tmp_path: Path) -> None:
    file = tmp_path / "map.txt"
    file.write_text("n01443537 goldfish, Carassius auratus\nn01440764 tench\n\n")
    assert read_class_map(file) == ("n01443537", "n01440764")
    file.write_text("polar bear\ncat\n")
    assert read_class_map(file) == ("polar bear", "cat")
    file.write_text("n02 1\nn01 0\n")
    assert read_class_map(file) == ("n01", "n02")
    file.write_text("n02 1\nn01 1\n")
    with pytest.raises(DataError, match="numbers its 2 classes otherwise than 0 to 1"):
        read_class_map(file)
    with pytest.raises(DataError, match="no file"):
        read_class_map(tmp_path / "none.txt")


def test_images_without_labels_are_refused(tmp_path: Path) -> None:
    write_images(tmp_path / "imagenet" / "val", "ILSVRC2012_val_1.png ILSVRC2012_val_2.png")
    with pytest.raises(DataError, match="sort them into one folder a class, named by its wnid"):
        validation_images(str(tmp_path / "imagenet"))
    with pytest.raises(DataError, match="no file or folder"):
        validation_images(str(tmp_path / "nowhere"))


def test_other_locations_give_their_held_out_part(tmp_path: Path) -> None:
    assert len(validation_images("digits")) == len(open_source("digits", "test"))
    write_images(tmp_path / "set", "train/a/1.png train/b/2.png train/b/3.png test/a/4.png test/b/5.png")
    assert len(validation_images(str(tmp_path / "set"))) == 2
    assert len(validation_images(str(tmp_path / "set" / "train"))) == 3


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (
            ModelChoice("vit_standard_tiny_patch16_224"),
            r"expected width 192, depth 12, patch 16, .*; found width 24, depth 2, patch 8",
        ),
        (ModelChoice("vit_standard_huge"), "no model 'vit_standard_huge'.*vit_standard_base_patch16_224"),
        (ModelChoice("resnet18"), "no head for 'resnet18'"),
        (ModelChoice(), r"Give --model NAME. It contains 36 tensors: blocks \(28\), .*head \(2\)"),
        (tiny_choice(pool="token"), r"With --gp token, .* has norm.weight .* trained with --gp avg"),
        (tiny_choice(pool="mean"), "no pooling 'mean'"),
        (tiny_choice(classes=1000), "has 5 classes, but --num-classes is 1000"),
        (ModelChoice("vit_tiny_patch16_224", options={"depht": 2}), "timm cannot build 'vit_tiny_patch16_224'"),
    ],
)
def test_what_does_not_fit_is_said_in_words(checkpoint: Path, choice: ModelChoice, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load_classifier(checkpoint, choice)


def test_code_in_a_checkpoint_never_runs(tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    path = publish(tmp_path / "vit.tar", split_queries(tiny_state()), hostile=Hostile())
    with pytest.raises(
        ModelError, match=r"vit\.tar cannot be read as a file of weights: its pickle needs operations that torch does not allow"
    ):
        load_classifier(path, tiny_choice())
    (tmp_path / "file.tar").write_bytes(pickle.dumps(Hostile()))
    with pytest.raises(ModelError, match="cannot be read as a file of weights"):
        load_classifier(tmp_path / "file.tar", tiny_choice())
    assert not (tmp_path / "ran").exists()


def test_the_moving_average_is_judged_where_asked_for(tmp_path: Path, checkpoint: Path) -> None:
    average = tiny_state(seed=1)
    path = publish(tmp_path / "ema.tar", split_queries(tiny_state()), state_dict_ema={f"module.{n}": v for n, v in average.items()})
    for use_ema, expected in ((False, tiny_state()), (True, average)):
        model = load_classifier(path, tiny_choice(), use_ema=use_ema).model
        assert torch.equal(model.state_dict()["head.weight"], expected["head.weight"])
    with pytest.raises(ModelError, match="keeps no moving average"):
        load_classifier(checkpoint, tiny_choice(), use_ema=True)


def test_positions_are_resized_to_another_image_size(checkpoint: Path) -> None:
    classifier = load_classifier(checkpoint, tiny_choice(image_size=48))
    table, original = classifier.model.state_dict()["pos_embed"], tiny_state()["pos_embed"]
    assert (classifier.preprocessing.size, table.shape[1]) == (48, 37)
    resized = torch.nn.functional.interpolate(
        original[:, 1:].reshape(1, 4, 4, 24).permute(0, 3, 1, 2), size=(6, 6), mode="bicubic", antialias=True
    )
    torch.testing.assert_close(table[:, 1:], resized.permute(0, 2, 3, 1).reshape(1, 36, 24))
    assert torch.equal(table[:, :1], original[:, :1])


def test_other_timm_models_are_fed_as_timm_says(tmp_path: Path) -> None:
    model = timm.create_model("resnet10t", num_classes=5)
    path = publish(tmp_path / "resnet.tar", model.state_dict())
    classifier = load_classifier(path, ModelChoice("resnet10t"))
    expected = timm.data.resolve_model_data_config(model)
    assert classifier.preprocessing.crop_pct == expected["crop_pct"] != 0.9
    assert classifier.preprocessing.interpolation == expected["interpolation"]
    published = load_classifier(publish(tmp_path / "vit.tar", split_queries(tiny_state())), tiny_choice()).preprocessing
    assert published == Preprocessing(32)


def test_a_saved_model_is_opened_by_its_folder(tmp_path: Path) -> None:
    options = {**TINY, "num_classes": 5, "global_pool": "avg"}
    spec = BackboneSpec("vit_tiny_patch16_224", options, 32, (0.5,) * 3, (0.2,) * 3, 0, crop_fraction=0.875)
    save_backbone(tmp_path / "model", spec, spec.build())
    classifier = load_classifier(tmp_path / "model")
    assert (classifier.classes, classifier.preprocessing) == (5, Preprocessing(32, 0.875, mean=spec.mean, std=spec.std))
    with pytest.raises(ModelError, match="images of 32 pixels and 5 classes"):
        load_classifier(tmp_path / "model", ModelChoice(classes=10))
    bare = BackboneSpec("vit_tiny_patch16_224", {**TINY, "num_classes": 0}, 32, (0.5,) * 3, (0.2,) * 3, 0)
    save_backbone(tmp_path / "bare", bare, bare.build())
    with pytest.raises(ModelError, match="a backbone without a classifier"):
        load_classifier(tmp_path / "bare")


def test_a_saved_model_knows_which_output_is_which_class(tmp_path: Path) -> None:
    folder = images_of(tmp_path / "val")
    names = sorted(path.name for path in folder.iterdir())
    spec = BackboneSpec("vit_tiny_patch16_224", {**TINY, "num_classes": len(names)}, 32, (0.5,) * 3, (0.2,) * 3, 0)
    save_backbone(tmp_path / "model", spec, spec.build())
    for order in (names, names[::-1]):
        (tmp_path / "classes.json").write_text(json.dumps(order))
        known = load_classifier(tmp_path / "model").names
        assert head_numbers(validation_images(str(folder)), len(names), known).tolist() == [order.index(name) for name in names]


def test_unreadable_images_are_not_counted(checkpoint: Path, tmp_path: Path) -> None:
    folder = images_of(tmp_path / "val")
    (folder / WNIDS[0] / "broken.png").write_bytes(b"no image")
    classifier = load_classifier(checkpoint, tiny_choice())
    with pytest.raises(DataError, match="cannot be read"):
        validate(classifier, folder)
    assert validate(classifier, folder, max_unreadable=1).test_images == 15


def test_scores_that_are_not_numbers_are_refused(tmp_path: Path) -> None:
    state = split_queries(tiny_state())
    state["head.bias"][2] = np.nan
    classifier = load_classifier(publish(tmp_path / "vit.tar", state), tiny_choice())
    with pytest.raises(FailedRunError, match="scores of 15 of 15 images are not numbers"):
        validate(classifier, images_of(tmp_path / "val"))


def test_the_names_of_the_release_are_models_of_timm() -> None:
    assert all(timm.is_model(name) for name in PUBLISHED.values())
