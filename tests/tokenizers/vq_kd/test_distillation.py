"""How VQ-KD learns, against arrays of the published implementation: losses, gradients, codebook."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mapet.errors import ModelError
from mapet.tokenizers.vq_kd.codebook import RECENT_STEPS, RecentUse, moved_codebook, spherical_kmeans, start_codebook
from mapet.tokenizers.vq_kd.distillation import Distillation
from mapet.tokenizers.vq_kd.tokenizer import VQKD
from tests.golden import load_golden, with_prefix

OUTPUT, GRADIENT = 2e-5, 1e-4


@pytest.fixture(scope="module")
def golden():
    return load_golden("mim/vqkd_tiny_a")


@pytest.fixture
def model(golden) -> Distillation:
    description, tensors = golden
    released, config = with_prefix(tensors, "sd."), description["config"]
    tokenizer = VQKD.from_released(released, num_heads=config["enc_heads"])
    model = Distillation(tokenizer, config["out_dim"], config["dec_depth"], config["dec_dim"], config["dec_heads"])
    model.load_released(released)
    return model


def patches(tensors, name: str = "in.teacher_target"):
    """Teacher features (B, gh, gw, dim) and the number of patches."""
    flat = tensors[name]
    side = round(flat.shape[1] ** 0.5)
    return flat.unflatten(1, (side, side)), flat.shape[0] * flat.shape[1]


def near(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return torch.allclose(found, expected, rtol=0, atol=OUTPUT)


def test_what_the_decoder_makes_of_the_published_codes(golden, model):
    tensors = golden[1]
    entries = tensors["out.quantize_straight_through"].permute(0, 2, 3, 1).flatten(0, 2)
    with torch.no_grad():
        assert near(model.decode(entries), tensors["out.rec"].flatten(0, 1))


def test_losses_and_gradients_of_the_published_model(golden, model):
    tensors = golden[1]
    targets, count = patches(tensors)
    output = model(tensors["in.images"], targets)
    assert near(output.commitment / count, tensors["train1.quant_loss"])
    assert near(output.reconstruction / count, tensors["train1.rec_loss"])
    ((output.commitment + output.reconstruction) / count).backward()
    expected = with_prefix(tensors, "train1.grad.")
    assert len(expected) == 59
    for name, gradient in expected.items():
        error = (own_gradient(model, name) - gradient).abs().max()
        assert error <= GRADIENT * gradient.abs().max(), name


def own_gradient(model: Distillation, published: str) -> torch.Tensor:
    """The gradient of what is called `published` there."""
    name = published if published.startswith("decode") else f"tokenizer.{published}"
    parameters = dict(model.named_parameters())
    for part, end in ((0, "q_bias"), (2, "v_bias")):
        if name.endswith(end):
            gradient = parameters[name.replace(end, "qkv.bias")].grad
            assert gradient is not None
            return gradient.chunk(3)[part]
    gradient = parameters[name].grad
    assert gradient is not None
    return gradient


def test_codebook_over_three_steps(golden, model):
    tensors = golden[1]
    inputs = {1: ("in.images", "in.teacher_target"), 2: ("in.images_step2", "in.teacher_target_step2")}
    cluster_size = tensors["sd.quantize.cluster_size"]
    for step in (1, 2, 3):
        images, target = inputs[2 if step == 2 else 1]
        targets, count = patches(tensors, target)
        output = model(tensors[images], targets)
        total = (output.commitment + output.reconstruction).detach() / count
        model.update_codebook(output, step)
        assert near(total, tensors[f"train{step}.total_loss"]), step
        assert near(model.tokenizer.codebook, tensors[f"train{step}.codebook_after"]), step
        # The published statistic of use: a moving average of what is counted here.
        cluster_size = 0.99 * cluster_size + 0.01 * model.recent.counts[step]
        assert near(cluster_size, tensors[f"train{step}.cluster_size_after"]), step
    assert model.recent.used() >= golden[0]["codes_used_step1"]


def test_start_of_the_codebook(golden, model):
    tensors = golden[1]
    with torch.no_grad():
        samples = model.tokenizer.codes(tensors["kmeans.images"]).flatten(0, 2)
    assert near(samples, tensors["kmeans.samples"])
    means, counts = spherical_kmeans(samples, tensors["kmeans.initial_means"], 10)
    assert near(means, tensors["kmeans.means_after_10_iters"])
    assert torch.equal(counts, tensors["kmeans.bins_last_iter"])
    model.tokenizer.codebook.copy_(means)
    output = model(tensors["kmeans.images"], torch.ones(*tensors["kmeans.images"].shape[:1], 4, 4, golden[0]["config"]["out_dim"]))
    assert torch.equal(output.ids, tensors["kmeans.tokens"].flatten())
    assert near(output.commitment / len(samples), tensors["kmeans.quant_loss"])
    model.update_codebook(output, 0)
    assert near(model.tokenizer.codebook, tensors["kmeans.codebook_after_first_forward"])


def test_start_depends_on_the_generator_alone_and_copes_with_few_codes():
    codes = torch.nn.functional.normalize(torch.randn(40, 6, generator=torch.Generator().manual_seed(1)), dim=1)
    first, again, other = (start_codebook(codes, 16, torch.Generator().manual_seed(seed)) for seed in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    many = start_codebook(codes, 100, torch.Generator().manual_seed(5))
    assert many.shape == (100, 6)
    for book in (first, many):
        assert torch.allclose(book.norm(dim=1), torch.ones(len(book)))


def test_entries_that_nobody_chose_stay(golden):
    codebook = golden[1]["sd.quantize.embedding.weight"]
    codes = codebook[3:5]
    moved, counts = moved_codebook(codebook, codes.flip(0), torch.tensor([3, 4]))
    assert counts.tolist() == [0, 0, 0, 1, 1] + [0] * 59
    unchanged = torch.ones(64, dtype=torch.bool)
    unchanged[3:5] = False
    assert torch.allclose(moved[unchanged], codebook[unchanged], atol=1e-6)
    assert not torch.allclose(moved[3:5], codebook[3:5], atol=1e-4)


def test_a_mean_that_loses_its_points_stays():
    points = torch.nn.functional.normalize(torch.tensor([[1.0, 0.1], [1.0, -0.1], [1.0, 0.3]]), dim=1)
    means, counts = spherical_kmeans(points, torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), 3)
    assert counts.tolist() == [3, 0]
    assert torch.equal(means[1], torch.tensor([-1.0, 0.0]))
    torch.testing.assert_close(means[0], torch.nn.functional.normalize(points.sum(0), dim=0))


def test_recent_use_forgets():
    recent = RecentUse(4)
    recent.add(torch.tensor([1, 0, 0, 7]), 0)
    recent.add(torch.tensor([0, 8, 0, 0]), 1)
    assert recent.used() == 3
    recent.add(torch.tensor([0, 2, 0, 0]), RECENT_STEPS)
    assert recent.used() == 1
    recent.add(torch.tensor([10, 0, 0, 0]), 2)
    assert recent.perplexity() == pytest.approx(2)


def test_only_encoder_and_decoder_have_gradients(model):
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert "tokenizer.encoder.pos_embed" in names
    assert not any("codebook" in name or "recent" in name for name in names)


def test_load_released_is_strict(golden, model):
    released = with_prefix(golden[1], "sd.")
    released.pop("decoder.cls_token")
    with pytest.raises(ModelError, match=r"Missing: decoder\.cls_token"):
        model.load_released(released)


def test_wrong_targets_change_the_loss(golden, model):
    targets, _ = patches(golden[1])
    output = model(golden[1]["in.images"], targets)
    turned = model(golden[1]["in.images"], targets.transpose(1, 2))
    assert torch.equal(output.ids, turned.ids)
    assert (output.reconstruction - turned.reconstruction).abs() > 0.1
    assert replace(output, reconstruction=turned.reconstruction).commitment == turned.commitment
