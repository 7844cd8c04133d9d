"""Evaluation over several processes: their number changes no figure, and a training continues on another number of them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mapet.runtime.run_directory import RunDirectory
from tests.distributed import evaluation_on_ranks as on_ranks
from tests.distributed.ranks import run_ranks
from tests.evaluation.segmentation.pictures import write_folder

MODULE = "tests.distributed.evaluation_on_ranks"
# Batch norm takes these biases away. Their gradients are rounding errors, of which AdamW makes whole steps, and means follow them.
TAKEN_AWAY = r"rescaling\.fpn[12]\.\d\.(bias|running_mean)|.*batch_norm\.running_mean"


def assert_same_weights(alone: Path, together: list[Path]) -> None:
    """Those of one process, within the tolerance, and those of each other, bit for bit."""
    expected, found = load_file(alone), [load_file(path) for path in together]
    for key, value in expected.items():
        tolerance = 2e-3 if re.fullmatch(TAKEN_AWAY, key) else 1e-4
        torch.testing.assert_close(found[0][key], value, rtol=1e-4, atol=tolerance, msg=key)
        assert all(torch.equal(other[key], found[0][key]) for other in found[1:]), key


def assert_same_results(alone: Path, together: Path) -> None:
    """What the first of several processes kept is what one process kept."""
    one, several = on_ranks.kept(alone), on_ranks.kept(together)
    assert several.keys() == one.keys()
    for key, value in one.items():
        assert several[key] == (pytest.approx(value, rel=1e-4, abs=1e-6) if isinstance(value, float) else value), key


@pytest.fixture(scope="module")
def tuned_alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Every variant of fine-tuning in one process: its folder, and the figures."""
    folder = tmp_path_factory.mktemp("tuned")
    return folder, on_ranks.finetune_all(folder)


@pytest.mark.parametrize("world", [2, 3])
def test_fine_tuning_does_not_depend_on_the_number_of_processes(
    tmp_path: Path, tuned_alone: tuple[Path, dict[str, Any]], world: int
) -> None:
    (alone, figures), together = tuned_alone, tmp_path
    found = run_ranks(f"{MODULE}:finetune_all", world, together)
    assert found == [figures] * world
    for name in on_ranks.VARIANTS:
        one, several = losses_of(alone / name), losses_of(together / name)
        assert len(one) == on_ranks.STEPS
        assert several == pytest.approx(one, rel=1e-5), name
        paths = [together / f"{name}-{rank}.safetensors" for rank in range(world)]
        assert_same_weights(alone / f"{name}-0.safetensors", paths)


def losses_of(folder: Path) -> list[float]:
    """Of every step, without the entries about test images."""
    return [entry["loss"] for entry in RunDirectory(folder).read_metrics() if "loss" in entry]


def test_a_fine_tuning_continues_on_another_number_of_processes(tmp_path: Path, tuned_alone: tuple[Path, dict[str, Any]]) -> None:
    """Two processes of which one is killed, then three, then one."""
    with pytest.raises(AssertionError, match="ended with -9"):
        run_ranks(f"{MODULE}:finetune_and_die", 2, tmp_path)
    folder = tmp_path / "everything"
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step-00000008"]
    stopped = run_ranks(f"{MODULE}:finetune_and_stop", 3, tmp_path)
    assert [message.partition(" of")[0] for message in stopped] == ["Stopped after step 14"] * 3
    assert on_ranks.finetune(tmp_path) == ""
    whole = tuned_alone[0] / "everything"
    assert losses_of(folder) == pytest.approx(losses_of(whole), rel=1e-5)
    last = [next(path for path in place.glob("checkpoints/*/model.safetensors")) for place in (whole, folder)]
    assert_same_weights(last[0], last[1:])


