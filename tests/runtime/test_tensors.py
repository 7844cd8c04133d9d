from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from mapet.errors import StorageError
from mapet.runtime import tensors
from mapet.runtime.files import atomic_file
from mapet.runtime.tensors import write_tensors


def test_tensors_come_back_as_they_were(tmp_path: Path) -> None:
    weight = torch.arange(6.0).view(2, 3)
    given = {"a": weight, "same": weight, "turned": weight.T, "empty": torch.zeros(0, 2), "grad": weight.clone().requires_grad_()}
    write_tensors(tmp_path / "file", given, {"step": "3"})
    back = load_file(tmp_path / "file")
    assert back.keys() == given.keys()
    assert all(torch.equal(back[name], value) for name, value in given.items())
    with safe_open(tmp_path / "file", "pt") as file:
        assert file.metadata() == {"step": "3"}


def test_f10_a_full_disk_ends_in_words(tmp_path: Path, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(tensors, "save_file", full)
    with pytest.raises(StorageError, match=r"Cannot write .*No space left on device.*MiB are free"):
        with atomic_file(tmp_path / "file") as partial:
            write_tensors(partial, {"a": torch.zeros(1)})
    assert not [*tmp_path.iterdir()]
