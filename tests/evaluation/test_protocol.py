from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from mapet.errors import SettingsError
from mapet.evaluation.frozen_backbone import FrozenBackbone
from mapet.evaluation.presets import PROTOCOLS, preset_source, presets_of, protocol_of, protocols_of, setting_names
from mapet.evaluation.probes.knn import KNN
from mapet.evaluation.probes.linear import LinearProbe
from mapet.evaluation.protocol import Metrics, Protocol, Result

OTHER = {"both": "cls", "last": "every", "standardise": "none", "adamw": "lars", "step": "epoch", "held_out": "test"}
SETTINGS = [(kind, name) for kind in (KNN, LinearProbe) for name in setting_names(kind)]


def other(value: Any) -> Any:
    return OTHER[value] if isinstance(value, str) else value + 1


@pytest.mark.parametrize(("kind", "name"), SETTINGS)
def test_the_hash_changes_with_every_setting(kind: type[Protocol], name: str) -> None:
    changed = dataclasses.replace(kind(), **{name: other(getattr(kind(), name))})
    assert changed.hash != kind().hash
    assert changed.describe()[name] == getattr(changed, name)


def test_the_hash_is_that_of_the_settings_and_nothing_else() -> None:
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Reordered(Protocol):
        name = "knn"
        temperature: float = 0.07
        neighbours: int = 20

        def evaluate(self, frozen: FrozenBackbone) -> Metrics:
            return Metrics({"top1": 0.0})

    assert [field.name for field in dataclasses.fields(Reordered)] != [field.name for field in dataclasses.fields(KNN)]
    assert Reordered().hash == KNN().hash == KNN(neighbours=20).hash
    assert KNN().hash != LinearProbe().hash


def test_a_new_version_is_another_protocol(monkeypatch) -> None:
    before = KNN().hash
    monkeypatch.setattr(KNN, "version", 2)
    assert KNN().hash != before


def test_values_that_are_not_allowed_are_refused_at_once() -> None:
    with pytest.raises(SettingsError, match=r"no pooling 'median'.*Allowed: both, cls, mean"):
        KNN(pool="median")


def test_a_preset_is_only_a_name() -> None:
    assert protocol_of("linear") == protocol_of("linear:cached") == LinearProbe()
    assert protocol_of("linear:cached").title == "linear:cached"
    assert (
        protocol_of("linear:paper").hash
        == LinearProbe(pool="mean", augment=True, normalise="none", crop_fraction=0.9, min_steps=1).hash
        != LinearProbe().hash
    )


def test_every_preset_is_a_protocol_of_its_own() -> None:
    titles = [f"{name}:{preset}" for name in PROTOCOLS for preset in presets_of(name)]
    assert len({protocol_of(title).hash for title in titles}) == len(titles)


def test_settings_go_to_the_protocols_that_have_them() -> None:
    knn, linear = protocols_of(["knn", "linear", "knn:dino", "knn"], {"neighbours": 5, "pool": "cls", "lr": 1e-2})
    assert (knn, linear) == (KNN(neighbours=5, pool="cls"), LinearProbe(pool="cls", lr=1e-2))