def test_results_do_not_depend_on_the_number_of_processes(tmp_path: Path) -> None:
    """Every protocol: figures are equal, and the first process keeps what one process keeps."""
    alone, together = tmp_path / "alone", tmp_path / "together"
    together.mkdir()
    figures = on_ranks.evaluate_all(alone)
    assert run_ranks(f"{MODULE}:evaluate_all", 3, together) == [figures] * 3
    assert_same_results(alone / "out", together / "out")
    names = [{path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} for folder in (alone, together)]
    assert {name for name in names[0] if "tfevents" not in name} == {
        name for name in names[1] if "tfevents" not in name and not name.startswith("rank-")
    }


def test_tokens_that_are_not_kept_are_shared_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mapet.evaluation.probes.attentive.CACHE_BYTES", 0)
    expected = on_ranks.evaluate_uncached(tmp_path)
    assert run_ranks(f"{MODULE}:evaluate_uncached", 3, tmp_path) == [expected] * 3


def test_what_cannot_be_shared_is_refused_in_words_in_all_processes(tmp_path: Path) -> None:
    found = run_ranks(f"{MODULE}:refused", 3, tmp_path)
    assert found == [found[0]] * 3
    small, other, alone, used = found[0]
    assert small.startswith("SettingsError: A batch has 2 images, and 3 processes share it")
    assert other.startswith("SettingsError: The processes differ in the protocol: that of rank 1, 2")
    assert "the protocol 'own' works in one" in alone
    assert used.startswith("InUseError: ")
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and not path.name.startswith("rank-")]


def test_what_one_process_cannot_read_counts_in_all(tmp_path: Path) -> None:
    expected = on_ranks.unreadable(tmp_path)
    found = run_ranks(f"{MODULE}:unreadable", 2, tmp_path)
    assert found == [found[0]] * 2
    assert found[0][1] == expected[1]
    assert all("tiny image 37" in messages[0] for messages in (expected, found[0]))


def test_segmentation_does_not_depend_on_the_number_of_processes(tmp_path: Path) -> None:
    """Alone, on 3 from start to end, and on 2 of which one is killed, then 3, then 1; batches of 5 do not divide."""
    folders = [tmp_path / name for name in ("alone", "together", "changing")]
    for folder in folders:
        write_folder(folder / "pictures", train=11, test=3)
    alone, together, changing = folders
    assert on_ranks.segment(alone) == ""
    assert run_ranks(f"{MODULE}:segment", 3, together) == [""] * 3
    expected = losses_of(alone / "segment")
    assert len(expected) == on_ranks.SEGMENTATION["steps"]
    assert losses_of(together / "segment") == pytest.approx(expected, rel=1e-5)
    whole = alone / "segment-0.safetensors"
    assert_same_weights(whole, [together / f"segment-{rank}.safetensors" for rank in range(3)])
    with pytest.raises(AssertionError, match="ended with -9"):
        run_ranks(f"{MODULE}:segment_and_die", 2, changing)
    stopped = run_ranks(f"{MODULE}:segment_and_stop", 3, changing)
    assert [message.partition(" of")[0] for message in stopped] == ["Stopped after step 9"] * 3
    assert on_ranks.segment(changing) == ""
    assert losses_of(changing / "segment") == pytest.approx(expected, rel=1e-5)
    assert_same_weights(whole, [changing / "segment-0.safetensors"])


def test_every_test_image_is_segmented_once(tmp_path: Path) -> None:
    """Three test images, of which one cannot be read."""
    write_folder(tmp_path / "pictures", train=7, test=3)
    (tmp_path / "pictures" / "images" / "val" / "picture8.png").write_bytes(b"none")
    alone, together = tmp_path / "alone", tmp_path / "together"
    together.mkdir()
    figures = on_ranks.evaluate_segment(alone)
    assert run_ranks(f"{MODULE}:evaluate_segment", 2, together) == [[pytest.approx(each, rel=1e-6) for each in figures]] * 2
    assert_same_results(alone / "out", together / "out")
    names = [sorted(path.name for path in folder.rglob("overlays/*")) for folder in (alone, together)]
    assert names[0] == names[1] == ["picture7.png", "picture9.png"]
