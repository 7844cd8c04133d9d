"""The tasks of "Beyond Masking" equal its implementation: degradations, targets, losses, whole models."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mapet.data.batch import Batch
from mapet.models import create_backbone
from mapet.models.pixel_decoder import sinusoid_table
from mapet.objectives.blurred import Blur, Blurred, blur
from mapet.objectives.decolorized import Decolorized, Mixture, decolorize
from mapet.objectives.distorted import Distorted, Distortion, distort
from mapet.objectives.mask_pixels import MaskPixels
from mapet.objectives.patch_pixels import area_resize, normalised_patches, patchify, unpatchify
from mapet.objectives.recover import Degradation, Recover, _our_name
from mapet.objectives.zoomed_in import ZoomedIn
from mapet.objectives.zoomed_out import Placement, ZoomedOut, on_canvas
from tests.golden import GOLDENS, load_file, with_prefix

LOSS, DISTORTION = 1e-5, 1e-4


def json_of(name: str) -> dict[str, Any]:
    return json.loads((GOLDENS / "beyond_masking" / f"{name}.json").read_text())


def transforms() -> tuple[dict[str, Any], dict[str, Tensor]]:
    return json_of("transforms")["params"], load_file(GOLDENS / "beyond_masking" / "transforms_a.safetensors")


def sizes() -> tuple[int, int, int]:
    """Side of the images, of a patch, and of the grid of patches."""
    config = json_of("model")["config"]
    return config["img_size"], config["patch_size"], config["img_size"] // config["patch_size"]


def prediction() -> Tensor:
    """(patches, values of a patch): what the release's losses were computed for; the formula is in transforms.json."""
    (_, _, grid), values = sizes(), json_of("model")["config"]["decoder_num_classes"]
    row, column = (torch.arange(count, dtype=torch.float64) for count in (grid**2, values))
    row, column = row[:, None], column[None]
    return (torch.sin(0.37 * row + 0.011 * column) + 0.5 * torch.cos(0.05 * row * (column % 3 + 1))).float()


def tiny(task: type[Recover], backbone_options: dict[str, Any] | None = None, **options: Any) -> Recover:
    config = json_of("model")["config"]
    backbone = create_backbone(
        "vit_base_patch16_224",
        img_size=config["img_size"],
        patch_size=config["patch_size"],
        embed_dim=config["encoder_embed_dim"],
        depth=config["encoder_depth"],
        num_heads=config["encoder_num_heads"],
        num_classes=0,
        class_token=False,
        global_pool="avg",
        fc_norm=False,
        **(backbone_options or {}),
    )
    decoder = {"width": config["decoder_embed_dim"], "depth": config["decoder_depth"], "num_heads": config["decoder_num_heads"]}
    return task(backbone, **decoder, **options)


def mask_of(golden: dict[str, Tensor]) -> Tensor:
    return golden["mask.mask"].bool().unsqueeze(0)


def loss_of(task: Recover, predicted: Tensor, images: Tensor, drawn: Degradation) -> float:
    """The loss of a given prediction, as `forward` adds it up."""
    of_patches, of_images = task.losses(predicted.unsqueeze(0), images.unsqueeze(0), drawn)
    chosen = of_patches if drawn.mask is None else of_patches[drawn.mask]
    return float(chosen.mean() + (0 if of_images is None else of_images.mean()))


def test_positions() -> None:
    tables = load_file(GOLDENS / "beyond_masking" / "tables.safetensors")
    expected = tables["pos_196_384"]
    torch.testing.assert_close(sinusoid_table(*expected.shape)[0], expected, rtol=0, atol=1e-6)


def test_patches_and_back() -> None:
    images = torch.rand(2, 3, 12, 20)
    patches = patchify(images, 4)
    assert torch.equal(unpatchify(patches, (3, 5), 4), images)
    assert torch.equal(patches[1, 6].view(4, 4, 3).permute(2, 0, 1), images[1, :, 4:8, 4:8])


def test_mask_pixels_loss() -> None:
    _, golden = transforms()
    expected = golden["plain.loss"].tolist()
    images, predicted = golden["im_224"], prediction()
    task = tiny(MaskPixels)
    found = [loss_of(task, predicted, images, Degradation(mask)) for mask in (mask_of(golden), None)]
    assert found == pytest.approx(expected, abs=LOSS)


