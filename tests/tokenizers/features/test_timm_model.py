from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from mapet.compat import timm
from mapet.data.views import FixedView
from mapet.errors import ModelError, TokenizerError
from mapet.tokenizers.features import timm_weights
from mapet.tokenizers.features.base import create_features
from mapet.tokenizers.features.feature_map import feature_map, without_rest
from mapet.tokenizers.features.timm_weights import load_weights
from tests.golden import load_golden

GoldenClip = tuple[Any, Path, dict[str, torch.Tensor]]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(count: int, size: int) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=seeded())


def clip_resnet(config: dict[str, Any], layers: tuple[int, ...] | None = None) -> Any:
    """A CLIP ResNet of the golden's size, built as timm builds its `resnet50_clip`."""
    byobnet = timm.models.byobnet
    published = byobnet.model_cfgs["resnet50_clip"]
    depths = layers or config["layers"]
    blocks = tuple(replace(block, d=depth) for block, depth in zip(published.blocks, depths, strict=True))
    model = replace(published, blocks=blocks, width_factor=config["width"] / 64)
    network = byobnet.ByobNet(model, num_classes=config["output_dim"], img_size=config["input_resolution"])
    network.pretrained_cfg = {"classifier": "head.proj"}
    return network.eval()


@pytest.fixture
def golden_clip(tmp_path: Path) -> GoldenClip:
    """The golden's network with random weights, a file of its published weights, and its arrays."""
    description, tensors = load_golden("mapet/clip_rn_s1_a")
    network = clip_resnet(description["config"])
    published = {name: value for name, value in tensors.items() if name.startswith("visual.")}
    # What else is in a file of the whole of CLIP.
    published |= {
        "logit_scale": torch.ones(()),
        "text_projection": torch.ones(4, 4),
        "transformer.resblocks.0.ln_1.weight": torch.ones(4),
    }
    torch.save(published, tmp_path / "RN.pt")
    return network, tmp_path / "RN.pt", tensors


def test_clip_features_equal_the_published_ones(golden_clip: GoldenClip) -> None:
    network, file, golden = golden_clip
    load_weights(network, "resnet50_clip.openai", file)
    assert network.stages[0][0].conv1_1x1.bn.eps == 1e-5
    torch.testing.assert_close(network(golden["images"]), golden["output"], atol=1e-5, rtol=0)
    network = without_rest(network, None)
    assert not any(name.startswith("head") for name in network.state_dict())
    found = feature_map(network, golden["images"]).flatten(1, 2)
    torch.testing.assert_close(found, golden["features"], atol=1e-5, rtol=0)
    exact = feature_map(network.double(), golden["images"].double()).flatten(1, 2)
    torch.testing.assert_close(exact, golden["features64"], atol=1e-12, rtol=0)
    stages = feature_map(network, golden["images"].double(), layer=4).flatten(1, 2)
    assert torch.equal(stages, exact)


def test_images_are_prepared_as_clip_prepares_them() -> None:
    """CLIP resizes before it crops. Of these two images nothing is lost either way; of others it may be a pixel at the border."""
    description, golden = load_golden("mapet/preproc_a")
    size = description["tensors"]["clip0"][1][-1]
    extractor = create_features("resnet50_clip.openai", image_size=size, patch_size=32, pretrained=False)
    for number in (1, 2):
        image = Image.fromarray(golden[f"image{number}"].numpy())
        prepared = (FixedView(size)(image).float() / 255 - extractor.mean) / extractor.std
        torch.testing.assert_close(prepared, golden[f"clip{number}"], atol=1e-5, rtol=0)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_half_precision_torchscript_of_the_whole_clip(golden_clip: GoldenClip, tmp_path: Path) -> None:
    network, _, golden = golden_clip

    class Part(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images

    clip = Part()
    for name, value in golden.items():
        if name.startswith("visual."):
            *parts, last = name.split(".")
            owner: nn.Module = clip
            for part in parts:
                if not hasattr(owner, part):
                    owner.add_module(part, Part())
                owner = getattr(owner, part)
            owner.register_buffer(last, value.half() if value.is_floating_point() else value)
    clip.register_buffer("logit_scale", torch.ones(()))
    torch.jit.save(torch.jit.trace(clip, torch.ones(1)), tmp_path / "RN.pt")
    load_weights(network, "resnet50_clip.openai", tmp_path / "RN.pt")
    found = feature_map(network, golden["images"]).flatten(1, 2)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, golden["features"], atol=2e-2, rtol=2e-2)


def test_timm_names_and_openai_names_give_the_same(golden_clip: GoldenClip, tmp_path: Path) -> None:
    network, file, golden = golden_clip
    load_weights(network, "resnet50_clip.openai", file)
    save_file(network.state_dict(), tmp_path / "timm.safetensors")
    description, _ = load_golden("mapet/clip_rn_s1_a")
    again = clip_resnet(description["config"])
    load_weights(again, "resnet50_clip.openai", tmp_path / "timm.safetensors")
    assert torch.equal(again(golden["images"]), network(golden["images"]))


