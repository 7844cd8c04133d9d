import pytest


@pytest.fixture(autouse=True)
def cache_of_datasets(tmp_path, monkeypatch):
    """Keeps what Hugging Face `datasets` unpacks out of the home folder."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