def test_zoomed_in() -> None:
    params, golden = transforms()
    params = params["zoomed_in"]
    task, view = tiny(ZoomedIn), golden[f"zi.full_{params['full']}"]
    assert task.view_size == len(view[0]) == params["full"]
    seen = slice(params["offset"], params["offset"] + params["visible"])
    assert torch.equal(task.degrade(view.unsqueeze(0), Degradation(None))[0], view[:, seen, seen])
    of_centre, of_edge = params["loss_weights"]
    for mask, expected in ((mask_of(golden), golden["zi.loss_masked"]), (None, golden["zi.loss_unmasked"])):
        drawn = Degradation(mask)
        assert loss_of(task, prediction(), view, drawn) == pytest.approx(float(expected[2]), abs=LOSS)
        centre, edge = task.losses(prediction().unsqueeze(0), view.unsqueeze(0), drawn)
        centre = centre if mask is None else centre[mask]
        assert float(centre.mean() / of_centre) == pytest.approx(float(expected[0]), abs=LOSS)
        assert float(edge.mean() / of_edge) == pytest.approx(float(expected[1]), abs=LOSS)


@pytest.mark.parametrize("place", [(10, 37), (63, 63)])
def test_zoomed_out(place: tuple[int, int]) -> None:
    params, golden = transforms()
    inner, canvas = params["zoomed_out"]["inner"], params["zoomed_out"]["canvas"]
    name = f"l{place[0]}_t{place[1]}"
    task, small = tiny(ZoomedOut), golden[f"zo.src_{inner}"]
    assert task.view_size == len(small[0]) == inner
    places, room = torch.tensor([place]), canvas - inner
    padding = [(0, 0), (place[1], room - place[1]), (place[0], room - place[0])]
    assert np.array_equal(on_canvas(small.unsqueeze(0), places, canvas)[0], np.pad(small, padding, mode="symmetric"))
    found = [loss_of(task, prediction(), small, Placement(mask, places)) for mask in (mask_of(golden), None)]
    assert found == pytest.approx(golden[f"zo.loss_{name}"].tolist(), abs=LOSS)


def test_distorted() -> None:
    params, golden = transforms()
    draws = torch.tensor(params["distorted"]["cx_cy_m"])
    images = golden["im_64"].expand(len(draws), -1, -1, -1)
    found = distort(images, draws[:, :2], draws[:, 2])
    for index, image in enumerate(found):
        torch.testing.assert_close(image, golden[f"ds.out{index}_64"], rtol=0, atol=DISTORTION)


def test_blurred() -> None:
    _, golden = transforms()
    image, weight, bias = (golden[name].unsqueeze(0) for name in ("im_64", "bl.weight", "bl.bias"))
    other = torch.zeros_like(image)
    found = blur(torch.cat([other, image]), torch.cat([torch.ones_like(weight), weight]), torch.cat([bias + 1, bias]))
    torch.testing.assert_close(found[1], golden["bl.out_64"], rtol=0, atol=LOSS)
    torch.testing.assert_close(found[0], (bias[0] + 1).view(3, 1, 1).expand(3, 64, 64))


def test_decolorized() -> None:
    params, golden = transforms()
    weights = torch.tensor(params["decolorized"]["gray_weights"])
    found = decolorize(golden["im_64"].expand(len(weights), -1, -1, -1), weights)
    for index, image in enumerate(found):
        torch.testing.assert_close(image, golden[f"dc.gray{index}_64"], rtol=0, atol=LOSS)


MODELS = {
    "zoomed_in_a": (ZoomedIn, {"integrated_m075": 0.75, "zoomed_in_full": 0}, "zi.full_288"),
    "zoomed_out_a": (ZoomedOut, {"masked075_l10_t37": 0.75, "zoomed_out_full_l10_t37": 0}, "zo.src_160"),
    "distorted_a": (Distorted, {"distorted1": 0, "blurred": 0}, "im_224"),
    "decolorized_a": (Decolorized, {"decolorized1": 0}, "im_224"),
}


def drawn_for(case: str, params: dict[str, Any], golden: dict[str, Tensor], mask: Tensor | None) -> Degradation:
    if case.endswith("l10_t37"):
        return Placement(mask, torch.tensor([[10, 37]]))
    if case == "distorted1":
        cx, cy, strength = params["distorted"]["cx_cy_m"][1]
        return Distortion(mask, torch.tensor([[cx, cy]]), torch.tensor([strength]))
    if case == "blurred":
        return Blur(mask, golden["bl.weight"].unsqueeze(0), golden["bl.bias"].unsqueeze(0))
    if case == "decolorized1":
        return Mixture(mask, torch.tensor([params["decolorized"]["gray_weights"][1]]))
    return Degradation(mask)


