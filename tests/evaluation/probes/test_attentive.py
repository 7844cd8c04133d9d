from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from mapet.errors import SettingsError
from mapet.evaluation.presets import setting_names
from mapet.evaluation.probes import attentive as module
from mapet.evaluation.probes.attentive import AttentiveHead, AttentiveProbe, Tokens, build_probe
from mapet.evaluation.probes.representations import patch_tokens
from mapet.runtime.seeding import seeded_globally
from tests.evaluation.planted import tiny_frozen
from tests.tiny import assert_equal_weights, weights_of

QUICK = AttentiveProbe(epochs=3, min_steps=1, batch_size=16, lr=3e-3)


def naive_head(head: AttentiveHead, tokens: Tensor) -> Tensor:
    """Scores (B, C) in float64: normalise, one query for every head looks at the tokens, MLP, linear layer."""
    head, tokens = head.double(), tokens.double()
    pool, norm, size = head.pool, head.normaliser, tokens.shape[2]
    tokens = (tokens - norm.running_mean) / (norm.running_var + norm.eps).sqrt()
    query = pool.q(pool.latent[0, 0])
    keys, values = pool.kv(tokens).split(size, dim=2)
    width = size // pool.num_heads
    seen = []
    for number in range(pool.num_heads):
        part = slice(number * width, (number + 1) * width)
        weights = (keys[:, :, part] @ query[part] / width**0.5).softmax(dim=1)
        seen.append((weights[:, :, None] * values[:, :, part]).sum(dim=1))
    rows = pool.proj(torch.cat(seen, dim=1))
    return head.classifier(rows + pool.mlp(pool.norm(rows)))


def test_scores_are_those_of_attention_written_out() -> None:
    with seeded_globally(0, "test"):
        head = AttentiveHead(24, 2, 5).requires_grad_(False).eval()
        torch.nn.init.normal_(head.classifier.weight)
        head.normaliser.running_mean.normal_()  # type: ignore[union-attr]
        head.normaliser.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
        tokens = torch.randn(7, 16, 24).half()
    scores = head(tokens)
    torch.testing.assert_close(scores.double(), naive_head(head, tokens), rtol=1e-4, atol=1e-5)


def test_tokens_are_the_patches_behind_the_final_norm() -> None:
    frozen = tiny_frozen()
    images = torch.randint(256, (3, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    tokens = patch_tokens(frozen)(images)
    assert (tokens.shape, tokens.dtype) == ((3, 16, 24), torch.float16)
    torch.testing.assert_close(tokens.float().mean(dim=1), frozen.features(images)[0], rtol=1e-3, atol=1e-3)


def test_one_patch_that_tells_the_class_is_found() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(2, (200,), generator=generator)
    tokens = torch.randn(200, 8, 24, generator=generator)
    places = torch.randint(8, (200,), generator=generator)
    tokens[torch.arange(200), places, 0] = 12.0  # look here
    tokens[torch.arange(200), places, 1] = 6.0 * (2 * labels - 1)
    tokens[:, :, 1] -= tokens[:, :, 1].mean(dim=1, keepdim=True)  # the mean of the patches tells nothing

    class Planted(Tokens):
        def __init__(self, frozen, source, part) -> None:
            self._frozen, self._cached = frozen, (tokens.half(), labels)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "Tokens", Planted)
        found = AttentiveProbe(epochs=40, min_steps=1, batch_size=50, lr=3e-3).evaluate(tiny_frozen())
    assert found.values["top1"] > 0.98


def test_a_cache_that_is_too_small_changes_nothing(monkeypatch) -> None:
    cached, kept = tiny_frozen(), QUICK.evaluate(tiny_frozen())
    monkeypatch.setattr(module, "CACHE_BYTES", 0)
    assert Tokens(cached, cached.train, "training")._cached is None
    assert QUICK.evaluate(cached) == kept
    assert QUICK.evaluate(tiny_frozen(workers=1)) == kept


def test_the_backbone_and_the_global_generator_stay_as_they_are() -> None:
    frozen = tiny_frozen()
    before, state = weights_of(frozen.backbone), torch.get_rng_state()
    QUICK.fit(frozen)
    assert_equal_weights(weights_of(frozen.backbone), before)
    assert torch.equal(torch.get_rng_state(), state)


def test_test_labels_change_nothing_that_is_trained() -> None:
    one, other = tiny_frozen(), tiny_frozen()
    assert other.test.labels is not None
    other.test.labels = 1 - other.test.labels
    assert_equal_weights(weights_of(QUICK.fit(one)), weights_of(QUICK.fit(other)))
    assert QUICK.evaluate(one).values["top1"] == pytest.approx(1 - QUICK.evaluate(other).values["top1"])


def test_it_has_the_heads_of_the_backbone_and_starts_from_its_seed() -> None:
    frozen = tiny_frozen()
    one, again, other = (build_probe(frozen, seed) for seed in (0, 0, 1))
    assert one.pool.num_heads == 2
    assert_equal_weights(weights_of(one), weights_of(again))
    assert not torch.equal(one.pool.latent, other.pool.latent)


def test_another_pooling_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"'attentive' cannot pool by 'cls'\. Allowed: mean"):
        AttentiveProbe(pool="cls")


@pytest.mark.parametrize("name", [name for name in setting_names(AttentiveProbe) if name != "pool"])
def test_the_hash_changes_with_every_setting(name: str) -> None:
    changed = dataclasses.replace(AttentiveProbe(), **{name: getattr(AttentiveProbe(), name) + 1})
    assert changed.hash != AttentiveProbe().hash