def test_another_clip_resnet_is_recognised(golden_clip: GoldenClip, monkeypatch: pytest.MonkeyPatch) -> None:
    network, file, _ = golden_clip
    known = timm_weights.timm.create_model

    def create(name: str, **options) -> nn.Module:
        return network if name == "resnet50x4_clip" else known(name, **options)

    description, _ = load_golden("mapet/clip_rn_s1_a")
    other = clip_resnet(description["config"], layers=(2, 1, 1, 1))
    monkeypatch.setattr(timm_weights.timm, "create_model", create)
    with pytest.raises(TokenizerError) as caught:
        load_weights(other, "resnet50x16_clip.openai", file)
    message = str(caught.value)
    assert "RN.pt does not hold the weights of 'resnet50x16_clip.openai'" in message
    assert "Missing: stages.0.1.conv1_1x1.conv.weight" in message
    assert " more." in message
    assert message.endswith("They are those of 'resnet50x4_clip.openai': give that name.")


@pytest.mark.parametrize(("model", "image_size", "patch_size"), [("test_vit", 96, 16), ("test_resnet", 64, 32)])
def test_timm_models_of_both_kinds(model: str, image_size: int, patch_size: int) -> None:
    extractor = create_features(model, image_size=image_size, patch_size=patch_size, pretrained=False)
    extractor.fit(torch.empty(0), seeded())
    batch = images(2, image_size)
    features = extractor(batch)
    assert features.shape == (2, *extractor.grid_size, extractor.dim)
    reference = timm.create_model(model, num_classes=0, **({"img_size": image_size} if model == "test_vit" else {})).eval()
    reference.load_state_dict(extractor.backbone.state_dict())
    config = reference.pretrained_cfg
    normalised = (batch - torch.tensor(config["mean"]).view(3, 1, 1)) / torch.tensor(config["std"]).view(3, 1, 1)
    expected = reference.forward_intermediates(normalised, indices=1, intermediates_only=True, norm=model == "test_vit")[0]
    torch.testing.assert_close(features, expected.permute(0, 2, 3, 1), atol=1e-4, rtol=0)
    assert not features.requires_grad


@pytest.mark.parametrize(
    ("model", "image_size", "patch_size", "layer"),
    [
        ("test_vit", 96, 16, 2),
        ("test_vit", 96, 16, -1),
        ("test_convnext", 64, 16, 2),
        ("test_resnet", 64, 16, 3),
        ("test_vit3", 64, 16, 1),
    ],
)
def test_any_layer(model: str, image_size: int, patch_size: int, layer: int, tmp_path: Path) -> None:
    whole = timm.create_model(model, num_classes=0).eval()
    save_file(whole.state_dict(), tmp_path / "whole.safetensors")
    extractor = create_features(
        f"timm:{model}@{tmp_path / 'whole.safetensors'}", image_size=image_size, patch_size=patch_size, layer=layer
    )
    extractor.fit(torch.empty(0), seeded())
    if hasattr(whole, "set_input_size"):
        whole.set_input_size((image_size, image_size))
    batch = images(2, image_size)
    normalised = (batch - extractor.mean) / extractor.std
    wanted = whole.forward_intermediates(normalised, indices=[layer], intermediates_only=True, norm="vit" in model)[0]
    torch.testing.assert_close(extractor(batch), wanted.permute(0, 2, 3, 1), atol=1e-5, rtol=0)
    again = create_features(**extractor.settings())
    again.load_state_dict(extractor.state_dict())
    assert torch.equal(again(batch), extractor(batch))


def test_the_last_layer_of_a_vit_is_the_default() -> None:
    default, last = (create_features("test_vit", image_size=64, patch_size=16, pretrained=False, **o) for o in ({}, {"layer": -1}))
    for extractor in (default, last):
        extractor.fit(torch.empty(0), seeded())
    assert last.settings()["layer"] == 5
    assert "layer" not in default.settings()
    torch.testing.assert_close(last(images(2, 64)), default(images(2, 64)))


def test_layers_behind_are_not_kept() -> None:
    deep, shallow = (create_features("test_vit", image_size=64, patch_size=16, pretrained=False, layer=n) for n in (5, 0))
    assert [len(extractor.backbone.blocks) for extractor in (deep, shallow)] == [6, 1]


def test_registers_and_class_tokens_are_dropped() -> None:
    network = timm.create_model("test_vit", num_classes=0, reg_tokens=3, img_size=64).eval()
    assert feature_map(network, images(2, 64)).shape == (2, 4, 4, 64)
    torch.testing.assert_close(feature_map(network, images(2, 64))[:, 0, 0], network.forward_features(images(2, 64))[:, 4])


