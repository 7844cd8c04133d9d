"""VQ-KD against arrays of the published implementation, and what it refuses."""

from __future__ import annotations

import json

import pytest
import torch

from mapet.errors import ModelError, TokenizerError
from mapet.tokenizers.load import load_tokenizer
from mapet.tokenizers.released import tokenizer_from_file
from mapet.tokenizers.vq_kd.tokenizer import VQKD, to_mapet_names
from tests.golden import GOLDENS, load_golden, with_prefix

OUTPUT, GRADIENT = 2e-5, 1e-4


@pytest.fixture(scope="module")
def golden():
    return load_golden("mim/vqkd_tiny_a")


@pytest.fixture(scope="module")
def released(golden):
    return with_prefix(golden[1], "sd.")


@pytest.fixture(scope="module")
def tokenizer(golden, released) -> VQKD:
    return VQKD.from_released(released, num_heads=golden[0]["config"]["enc_heads"])


def test_sizes_follow_from_the_published_tensors(golden, tokenizer):
    config = golden[0]["config"]
    side = config["img_size"] // config["patch_size"]
    assert (tokenizer.image_size, tokenizer.grid_size) == (config["img_size"], (side, side))
    assert (tokenizer.vocab_size, tokenizer.code_dim) == (config["n_code"], config["code_dim"])


def test_codes_of_the_published_model(golden, tokenizer):
    tensors = golden[1]
    with torch.no_grad():
        codes = tokenizer.codes(tensors["in.images"])
    assert torch.allclose(codes.flatten(1, 2), tensors["out.z_l2"], rtol=0, atol=OUTPUT)


@pytest.mark.parametrize(("images", "tokens"), [("in.images", "out.tokens"), ("in.images_max_le_1", "out.tokens_max_le_1")])
def test_tokens_of_the_published_model(golden, tokenizer, images, tokens):
    ids = tokenizer.encode(golden[1][images])
    assert ids.dtype == torch.int64
    assert torch.equal(ids.flatten(1), golden[1][tokens])


def test_training_images_and_single_images_give_the_same_tokens(golden, tokenizer):
    images = golden[1]["kmeans.images"]
    single = torch.cat([tokenizer.encode(image[None]) for image in images])
    assert torch.equal(tokenizer.encode(images), single)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(tokenizer.encode(images), single)


def test_encode_changes_nothing(golden, tokenizer):
    before = {name: value.clone() for name, value in tokenizer.state_dict().items()}
    tokenizer.encode(golden[1]["in.images"])
    assert all(torch.equal(value, before[name]) for name, value in tokenizer.state_dict().items())
    assert not any(parameter.requires_grad for parameter in tokenizer.parameters())


def test_imagenet_normalised_images_are_refused(golden, tokenizer):
    with pytest.raises(TokenizerError, match=r"values in \[0, 1\].*ImageNet-normalised"):
        tokenizer.encode(golden[1]["in.images"] * 4.4 - 2)
    with pytest.raises(TokenizerError, match="8-bit"):
        tokenizer.encode(golden[1]["in.images"] * 255)


def test_saved_and_loaded_without_decoder(golden, tokenizer, tmp_path):
    tokenizer.save(tmp_path / "tok")
    loaded = load_tokenizer(tmp_path / "tok")
    assert isinstance(loaded, VQKD)
    assert torch.equal(loaded.encode(golden[1]["in.images"]), tokenizer.encode(golden[1]["in.images"]))
    assert loaded.fingerprint == tokenizer.fingerprint
    assert not any("decode" in name for name in loaded.state_dict())
    assert {"decoder.cls_token", "quantize.embedding.embed_avg"} <= set(loaded.fit_report["dropped"])


def test_a_published_file_is_loaded_as_it_is(golden, released, tokenizer, tmp_path):
    torch.save({"model": released | {"teacher.ln_post.bias": torch.ones(3)}, "epoch": 99}, tmp_path / "vqkd.pth")
    loaded = tokenizer_from_file(tmp_path / "vqkd.pth", num_heads=golden[0]["config"]["enc_heads"])
    assert loaded.fingerprint == tokenizer.fingerprint
    assert "teacher.ln_post.bias" in loaded.fit_report["dropped"]
    with pytest.raises(TokenizerError, match=r"vqkd\.pth: .*give the number of its attention heads"):
        load_tokenizer(tmp_path / "vqkd.pth")