@pytest.mark.parametrize(("name", "case"), [(name, case) for name, (_, cases, _) in MODELS.items() for case in cases])
def test_whole_models(name: str, case: str) -> None:
    params, golden = transforms()
    kind, cases, view = MODELS[name]
    model = load_file(GOLDENS / "beyond_masking" / f"model_{name}.safetensors")
    kind = Blurred if case == "blurred" else kind
    channels = {"in_chans": 1} if kind is Decolorized else None
    task = tiny(kind, channels, mask_ratio=cases[case])
    task.load_released(with_prefix(model, "w."))
    drawn = drawn_for(case, params, golden, mask_of(golden) if cases[case] else None)
    output = task(Batch(golden[view].unsqueeze(0)), drawn)
    loss = output.loss_sum / output.num_targets
    assert float(loss.detach()) == pytest.approx(float(model[f"{case}.loss"][0]), abs=LOSS)
    loss.backward()
    parameters = dict(task.named_parameters())
    for key, expected in with_prefix(model, f"{case}.grad.").items():
        ours = _our_name(key.replace("attn.q_bias", "attn.qkv.bias"))
        found = parameters[ours].grad[: len(expected)]
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("task", [ZoomedIn, ZoomedOut])
@pytest.mark.parametrize(("image", "patch"), [(32, 4), (56, 8), (96, 16), (160, 32), (98, 14)])
def test_misaligned_targets_at_any_size(task: type[Recover], image: int, patch: int) -> None:
    """Predicting the whole view right leaves no error in what is compared with the whole view; predicting nothing does."""
    backbone = create_backbone("vit_tiny_patch16_224", img_size=image, patch_size=patch, embed_dim=24, depth=1, num_heads=2)
    objective = task(backbone, width=24, depth=1, num_heads=2)
    size = objective.view_size
    assert abs(size / image - (9 / 7 if task is ZoomedIn else 5 / 7)) < 1 / image
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    drawn = objective.corrupt(Batch(images), torch.Generator().manual_seed(0))
    assert objective.degrade(images, drawn).shape == (2, 3, image, image)
    right = normalised_patches(area_resize(objective.pixels(images), image), patch)
    errors = [objective.losses(predicted, images, drawn)[task is ZoomedIn] for predicted in (right, torch.zeros_like(right))]
    assert float(errors[0].max()) < 1e-6 < 1e-2 < float(errors[1].min())


def test_the_centre_of_a_zoomed_in_prediction_lies_on_the_input() -> None:
    """What a predicted pixel changes in the centre's loss is where it lies in the view, cut to the input."""
    task = tiny(ZoomedIn)
    (size, patch, grid), params = sizes(), json_of("transforms")["params"]["zoomed_in"]
    predicted = torch.zeros(1, *prediction().shape, requires_grad=True)
    of_patches, _ = task.losses(predicted, torch.randn(1, 3, params["full"], params["full"]), Degradation(None))
    of_patches[0, 0].backward()
    touched = unpatchify(predicted.grad, (grid, grid), patch)[0].abs().sum(0).nonzero()
    first, last = params["offset"] * size // params["full"], -(-(params["offset"] + patch) * size // params["full"]) - 1
    assert touched.amin(0).tolist() == [first, first]
    assert touched.amax(0).tolist() == [last, last]


def test_draws_are_those_of_the_image_alone() -> None:
    """What is drawn for the first images does not depend on how many follow, nor on what they show."""
    for kind in (ZoomedOut, Distorted, Blurred, Decolorized):
        task = tiny(kind)
        size = task.view_size
        first = task.corrupt(Batch(torch.zeros(4, 3, size, size)), torch.Generator().manual_seed(5))
        again = task.corrupt(Batch(torch.ones(4, 3, size, size)), torch.Generator().manual_seed(5))
        for field in dataclasses.fields(first):
            values = [getattr(drawn, field.name) for drawn in (first, again)]
            assert values[0] is values[1] is None or torch.equal(*values)


def test_published_draws_are_one_for_a_batch() -> None:
    for task, name in ((tiny(ZoomedOut, one_place=True), "place"), (tiny(Decolorized, one_mixture=True), "weights")):
        size = task.view_size
        drawn = task.corrupt(Batch(torch.zeros(8, 3, size, size)), torch.Generator().manual_seed(5))
        assert len(getattr(drawn, name).unique(dim=0)) == 1


def test_masking_spares_the_encoder() -> None:
    params = json_of("transforms")["params"]
    task, view = tiny(ZoomedIn, mask_ratio=params["mask"]["ratio"]), params["zoomed_in"]["full"]
    rows: list[int] = []
    task.backbone.blocks[0].register_forward_hook(lambda _, inputs, __: rows.append(inputs[0].shape[1]))
    batch = Batch(torch.zeros(2, 3, view, view))
    task(batch, task.corrupt(batch, torch.Generator().manual_seed(0)))
    assert rows == [params["mask"]["keep"]] == [task.sequence_length]


def test_fixed_positions_are_a_setting() -> None:
    task: nn.Module = tiny(MaskPixels, fixed_positions=True)
    torch.testing.assert_close(
        task.backbone.pos_embed.data, sinusoid_table(sizes()[2] ** 2, json_of("model")["config"]["encoder_embed_dim"])
    )
    assert not task.backbone.pos_embed.requires_grad
