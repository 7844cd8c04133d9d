from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from mapet.data.loader import ViewRenderer, make_loader
from mapet.data.order import BatchItem
from mapet.data.skipped import UnreadableImages
from mapet.data.views import AugmentedView, EvaluationView, FixedView
from mapet.errors import SettingsError, UnreadableImageError
from mapet.evaluation.frozen_backbone import FrozenBackbone
from mapet.evaluation.presets import protocol_of
from mapet.evaluation.probes.images import AugmentedImages, order_of
from mapet.evaluation.probes.linear import LinearProbe
from mapet.evaluation.probes.linear_fit import Normaliser
from mapet.evaluation.probes.representations import describe_all, evaluation_view, every_layer, last_layer
from mapet.evaluation.validation_split import hold_out_rows
from tests.evaluation.planted import tiny_frozen
from tests.tiny import LOCATION, TinyImages

BEIT = LinearProbe(
    layers="every",
    pool="both",
    augment=True,
    normalise="none",
    crop_fraction=0.875,
    init_std=0.01,
    epochs=2,
    min_steps=1,
    batch_size=16,
    lr=0.05,
)


def test_batches_are_new_crops_of_the_right_images_in_every_epoch() -> None:
    frozen = tiny_frozen()
    images = AugmentedImages(frozen, every_layer(frozen, "both"), FixedView(16), 0.25, seed=7)
    assert images.validation_split is not None
    assert int(images.validation_split.sum()) == 10
    found = list(images.batches(16, 2, seed=7))
    steps = list(order_of(40, 16, 7, 2))
    assert len(found) == len(steps) == 4
    for number, (features, labels, learned) in enumerate(found):
        renderer = ViewRenderer(AugmentedView(16), seed=7)
        (loaded,) = make_loader(frozen.train, renderer, [BatchItem(steps[number], (number // 2,))])
        assert torch.equal(features, every_layer(frozen, "both")(loaded.images))
        assert torch.equal(labels, torch.from_numpy(frozen.train.labels[steps[number]]))  # type: ignore[index]
        assert torch.equal(learned, ~images.validation_split[steps[number]])  # type: ignore[arg-type]


def test_held_out_images_are_seen_without_augmentation() -> None:
    frozen = tiny_frozen()
    images = AugmentedImages(frozen, last_layer(frozen, "mean"), EvaluationView(16, 0.875), 0.25, seed=7)
    assert frozen.train.labels is not None
    rows = hold_out_rows(torch.from_numpy(frozen.train.labels), 0.25, seed=7)
    features, labels = images.validation_part()
    expected = frozen.extract(frozen.train, EvaluationView(16, 0.875), "all")
    assert labels.tolist() == frozen.train.labels[rows.numpy()].tolist()
    torch.testing.assert_close(features[:, 0], expected.mean[rows])


def test_the_layer_is_chosen_on_held_out_images_and_every_layer_is_reported() -> None:
    frozen = tiny_frozen()
    found = BEIT.evaluate(frozen)
    candidates = found.details["candidates"]
    assert [entry["block"] for entry in candidates] == [1, 2]
    best = max(entry["held_out_top1"] for entry in candidates)
    chosen = next(entry for entry in candidates if entry["block"] == found.details["chosen"]["block"])
    assert chosen["held_out_top1"] == best
    assert found.values["top1"] == chosen["test_top1"]


def test_batch_norm_and_lars_learn_from_crops() -> None:
    cae = protocol_of("linear:cae", {"epochs": 40, "warmup_epochs": 4, "batch_size": 20})
    assert isinstance(cae, LinearProbe)
    frozen = tiny_frozen()
    fitted, shares = cae.fit(frozen)
    assert shares is None
    assert isinstance(fitted.normaliser, Normaliser)
    assert int(fitted.normaliser.num_batches_tracked) == 80  # type: ignore[arg-type]
    test = frozen.test_features
    right = fitted.scores(test.pooled("cls")[:, None]).argmax(dim=1) == test.labels
    assert right.float().mean() > 0.9, "dark and bright images are told apart by any backbone"


def test_workers_change_nothing() -> None:
    one, other = (BEIT.evaluate(tiny_frozen(workers=workers)) for workers in (0, 1))
    assert one == other


def test_nothing_is_looked_at_in_the_test_images_before_all_is_chosen(monkeypatch) -> None:
    frozen = tiny_frozen()
    frozen.test = None  # type: ignore[assignment]
    monkeypatch.setattr(FrozenBackbone, "num_classes", 2)
    fitted, shares = BEIT.fit(frozen)
    assert shares is not None
    assert shares.shape == (2, 1)
    assert fitted.heads.layers == 2


def test_augmented_features_are_standardised_by_images_without_augmentation() -> None:
    frozen = tiny_frozen()
    probe = LinearProbe(pool="mean", augment=True, epochs=1, min_steps=1, batch_size=16, lr=0.05)
    fitted, _ = probe.fit(frozen)
    features = frozen.train_features.mean
    expected = (features - features.mean(0)) / features.std(0)
    torch.testing.assert_close(fitted.normaliser(features[:, None])[:, 0], expected, rtol=1e-3, atol=1e-4)


def test_cached_layers_are_described_once(monkeypatch) -> None:
    frozen, calls = tiny_frozen(), []
    backbone = frozen.backbone
    whole = backbone.forward_intermediates
    monkeypatch.setattr(backbone, "forward_intermediates", lambda *rest, **kw: (calls.append(len(rest[0])), whole(*rest, **kw))[1])
    found = LinearProbe(layers="every", pool="both", epochs=3, min_steps=1, batch_size=16).evaluate(frozen)
    assert calls == [40, 20]
    assert len(found.details["candidates"]) == 2


def test_views_are_those_of_pre_training_or_smaller_crops() -> None:
    assert isinstance(evaluation_view(16, 1), FixedView)
    assert evaluation_view(224, 0.875).shorter_side == 256  # type: ignore[attr-defined]
    with pytest.raises(SettingsError, match="crop_fraction is 2"):
        evaluation_view(16, 2)


def test_describing_all_images_keeps_their_order() -> None:
    frozen = tiny_frozen()
    features, labels = describe_all(frozen, frozen.test, FixedView(16), last_layer(frozen, "mean"), "test")
    assert labels.tolist() == np.asarray(frozen.test.labels).tolist()
    assert torch.equal(features[:, 0], frozen.test_features.mean)


class FewReadable(TinyImages):
    """A third of the images can be read."""

    def read(self, index: int) -> bytes:
        if index % 3:
            raise UnreadableImageError("the file is empty")
        return super().read(index)


def test_r30_batches_of_one_image_or_none_are_survived() -> None:
    """R30: batch norm has no deviation of one image; R14: a batch of none is no step."""
    frozen = tiny_frozen(unreadable=UnreadableImages(40))
    frozen.train = FewReadable(LOCATION, 40, seed=0)
    probe = LinearProbe(augment=True, normalise="batch_norm", optimizer="lars", epochs=2, min_steps=1, batch_size=2, lr=0.1)
    fitted, _ = probe.fit(frozen)
    assert all(bool(parameter.isfinite().all()) for parameter in fitted.heads.parameters())


def test_r30_one_image_a_batch_is_refused_where_batch_norm_is_asked_for() -> None:
    with pytest.raises(SettingsError, match="batch_norm compares the images of a batch, and batch_size is 1; allowed with it: 2"):
        replace(protocol_of("linear:cae"), batch_size=1)
