"""Models of transformers become backbones that compute what transformers computes."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mapet.checkpoints.address import load_backbone
from mapet.errors import ModelError
from tests.checkpoints.published import SMALL, images, randomise, save


def close(one: Tensor, other: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


def hugging_face(kind: str):
    """A small random model of transformers, and what it computes: (features or logits, images)."""
    import transformers

    config = {**SMALL, **({"intermediate_size": 64} if kind[0] in "VB" else {})}
    match kind:
        case "ViTModel":
            network = transformers.ViTModel(transformers.ViTConfig(**config), add_pooling_layer=True)
        case "ViTForImageClassification":
            network = transformers.ViTForImageClassification(transformers.ViTConfig(**config, num_labels=5))
        case "ViTMAEForPreTraining":
            sizes = {f"decoder_{name}": 16 for name in ("hidden_size", "intermediate_size")}
            decoder = {**sizes, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2, "mask_ratio": 0.0}
            network = transformers.ViTMAEForPreTraining(transformers.ViTMAEConfig(**config, **decoder))
        case "Dinov2Model":
            network = transformers.Dinov2Model(transformers.Dinov2Config(**config))
        case "Dinov2Model-swiglu":
            network = transformers.Dinov2Model(transformers.Dinov2Config(**config, use_swiglu_ffn=True))
        case "Dinov2WithRegistersModel":
            network = transformers.Dinov2WithRegistersModel(transformers.Dinov2WithRegistersConfig(**config, num_register_tokens=3))
        case "BeitForImageClassification":
            relative = {"use_relative_position_bias": True, "num_labels": 5}
            network = transformers.BeitForImageClassification(transformers.BeitConfig(**config, **relative))
        case "BeitForMaskedImageModeling":
            shared = {"use_shared_relative_position_bias": True, "use_mask_token": True, "vocab_size": 7}
            network = transformers.BeitForMaskedImageModeling(transformers.BeitConfig(**config, **shared))
        case _:
            raise AssertionError(kind)
    return randomise(network)


def outputs_of(network, kind: str) -> Tensor:
    with torch.inference_mode():
        if "Classification" in kind:
            return network(pixel_values=images()).logits
        if "MAE" in kind:
            noise = torch.arange(16.0).expand(2, -1)  # in order: nothing is shuffled, and nothing hidden
            return network.vit(pixel_values=images(), noise=noise).last_hidden_state
        if "Masked" in kind:
            return network.layernorm(network.beit(pixel_values=images()).last_hidden_state)
        return network(pixel_values=images()).last_hidden_state


KINDS = (
    *("ViTModel", "ViTForImageClassification", "ViTMAEForPreTraining", "Dinov2Model", "Dinov2Model-swiglu"),
    *("Dinov2WithRegistersModel", "BeitForImageClassification", "BeitForMaskedImageModeling"),
)


@pytest.mark.parametrize("kind", KINDS)
def test_models_of_hugging_face(tmp_path, kind):
    network = hugging_face(kind)
    network.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}))
    loaded = load_backbone(tmp_path)
    assert loaded.conversion is not None
    assert loaded.conversion.new == ()
    assert (loaded.spec.mean, loaded.spec.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    with torch.inference_mode():
        ours = loaded.backbone(images()) if "Classification" in kind else loaded.backbone.forward_features(images())
    close(ours, outputs_of(network, kind))


@pytest.mark.parametrize("kind", ["Dinov2Model", "Dinov2WithRegistersModel"])
def test_dinov2s_own_names(tmp_path, kind):
    network = hugging_face(kind)
    loaded = load_backbone(save(in_dinov2s_names(network.state_dict()), tmp_path / "dinov2.pth"), options={"num_heads": 2})
    assert loaded.conversion is not None
    assert loaded.conversion.family.startswith("DINOv2 checkpoint")
    assert loaded.conversion.dropped == ("mask_token",)
    with torch.inference_mode():
        close(loaded.backbone.forward_features(images()), outputs_of(network, kind))


def in_dinov2s_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of transformers under the names of facebookresearch/dinov2."""
    renamed: dict[str, Tensor] = {}
    for name, value in state.items():
        parts = name.split(".")
        if parts[0] == "encoder":
            block, rest = f"blocks.{parts[2]}", ".".join(parts[3:])
            if rest.startswith("attention.q_proj"):
                kind = parts[-1]
                stem = f"encoder.layer.{parts[2]}.attention"
                renamed[f"{block}.attn.qkv.{kind}"] = torch.cat([state[f"{stem}.{part}_proj.{kind}"] for part in "qkv"])
            elif "k_proj" not in rest and "v_proj" not in rest:
                rest = rest.replace("attention.o_proj", "attn.proj").replace("layer_scale", "ls").replace("lambda1", "gamma")
                renamed[f"{block}.{rest}"] = value
        else:
            swaps = {"patch_embeddings.projection": "patch_embed.proj", "position_embeddings": "pos_embed", "layernorm": "norm"}
            for old, new in {"embeddings.cls": "cls", **swaps, "embeddings.": ""}.items():
                name = name.replace(old, new)
            renamed[name] = value
    return renamed