@pytest.mark.parametrize(
    ("titles", "overrides", "words"),
    [
        (["knm"], {}, r"no protocol called 'knm'.*Did you mean 'knn'"),
        (["linear:papr"], {}, r"'linear' has no preset 'papr'.*Did you mean 'paper'"),
        (["knn"], {"lr": 1.0}, r"The protocol 'knn' has no setting 'lr'"),
        (["linear"], {"epoch": 5}, r"Did you mean 'epochs'"),
        (["linear"], {"epochs": "many"}, r"linear: epochs = 'many'"),
    ],
)
def test_wrong_names_and_values_are_refused_in_words(titles: list[str], overrides: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        protocols_of(titles, overrides)


def result(protocol: Protocol, data: str = "digits", **others: Any) -> Result:
    values: dict[str, Any] = {"classes": 10, "train_images": 100, "test_images": 50, "seconds": 3.0}
    values |= {"figures": {"top1": 0.5}, "random_figures": {"top1": 0.25}, "preset": protocol.preset}
    return Result(protocol=protocol.describe(), protocol_hash=protocol.hash, data=data, **(values | others))


def test_every_protocol_and_data_set_has_a_file_of_its_own() -> None:
    stems = [KNN().stem("digits"), KNN(pool="cls").stem("digits"), KNN(neighbours=5).stem("digits"), KNN().stem("other")]
    assert len({*stems, LinearProbe().stem("digits")}) == len(stems) + 1


def test_the_line_stands_next_to_random_initialisation() -> None:
    line = result(protocol_of("linear")).line()
    assert "linear (cached, both)" in line
    assert "50.0 %" in line
    assert "random initialisation  25.0 %" in line
    assert "+25.0" in line
    assert LinearProbe().hash in line


def test_a_figure_without_random_initialisation_stands_alone() -> None:
    alone = result(KNN(), random_figures=None, metric="mean_per_class", figures={"top1": 0.5, "mean_per_class": 0.4})
    assert (alone.value, alone.random_value) == (0.4, None)
    assert "mean per class  40.0 %" in alone.line()
    assert "random" not in alone.line()


def test_what_was_changed_stands_beside_the_name_of_the_preset() -> None:
    assert protocol_of("linear:paper", {"epochs": 2, "lr": (1e-3, 1e-2)}).title == "linear:paper, epochs=2, lr=[0.001,0.01]"
    assert protocol_of("linear:paper", {"epochs": 50, "pool": "both"}).title == "linear:paper"
    many = protocol_of("linear", {"epochs": 2, "lr": 1.0, "seed": 3, "batch_size": 7})
    assert many.preset == "cached, epochs=2, lr=1, seed=3, ..."
    assert many == dataclasses.replace(protocol_of("linear"), epochs=2, lr=1.0, seed=3, batch_size=7)


@pytest.mark.parametrize(
    ("title", "given", "followed"),
    [
        ("finetune", {"epochs": 1}, {"warmup_epochs": 0.1}),
        ("finetune", {"epochs": 2}, {"warmup_epochs": 1}),
        ("finetune:base", {"epochs": 10, "warmup_epochs": 5}, {"warmup_epochs": 5}),
        ("finetune:base", {"epochs": 10}, {"warmup_epochs": 1.0}),
        ("segment", {"crop": 128}, {"stride": 85, "scale": (512, 128)}),
        ("segment", {"crop": 128, "stride": 64}, {"stride": 64, "scale": (512, 128)}),
        ("segment:base", {"crop": 640}, {"stride": 426, "scale": (2560, 640)}),
        ("segment", {"steps": 20}, {"warmup_steps": 2}),
        ("segment", {"steps": 100}, {"warmup_steps": 30}),
    ],
)
def test_settings_follow_those_that_are_given(title: str, given: dict, followed: dict) -> None:
    protocol = protocol_of(title, given)
    assert {name: getattr(protocol, name) for name in followed} == followed


@pytest.mark.parametrize("title", ["logistic", "fewshot", "linear"])
def test_an_empty_list_of_candidates_is_refused(title: str) -> None:
    with pytest.raises(SettingsError, match="empty list"):
        protocol_of(title, {"lr" if title == "linear" else "l2": ()})


def test_every_preset_says_where_its_settings_come_from() -> None:
    assert preset_source("linear", "paper").startswith("# As published: MaPeT, linear probe (50 epochs")
    assert "MaPeT, Table 9" in preset_source("finetune", "tiny")
    wanting = [f"{name}:{preset}" for name in PROTOCOLS for preset in presets_of(name) if not preset_source(name, preset)]
    assert wanting == []


@pytest.mark.parametrize("title", ["linear", "attentive"])
def test_a_warm_up_that_does_not_end_is_stated(title: str) -> None:
    short = {"epochs": 2, "min_steps": 1, "batch_size": 10}
    assert "The warm-up of 3 epochs does not end within 2 epochs" in protocol_of(title, {**short, "warmup_epochs": 3}).note(100)
    assert not protocol_of(title, {**short, "warmup_epochs": 1}).note(100)
    assert "warm-up" not in protocol_of(title, {**short, "min_steps": 40, "warmup_epochs": 3}).note(100)


@pytest.mark.parametrize("weight", [True, "2", None])
def test_settings_of_a_protocol_are_of_their_types(weight: object) -> None:
    with pytest.raises(SettingsError, match=r"knn: temperature = .* is not allowed. Allowed: a number.* The default is 0.07"):
        protocol_of("knn", {"temperature": weight})