def test_number_of_heads_changes_tokens_and_fingerprint(golden, released, tokenizer):
    other = VQKD.from_released(released, num_heads=golden[0]["config"]["enc_heads"] + 1)
    assert other.fingerprint != tokenizer.fingerprint
    assert not torch.equal(other.encode(golden[1]["in.images"]), tokenizer.encode(golden[1]["in.images"]))


def test_names_and_shapes_of_the_published_checkpoints():
    published = json.loads((GOLDENS / "mim" / "published_shapes_vqkd.json").read_text())
    for facts in published.values():
        with torch.device("meta"):
            tensors = {name: torch.empty(shape) for name, shape in facts["keys"].items()}
            tensors.pop("quantize.embedding.initted")  # its value is looked at, and a meta tensor has none
            tokenizer = VQKD.from_released(tensors | {"teacher.visual.proj": torch.empty(3), "loss.scale": torch.empty(1)})
        side = facts["encoder"]["img_size"] // facts["encoder"]["patch"]
        assert (tokenizer.grid_size, tokenizer.image_size) == ((side, side), facts["encoder"]["img_size"])
        assert [tokenizer.vocab_size, tokenizer.code_dim] == facts["codebook"]
        assert tokenizer.encoder_options["num_heads"] == facts["encoder"]["heads"]
        keys = 12 * facts["encoder"]["depth"]
        parameters = sum(p.numel() for p in tokenizer.encoder.parameters())
        assert parameters - facts["params"]["encoder"] == facts["encoder"]["depth"] * facts["encoder"]["dim"]  # zero biases of keys
        assert len(tokenizer.encoder.state_dict()) == keys + 6
        assert {"teacher.visual.proj", "loss.scale"} <= set(tokenizer.fit_report["dropped"])


def test_keys_have_no_bias(released):
    joined = to_mapet_names(released)
    width = len(released["encoder.blocks.0.attn.q_bias"])
    assert not joined["encoder.blocks.0.attn.qkv.bias"][width : 2 * width].any()


def without(tensors: dict, *names: str) -> dict:
    return {name: value for name, value in tensors.items() if name not in names}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda sd: {"blocks.0.weight": torch.ones(1)},
            r"not the weights of VQ-KD: .*encoder\.pos_embed.* missing.*blocks\.0\.weight",
        ),
        (lambda sd: {}, "found 0 tensors: nothing"),
        (lambda sd: without(sd, "encoder.blocks.1.norm1.bias"), r"Missing: encoder\.blocks\.1\.norm1\.bias"),
        (lambda sd: without(sd, "encoder.blocks.1.attn.v_bias"), r"q_bias but not encoder\.blocks\.1\.attn\.v_bias"),
        (lambda sd: sd | {"encoder.rel_pos": torch.ones(2)}, r"Not known here: encoder\.rel_pos"),
        (lambda sd: sd | {"encoder.fc_norm.bias": torch.ones(7)}, r"Of another shape: encoder\.fc_norm\.bias is \(7,\)"),
        (lambda sd: sd | {"quantize.embedding.weight": torch.ones(64, 5)}, r"codebook is \(64, 5\), expected \(64, 8\)"),
        (lambda sd: sd | {"encoder.pos_embed": torch.ones(17, 48)}, r"unexpected shapes of encoder\.pos_embed \(17, 48\)"),
        (lambda sd: sd | {"quantize.embedding.initted": torch.zeros(1)}, "codebook .* was never started"),
    ],
)
def test_wrong_checkpoints(golden, released, change, message):
    with pytest.raises(TokenizerError, match=message):
        VQKD.from_released(change(released), num_heads=golden[0]["config"]["enc_heads"])


def test_number_of_heads_that_cannot_be(released):
    with pytest.raises(TokenizerError, match=r"48 wide, no multiple of 64: give the number of its attention heads"):
        VQKD.from_released(released)
    with pytest.raises(TokenizerError, match="cannot have 5 heads"):
        VQKD.from_released(released, num_heads=5)


def test_settings_that_cannot_be():
    with pytest.raises(TokenizerError, match="img_size is no option"):
        VQKD(encoder_options={"img_size": 32})
    with pytest.raises(TokenizerError, match="code_dim is 0"):
        VQKD(code_dim=0)
    with pytest.raises(ModelError, match="no model 'vit_bose"):
        VQKD(encoder="vit_bose_patch16_224")
