"""DALL-E's encoder: the reference's logits and ids, the published names and shapes, and files of every form they come in."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mapet.errors import TokenizerError
from mapet.tokenizers.dall_e import HUB_NAME, DallE, hugging_face_name
from mapet.tokenizers.load import load_tokenizer
from mapet.tokenizers.released import tokenizer_from_file
from mapet.tokenizers.vq_kd.tokenizer import VQKD
from tests.golden import GOLDENS, load_golden, with_prefix


@pytest.fixture(scope="module")
def golden() -> tuple[dict, dict[str, Tensor]]:
    return load_golden("mim/dalle_tiny_a")


@pytest.fixture(scope="module")
def published(golden) -> dict[str, Tensor]:
    return with_prefix(golden[1], "sd.")


def test_logits_and_ids_of_the_reference(golden, published):
    config, tensors = golden[0]["config"], golden[1]
    tokenizer = DallE.from_released(published, config["img_size"])
    images = tensors["in.images_0_1"]
    torch.testing.assert_close(tokenizer.logits(images), tensors["out.logits"], atol=1e-4, rtol=0)
    ids = tokenizer.encode(images)
    assert torch.equal(ids, tensors["out.token_ids"])
    assert ids.dtype == torch.int64
    side = config["img_size"] // 2 ** (config["group_count"] - 1)
    assert ids.shape[1:] == tokenizer.grid_size == (side, side)
    assert len(ids.unique()) == golden[0]["distinct_tokens"]
    assert tokenizer.settings() == {
        "hidden_size": config["n_hid"],
        "blocks_per_group": config["n_blk_per_group"],
        "vocab_size": config["vocab_size"],
        "image_size": config["img_size"],
    }


def test_names_are_those_of_hugging_face(golden):
    renamed = golden[0]["rename_to_hf"]
    assert {name: hugging_face_name(name) for name in renamed} == renamed
    assert {name: hugging_face_name(name) for name in renamed.values()} == {name: name for name in renamed.values()}


def test_the_full_size_has_the_published_names_and_shapes(monkeypatch):
    """Compared without allocating its 54 million weights."""
    description = json.loads((GOLDENS / "mim" / "published_shapes_dalle.json").read_text())["published_dalle_encoder"]
    monkeypatch.setattr(nn.Module, "to_empty", lambda module, device: module)
    tokenizer = DallE()
    shapes = {name: list(value.shape) for name, value in tokenizer.encoder.state_dict().items()}
    assert shapes == {hugging_face_name(name): shape for name, shape in description["keys"].items()}
    assert sum(parameter.numel() for parameter in tokenizer.parameters()) == description["n_params"]
    assert (tokenizer.vocab_size, tokenizer.grid_size) == (description["config"]["vocab_size"], (14, 14))
    assert tokenizer.image_size == 14 * 2 ** (description["config"]["group_count"] - 1)
    assert tokenizer.preprocess == {"image_size": 112, "resize": "lanczos", "color": "RGB", "range": [0.0, 1.0]}


def test_two_blocks_a_group_are_found_from_the_shapes():
    small = DallE(hidden_size=4, blocks_per_group=2, vocab_size=11, image_size=16)
    weights = {name: torch.zeros_like(value) for name, value in small.encoder.state_dict().items()}
    assert DallE.from_released(weights, image_size=16).settings() == small.settings()


def test_no_weights_give_no_tokens_and_draw_no_numbers():
    before = torch.get_rng_state()
    tokenizer = DallE(hidden_size=4, blocks_per_group=1, vocab_size=5, image_size=16)
    assert torch.equal(torch.get_rng_state(), before)
    assert not tokenizer.logits(torch.rand(1, 3, 16, 16)).isfinite().any()


def test_saved_and_loaded_it_is_the_same(tmp_path, golden, published):
    tokenizer = DallE.from_released(published, golden[0]["config"]["img_size"])
    tokenizer.save(tmp_path / "tokenizer")
    again = load_tokenizer(tmp_path / "tokenizer")
    assert isinstance(again, DallE)
    assert again.fingerprint == tokenizer.fingerprint
    assert torch.equal(again.encode(golden[1]["in.images_0_1"]), golden[1]["out.token_ids"])


def test_half_precision_weights_are_computed_in_float32(published):
    halves = {name: value.half() for name, value in published.items()}
    assert {parameter.dtype for parameter in DallE.from_released(halves).parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda weights: weights.pop("blocks.group_2.block_1.id_path.w"),
            r"Missing: blocks\.group_2\.group\.block_1\.id_path\.weight",
        ),
        (lambda weights: weights.update({"head.w": torch.ones(1)}), r"Not known here: head\.weight"),
        (lambda weights: weights.update({"blocks.output.conv.b": torch.ones(3)}), r"Of another shape: blocks\.output\.conv\.bias"),
        (lambda weights: weights.update({"blocks.input.w": torch.ones(8, 40, 1, 1)}), r"decoder, give encoder\.pkl"),
        (lambda weights: weights.pop("blocks.input.w"), r"none is called blocks\.input\.w or blocks\.input\.weight"),
        (lambda weights: weights.pop("blocks.output.conv.w"), r"and a blocks\.output\.conv"),
        (lambda weights: weights["blocks.input.b"].fill_(float("nan")), r"blocks\.input\.bias holds NaN"),
    ],
)
def test_other_weights_are_refused_with_their_names(published, change, message):
    weights = {name: value.clone() for name, value in published.items()}
    change(weights)
    with pytest.raises(TokenizerError, match=message):
        DallE.from_released(weights, 48)


@pytest.mark.parametrize("settings", [{"image_size": 100}, {"image_size": 0}, {"hidden_size": 3}, {"vocab_size": 0}])
def test_sizes_that_cannot_be_are_refused(settings):
    with pytest.raises(TokenizerError, match="multiple of 8 px"):
        DallE(**({"hidden_size": 4, "blocks_per_group": 1, "vocab_size": 5, "image_size": 16} | settings))


# Files


def openai_pickle(path: Path, weights: dict[str, Tensor], monkeypatch) -> Path:
    """A pickled module like OpenAI's: its package and its attributes cannot be had where the file is read."""
    package = types.ModuleType("dall_e_original")
    package.Part = type("Part", (nn.Module,), {"__module__": "dall_e_original"})  # pyright: ignore[reportAttributeAccessIssue]
    root = package.Part()
    for name, value in weights.items():
        *parents, last = name.split(".")
        part = root
        for parent in parents:
            if parent not in part._modules:
                part.add_module(parent, package.Part())
            part = part._modules[parent]
        part.register_parameter(last, nn.Parameter(value))
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "dall_e_original", package)
        torch.save(root, path)
    return path


