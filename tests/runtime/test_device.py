from __future__ import annotations

import pytest
import torch

from mapet.errors import SettingsError
from mapet.runtime.device import autocast, choose_device


def test_the_cpu_is_always_there() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    expected = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    assert choose_device("auto").type == expected


@pytest.mark.parametrize("name", ["cuda:99", "gpu", "", "meta", "hpu", "privateuseone", "cuda:x", "cpu:-2", "xla"])
def test_other_devices_are_refused_in_words(name: str) -> None:
    with pytest.raises(SettingsError, match=f"'{name}'.*Allowed: auto, cpu, cuda, cuda:N, mps"):
        choose_device(name)


def test_autocast_is_for_bf16_only() -> None:
    left = torch.ones(2, 2)
    with autocast(torch.device("cpu"), "bf16"):
        assert (left @ left).dtype == torch.bfloat16
    with autocast(torch.device("cpu"), "fp32"):
        assert (left @ left).dtype == torch.float32
