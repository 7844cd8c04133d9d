from __future__ import annotations

import pytest
import torch

from mapet.token_store.read import TokenStore
from tests.training.tiny import tiny_store


@pytest.fixture(scope="session")
def store(tmp_path_factory) -> TokenStore:
    return tiny_store(tmp_path_factory.mktemp("tiny") / "store")


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
