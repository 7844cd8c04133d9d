from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mapet.errors import NotAllowedError, TokenizerError
from mapet.tokenizers.base import Tokenizer
from mapet.tokenizers.feature_kmeans import FeatureKMeans
from mapet.tokenizers.features.base import create_features
from mapet.tokenizers.features.pixels import PixelFeatures
from mapet.tokenizers.load import load_tokenizer
from mapet.tokenizers.random_projection import RandomProjection

SIZE, PATCH, VOCABULARY = 16, 4, 20


def random_images(count: int) -> torch.Tensor:
    return torch.rand(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(9))


def feature_kmeans(name: str, **options) -> FeatureKMeans:
    generator = torch.Generator().manual_seed(0)
    features = create_features(name, image_size=SIZE, patch_size=PATCH, **options)
    features.fit(random_images(40), generator)
    points = features(random_images(10)).flatten(0, 2)
    return FeatureKMeans(features, points[torch.randperm(len(points), generator=generator)[:VOCABULARY]])


@pytest.fixture(scope="module")
def made() -> dict[str, Tokenizer]:
    return {
        "pixels": feature_kmeans("pixels", dim=16),
        "coates": feature_kmeans("coates", num_filters=16),
        "random_projection": RandomProjection(SIZE, PATCH, VOCABULARY, seed=3),
    }


@pytest.fixture(params=["pixels", "coates", "random_projection"])
def tokenizer(request, made) -> Tokenizer:
    return made[request.param]


def test_encode_gives_ids_of_every_patch(tokenizer):
    ids = tokenizer.encode(random_images(30))
    assert ids.shape == (30, *tokenizer.grid_size) == (30, 4, 4)
    assert ids.dtype == torch.int64
    assert int(ids.min()) >= 0
    assert int(ids.max()) < tokenizer.vocab_size == VOCABULARY
    assert len(ids.unique()) > VOCABULARY // 2


def test_ids_do_not_depend_on_the_batch(tokenizer):
    images = random_images(12)
    single = torch.cat([tokenizer.encode(image[None]) for image in images])
    assert torch.equal(tokenizer.encode(images), single)
    assert tokenizer.encode(images[:0]).shape == (0, 4, 4)


def test_ids_do_not_depend_on_autocast(tokenizer):
    images = random_images(12)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(tokenizer.encode(images), tokenizer.encode(images))
        cast = tokenizer.encode(images)
    assert torch.equal(cast, tokenizer.encode(images))


def test_saved_and_loaded(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "tok")
    loaded = load_tokenizer(tmp_path / "tok")
    images = random_images(8)
    assert type(loaded) is type(tokenizer)
    assert loaded.fingerprint == tokenizer.fingerprint
    assert torch.equal(loaded.encode(images), tokenizer.encode(images))
    assert (loaded.vocab_size, loaded.grid_size, loaded.preprocess) == (20, (4, 4), tokenizer.preprocess)
    assert not loaded.training


def test_fit_report_is_kept_but_not_part_of_the_fingerprint(made, tmp_path):
    tokenizer = RandomProjection(SIZE, PATCH, VOCABULARY, seed=3)
    tokenizer.fit_report = {"inertia": 1.5}
    tokenizer.save(tmp_path / "tok")
    assert load_tokenizer(tmp_path / "tok").fit_report == {"inertia": 1.5}
    assert tokenizer.fingerprint == made["random_projection"].fingerprint


def test_fingerprint_tells_every_difference_apart(made, monkeypatch):
    original = made["pixels"]
    nudged = FeatureKMeans(original.features, original.centroids.clone())
    assert nudged.fingerprint == original.fingerprint
    moved = original.centroids.clone()
    moved[0, 0] = torch.nextafter(moved[0, 0], torch.tensor(9.0))
    fingerprints = {original.fingerprint, FeatureKMeans(original.features, moved).fingerprint}
    monkeypatch.setattr(FeatureKMeans, "code_version", 2)
    fingerprints.add(FeatureKMeans(original.features, original.centroids).fingerprint)
    fingerprints |= {RandomProjection(SIZE, PATCH, VOCABULARY, seed=seed).fingerprint for seed in (0, 1)}
    fingerprints.add(RandomProjection(SIZE, PATCH, VOCABULARY + 1, seed=0).fingerprint)
    assert len(fingerprints) == 6