def test_other_models_of_hugging_face_are_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "swin"}))
    with pytest.raises(ModelError, match=r"type 'swin'.*Allowed: beit, dinov2"):
        load_backbone(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(ModelError, match=r"config.json but no weights"):
        load_backbone(tmp_path)


def test_shards_and_another_epsilon_and_bin_files(tmp_path):
    network = hugging_face("ViTModel")
    network.config.layer_norm_eps = 1e-12
    network.config.save_pretrained(tmp_path)
    network.save_pretrained(tmp_path / "whole")
    (tmp_path / "whole" / "config.json").unlink()
    state = load_file(tmp_path / "whole" / "model.safetensors")
    names = sorted(state)
    halves = {"model-1.safetensors": names[:9], "model-2.safetensors": names[9:]}
    for file, members in halves.items():
        save_file({name: state[name] for name in members}, tmp_path / file)
    index = {"weight_map": {name: file for file, members in halves.items() for name in members}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    loaded = load_backbone(tmp_path)
    assert loaded.conversion is not None
    assert "add 1e-12 to the variance" in loaded.conversion.summary()
    with torch.inference_mode():
        close(loaded.backbone.forward_features(images()), outputs_of(network, "ViTModel"), 1e-4)


def test_the_hub(tmp_path, monkeypatch):
    import huggingface_hub

    network, asked = hugging_face("ViTModel"), []
    network.save_pretrained(tmp_path)

    def snapshot_download(name, *, revision, allow_patterns):
        asked.append((name, revision, allow_patterns))
        if name == "nobody/nothing":
            raise OSError("404 Client Error")
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    loaded = load_backbone("hf://google/vit@main")
    assert loaded.title == "hf://google/vit@main"
    assert asked[0][:2] == ("google/vit", "main")
    assert not any(pattern.endswith((".py", "*")) for pattern in asked[0][2])
    with pytest.raises(ModelError, match=r"Cannot fetch hf://nobody/nothing: 404 Client Error.*hf auth login"):
        load_backbone("hf://nobody/nothing")
    with pytest.raises(ModelError, match="is no model on the Hub"):
        load_backbone("hf://google")


def test_a_folder_of_timm_cannot_ask_for_other_files(tmp_path):
    from mapet.checkpoints.huggingface import read_model

    save_file({"weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    arguments = {"depth": 1, "checkpoint_path": "elsewhere.pth", "pretrained": True}
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "vit_tiny_patch16_224", "model_args": arguments}))
    with pytest.raises(ModelError, match=r"config\.json: a ViT has no option 'checkpoint_path' that may be set"):
        read_model(tmp_path)
