from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from mapet.errors import ModelError, TokenizerError
from mapet.tokenizers.feature_kmeans import FeatureKMeans
from mapet.tokenizers.features.base import create_features
from mapet.tokenizers.fit_settings import preset_settings
from mapet.tokenizers.load import load_tokenizer
from tests.checkpoints.runs import SPEC, save_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return save_run(tmp_path / "run")


def images(count: int = 2, size: int = 32) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def expected(batch: torch.Tensor, layer: int = -1) -> torch.Tensor:
    normalised = (batch - torch.tensor(SPEC.mean).view(3, 1, 1)) / torch.tensor(SPEC.std).view(3, 1, 1)
    maps = SPEC.build().eval().forward_intermediates(normalised, indices=[layer], norm=True, intermediates_only=True)
    return maps[0].permute(0, 2, 3, 1)


@pytest.mark.parametrize("prefix", ["", "run:"])
def test_patch_tokens_of_the_backbone_with_its_own_normalisation(run: Path, prefix: str) -> None:
    extractor = create_features(f"{prefix}{run}", image_size=32, patch_size=8)
    extractor.fit(torch.empty(0), torch.Generator())
    torch.testing.assert_close(extractor(images()), expected(images()))


@pytest.mark.parametrize("layer", [0, -2])
def test_tokens_of_another_layer(run: Path, layer: int) -> None:
    extractor = create_features(str(run), image_size=32, patch_size=8, layer=layer)
    torch.testing.assert_close(extractor(images()), expected(images(), layer))
    with pytest.raises(TokenizerError, match=r"no layer 3. Allowed: 0 to 2"):
        create_features(str(run), image_size=32, patch_size=8, layer=3)


def test_the_run_may_be_deleted_afterwards(run: Path, tmp_path: Path) -> None:
    extractor = create_features(str(run), image_size=32, patch_size=8)
    tokenizer = FeatureKMeans(extractor, torch.randn(7, 24, generator=torch.Generator().manual_seed(1)))
    tokenizer.save(tmp_path / "tokenizer")
    shutil.rmtree(run)
    again = load_tokenizer(tmp_path / "tokenizer")
    assert torch.equal(again.encode(images()), tokenizer.encode(images()))
    assert str(tmp_path) not in (tmp_path / "tokenizer" / "tokenizer.json").read_text()


def test_other_image_sizes_resample_the_positions(run: Path) -> None:
    assert create_features(str(run), image_size=64, patch_size=8)(images(1, 64)).shape == (1, 8, 8, 24)
    with pytest.raises(TokenizerError, match="feature map of 8 x 8, not the 4 x 4"):
        create_features(str(run), image_size=64, patch_size=16)


def test_sizes_follow_the_run(run: Path) -> None:
    settings = preset_settings(None, features=str(run))
    assert (settings.image_size, settings.patch_size) == (32, 8)
    assert preset_settings(None, features=str(run), image_size=64).image_size == 64


def test_folders_that_are_no_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match=r"There is no backbone in .*backbone. It is written when a pre-training ends"):
        create_features(str(tmp_path), image_size=32, patch_size=8)
    with pytest.raises(ModelError, match="There is no backbone"):
        create_features(f"run:{tmp_path / 'none'}", image_size=32, patch_size=8)
    with pytest.raises(TokenizerError, match=r"no features called 'runs/none'.*or the folder of a run"):
        create_features("runs/none", image_size=32, patch_size=8)
    with pytest.raises(TokenizerError, match="need the run"):
        create_features("run", image_size=32, patch_size=8)
    (tmp_path / "test_vit").mkdir()
    monkeypatch.chdir(tmp_path)
    assert create_features("test_vit", image_size=32, patch_size=16, pretrained=False).dim == 64
    with pytest.raises(ModelError, match="no backbone in test_vit"):
        create_features("./test_vit", image_size=32, patch_size=16)