def test_other_code_of_the_features_is_another_tokenizer(made, tmp_path, monkeypatch):
    made["pixels"].save(tmp_path / "tok")
    monkeypatch.setattr(PixelFeatures, "code_version", 2)
    assert FeatureKMeans(made["pixels"].features, made["pixels"].centroids).fingerprint != made["pixels"].fingerprint
    with pytest.raises(TokenizerError, match="this version computes other tokens"):
        load_tokenizer(tmp_path / "tok")


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.rand(2, 3, 8, 8), r"shape \(B, 3, 16, 16\), not \(2, 3, 8, 8\)"),
        (torch.rand(3, 16, 16), r"not \(3, 16, 16\)"),
        (torch.zeros(2, 3, 16, 16, dtype=torch.uint8), "Divide 8-bit images by 255"),
        (torch.rand(2, 3, 16, 16) * 200, "are probably 8-bit images"),
        (torch.rand(2, 3, 16, 16) * 4 - 2, "look ImageNet-normalised"),
        (torch.full((2, 3, 16, 16), float("nan")), "NaN"),
        (torch.full((2, 3, 16, 16), float("inf")), "an unknown scale"),
    ],
)
def test_wrong_images(tokenizer, images, message):
    with pytest.raises(TokenizerError, match=message):
        tokenizer.encode(images)


def edit(folder: Path, **changes) -> None:
    file = folder / "tokenizer.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def cut(folder: Path) -> None:
    file = folder / "weights.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def change_a_weight(folder: Path) -> None:
    file = folder / "weights.safetensors"
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "tokenizer.json").unlink(), "holds no tokenizer.json"),
        (lambda folder: (folder / "tokenizer.json").write_text("{"), "file is damaged"),
        (lambda folder: (folder / "tokenizer.json").write_text("[]"), "holds a list, not an object"),
        (lambda folder: (folder / "weights.safetensors").unlink(), "damaged or incomplete"),
        (cut, "damaged or incomplete"),
        (change_a_weight, "not the one that was saved"),
        (lambda folder: edit(folder, format=0), "format 0.*reads format 1"),
        (lambda folder: edit(folder, kind="vq_gan"), "no tokenizer called 'vq_gan'"),
        (lambda folder: edit(folder, kind="json:JSONDecoder"), "not imported.*add --allow json:JSONDecoder"),
        (lambda folder: edit(folder, settings={}), "damaged or incomplete"),
        (lambda folder: edit(folder, fingerprint="0" * 64), "tokenizer.json says 000000000000"),
    ],
)
def test_damaged_folders(made, tmp_path, damage, message):
    made["pixels"].save(tmp_path / "tok")
    damage(tmp_path / "tok")
    with pytest.raises((TokenizerError, NotAllowedError), match=message):
        load_tokenizer(tmp_path / "tok")


def test_no_folder(tmp_path):
    with pytest.raises(TokenizerError, match=r"no tokenizer at .*nowhere.*mapet tokenizer fit"):
        load_tokenizer(tmp_path / "nowhere")


def test_save_replaces_a_tokenizer_but_nothing_else(made, tmp_path):
    made["pixels"].save(tmp_path / "tok")
    made["coates"].save(tmp_path / "tok")
    assert load_tokenizer(tmp_path / "tok").fingerprint == made["coates"].fingerprint
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    (photographs / "holiday.jpg").write_bytes(b"precious")
    with pytest.raises(TokenizerError, match="is not a tokenizer; it is left alone"):
        made["pixels"].save(photographs)
    assert (photographs / "holiday.jpg").read_bytes() == b"precious"


def test_random_projection_needs_no_weights_and_depends_on_its_seed(tmp_path):
    first, other = RandomProjection(SIZE, PATCH, VOCABULARY, seed=0), RandomProjection(SIZE, PATCH, VOCABULARY, seed=1)
    first.save(tmp_path / "tok")
    assert sorted(file.name for file in (tmp_path / "tok").iterdir()) == ["tokenizer.json"]
    images = random_images(10)
    assert not torch.equal(first.encode(images), other.encode(images))
    with pytest.raises(TokenizerError, match="multiple of patch size 5"):
        RandomProjection(SIZE, 5, VOCABULARY)


def test_a_codebook_of_another_dimension_is_refused(made, tmp_path):
    tokenizer = made["pixels"]
    with pytest.raises(TokenizerError, match=r"codebook of shape \(20, 5\) does not fit these features, which have 16 values"):
        FeatureKMeans(tokenizer.features, torch.zeros(20, 5))
    tokenizer.save(tmp_path / "tok")
    weights = load_file(tmp_path / "tok" / "weights.safetensors")
    save_file(weights | {"centroids": torch.zeros(20, 5)}, tmp_path / "tok" / "weights.safetensors")
    with pytest.raises(TokenizerError, match=r"damaged or incomplete"):
        load_tokenizer(tmp_path / "tok")