def test_openai_pickle_is_read_without_its_package(tmp_path, published, monkeypatch):
    tokenizer = tokenizer_from_file(openai_pickle(tmp_path / "encoder.pkl", published, monkeypatch))
    with pytest.raises(ModuleNotFoundError):
        torch.load(tmp_path / "encoder.pkl", weights_only=False)
    assert tokenizer.fingerprint == DallE.from_released(published).fingerprint
    assert tokenizer.fit_report["source"] == "encoder.pkl"
    assert len(tokenizer.fit_report["source_sha256"]) == 64
    assert "dropped" not in tokenizer.fit_report
    assert load_tokenizer(tmp_path / "encoder.pkl").fingerprint == tokenizer.fingerprint


def test_hugging_face_folders_and_models_that_contain_one(tmp_path, published):
    expected = DallE.from_released(published)
    expected.encoder.save_pretrained(tmp_path / "codebook")
    assert tokenizer_from_file(tmp_path / "codebook").fingerprint == expected.fingerprint
    whole = {f"image_codebook.{name}": value for name, value in expected.encoder.state_dict().items()}
    save_file(whole | {"flava.text.weight": torch.ones(2), "mim_head.bias": torch.ones(2)}, tmp_path / "flava.safetensors")
    found = tokenizer_from_file(tmp_path / "flava.safetensors")
    assert found.fingerprint == expected.fingerprint
    assert found.fit_report["dropped"] == ["flava.text.weight", "mim_head.bias"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(TokenizerError, match=r"holds none of model\.safetensors"):
        tokenizer_from_file(tmp_path / "empty")


def test_the_hub_is_asked_for_either_of_its_files(tmp_path, published, monkeypatch):
    openai_pickle(tmp_path / "pytorch_model.bin", published, monkeypatch)
    asked = []

    def download(repository: str, file: str) -> str:
        asked.append((repository, file))
        if not (tmp_path / file).exists():
            raise FileNotFoundError("404 Client Error\nfor url")
        return str(tmp_path / file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert tokenizer_from_file(HUB_NAME).fingerprint == DallE.from_released(published).fingerprint
    assert asked == [(HUB_NAME, "model.safetensors"), (HUB_NAME, "pytorch_model.bin")]
    (tmp_path / "pytorch_model.bin").unlink()
    with pytest.raises(TokenizerError, match=r"cannot be downloaded: 404 Client Error for url\. Connect .* encoder\.pkl"):
        tokenizer_from_file(HUB_NAME)


def test_other_files_are_answered_with_what_they_hold(tmp_path):
    torch.save({"state_dict": {f"layer.{index}": torch.ones(2, index) for index in range(7)}}, tmp_path / "other.pth")
    with pytest.raises(TokenizerError, match=r"other\.pth: .*neither .*Its 7 tensors: layer\.0 \(2, 0\), layer\.1 .* and 2 more"):
        tokenizer_from_file(tmp_path / "other.pth")
    (tmp_path / "other.pth").write_bytes(b"nothing")
    with pytest.raises(TokenizerError, match="cannot be read as a file of weights"):
        tokenizer_from_file(tmp_path / "other.pth")


def test_a_vq_kd_is_recognised_by_its_names(tmp_path):
    weights = with_prefix(load_golden("mim/vqkd_tiny_a")[1], "sd.")
    torch.save({"model": weights, "epoch": 1}, tmp_path / "vqkd.pth")
    tokenizer = tokenizer_from_file(tmp_path / "vqkd.pth", num_heads=3)
    assert isinstance(tokenizer, VQKD)
    assert tokenizer.fingerprint == VQKD.from_released(weights, num_heads=3).fingerprint
    assert tokenizer.fit_report["source"] == "vqkd.pth"
    assert "decoder.cls_token" in tokenizer.fit_report["dropped"]
    with pytest.raises(TokenizerError, match=r"vqkd\.pth: .*5 .*heads"):
        tokenizer_from_file(tmp_path / "vqkd.pth", num_heads=5)


def test_convert_says_what_it_made(tmp_path, published, monkeypatch, capsys):
    from mapet.cli.tokenizer_convert import convert

    whole = {f"image_codebook.{name}": value for name, value in DallE.from_released(published).encoder.state_dict().items()}
    save_file(whole | {"flava.text.weight": torch.ones(2)}, tmp_path / "flava.safetensors")
    convert(str(tmp_path / "flava.safetensors"), tmp_path / "tokenizer")
    printed = capsys.readouterr().out
    tokenizer = load_tokenizer(tmp_path / "tokenizer")
    assert f"dall_e, vocabulary 32, 14 x 14 tokens of images of 112 px, fingerprint {tokenizer.fingerprint[:12]}" in printed
    assert "Left out, as tokens do not need it: flava.* (1)." in printed
    assert tokenizer.fit_report["source"] == "flava.safetensors"