def test_projection_passes_every_token_through_the_head() -> None:
    extractor = create_features("test_vit", image_size=64, patch_size=16, pretrained=False, projection=True)
    plain = create_features("test_vit", image_size=64, patch_size=16, pretrained=False)
    plain.backbone.load_state_dict({k: v for k, v in extractor.backbone.state_dict().items() if not k.startswith("head")})
    batch, head = images(2, 64), extractor.backbone.head
    torch.testing.assert_close(extractor(batch), head(plain(batch)))
    assert extractor.dim == 1000
    assert create_features(**extractor.settings()).dim == 1000
    with pytest.raises(TokenizerError, match="ResNet has no linear head behind its tokens"):
        create_features("test_resnet", image_size=64, patch_size=32, pretrained=False, projection=True)
    with pytest.raises(TokenizerError, match="either a layer or the projection"):
        create_features("test_vit", image_size=64, patch_size=16, pretrained=False, projection=True, layer=0)


def test_channels_last_maps_are_kept_as_they_are() -> None:
    class ChannelsLast(torch.nn.Module):
        output_fmt = "NHWC"

        def forward_features(self, images: torch.Tensor) -> torch.Tensor:
            return torch.arange(len(images) * 28.0).view(len(images), 2, 2, 7)

    assert torch.equal(feature_map(ChannelsLast(), torch.zeros(3, 3, 8, 8)), torch.arange(84.0).view(3, 2, 2, 7))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer": 6}, "'test_vit' has no layer 6. Allowed: 0 to 5, or -1 to -6 from the end"),
        ({"layer": -7}, "no layer -7"),
        ({"layer": "last"}, "layer = 'last' is not allowed. Allowed: a whole number"),
        ({"image_size": 64, "patch_size": 32}, "feature map of 4 x 4, not the 2 x 2.*Give patch size 16, or image size 32"),
    ],
)
def test_what_does_not_fit(options: dict, message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        create_features("test_vit", **{"image_size": 96, "patch_size": 16, "pretrained": False, **options})


def test_models_without_a_map_are_refused_in_words() -> None:
    with pytest.raises(TokenizerError, match="'crossvit_tiny_240' gives no feature map of images of 240 px"):
        create_features("crossvit_tiny_240", image_size=240, patch_size=12, pretrained=False)


def test_random_weights_come_from_the_generator() -> None:
    first, same, other = (create_features("timm:test_vit", image_size=160, patch_size=16, pretrained=False) for _ in range(3))
    for extractor, seed in [(first, 0), (same, 0), (other, 1)]:
        extractor.fit(torch.empty(0), seeded(seed))
    assert torch.equal(first(images(1, 160)), same(images(1, 160)))
    assert first.fingerprint == same.fingerprint != other.fingerprint


def test_no_download_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    extractor = create_features("test_vit", image_size=160, patch_size=16)

    def offline(*_, **__) -> None:
        raise OSError("We couldn't connect to the hub\nlong story")

    monkeypatch.setattr(extractor, "_build", partial(offline))
    with pytest.raises(TokenizerError, match=r"couldn't connect to the hub long story\. .*timm:test_vit@FILE"):
        extractor.fit(torch.empty(0), seeded())


def test_local_checkpoint_is_loaded_strictly(tmp_path: Path) -> None:
    published = timm.create_model("test_vit", pretrained=False)
    file = tmp_path / "weights.safetensors"
    save_file(published.state_dict(), file)
    extractor = create_features(f"timm:test_vit@{file}", image_size=160, patch_size=16)
    extractor.fit(torch.empty(0), seeded())
    assert torch.equal(extractor.backbone.norm.weight, published.norm.weight)
    assert torch.equal(extractor.backbone.patch_embed.proj.weight, published.patch_embed.proj.weight)
    assert str(tmp_path) not in str(extractor.settings())

    torch.save(
        {"epoch": 3, "state_dict": {f"module.{key}": value for key, value in published.state_dict().items()}}, tmp_path / "ddp.pth"
    )
    other = create_features(f"timm:test_vit@{tmp_path / 'ddp.pth'}", image_size=160, patch_size=16)
    other.fit(torch.empty(0), seeded())
    assert other.fingerprint == extractor.fingerprint

    save_file({key: value for key, value in published.state_dict().items() if "norm1.weight" not in key}, file)
    with pytest.raises(TokenizerError, match=r"weights of 'test_vit'. .*Missing: blocks.0.norm1.weight, .* and 1 more"):
        extractor.fit(torch.empty(0), seeded())
    file.write_bytes(b"not tensors")
    with pytest.raises(ModelError, match="cannot be read as a file of weights"):
        extractor.fit(torch.empty(0), seeded())


def test_weights_of_another_patch_size_are_not_resampled_silently(tmp_path: Path) -> None:
    published = timm.create_model("test_vit", pretrained=False, patch_size=32)
    renamed = {f"visual.trunk.{key}": value for key, value in published.state_dict().items()}
    save_file(renamed, tmp_path / "open_clip.safetensors")
    extractor = create_features(f"timm:test_vit@{tmp_path / 'open_clip.safetensors'}", image_size=160, patch_size=16)
    with pytest.raises(TokenizerError, match=r"Of another shape: pos_embed, patch_embed.proj.weight"):
        extractor.fit(torch.empty(0), seeded())
