"""VQ-KD's codebook: unit vectors that follow the codes they are chosen for, without a gradient.

Several processes see one codebook: what they start it from and what they move it by is put together first, so that it is the same
in all of them, bit for bit.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mapet.runtime.processes import all_sum_, broadcast_, gather_rows
from mapet.tokenizers.clustering.nearest import nearest_centroid

START_ITERATIONS = 10
DECAY = 0.99
# How many steps "recently used" looks back, the time in which an unchanged entry moves 63 % of its way.
RECENT_STEPS = 100


@torch.no_grad()
def start_codebook(codes: Tensor, vocab_size: int, generator: torch.Generator) -> Tensor:
    """A codebook (vocab_size, c) from the codes of a first batch: spherical k-means, from random ones among them.

    Args:
        codes: (n, c) unit vectors of this process; those of all processes are clustered together.
        vocab_size: Number of entries. Codes are drawn twice where there are fewer than that.
        generator: Source of the draw, in the same state in every process.
    """
    together = gather_rows(codes)
    few = len(together) < vocab_size
    indices = (
        torch.randint(len(together), (vocab_size,), generator=generator)
        if few
        else torch.randperm(len(together), generator=generator)[:vocab_size]
    )
    means, _ = spherical_kmeans(together, together[indices.to(codes.device)], START_ITERATIONS)
    return broadcast_(means)


def spherical_kmeans(points: Tensor, means: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """Moves unit vectors `means` (k, c) among unit vectors `points` (n, c); a mean that loses all its points stays.

    Returns:
        The means (k, c), and how many points each had (k,) before the last move.
    """
    counts = means.new_zeros(len(means), dtype=torch.int64)
    for _ in range(iterations):
        sums, counts = _sums(points, nearest_centroid(points, means), len(means))
        means = _directions(sums, counts, means)
    return means, counts


@torch.no_grad()
def moved_codebook(codebook: Tensor, codes: Tensor, ids: Tensor, decay: float = DECAY) -> tuple[Tensor, Tensor]:
    """The codebook after a step, and how often each entry was chosen in all processes.

    An entry goes a hundredth of the way towards the mean direction of the codes that chose it, however many they are; one that
    nobody chose stays where it is.

    Args:
        codebook: (k, c) unit vectors.
        codes: (n, c) unit vectors of this process.
        ids: (n,) the entry that each of them chose.
        decay: Share of the old codebook in the new one.

    Returns:
        The new codebook (k, c), and counts (k,) int64.
    """
    sums, counts = _sums(codes, ids, len(codebook))
    counts = all_sum_(counts)
    target = _directions(all_sum_(sums), counts, codebook)
    return F.normalize(decay * codebook + (1 - decay) * target, dim=1), counts


class RecentUse(nn.Module):
    """How often each entry was chosen in the last `RECENT_STEPS` steps; part of the training state.

    Args:
        vocab_size: Number of entries.
    """

    counts: Tensor

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.register_buffer("counts", torch.zeros(RECENT_STEPS, vocab_size, dtype=torch.int32))

    def add(self, counts: Tensor, step: int) -> None:
        """Notes the counts (vocab_size,) of step number `step`."""
        self.counts[step % RECENT_STEPS] = counts

    def used(self) -> int:
        """Entries that were chosen at least once."""
        return int((self.counts.sum(0) > 0).sum())

    def perplexity(self) -> float:
        """The exponential of the entropy of the choices: as many equally frequent entries would be as hard to guess."""
        shares = self.counts.sum(0).double()
        shares = shares[shares > 0] / shares.sum()
        return float(torch.exp(-(shares * shares.log()).sum()))


def _sums(codes: Tensor, ids: Tensor, vocab_size: int) -> tuple[Tensor, Tensor]:
    """The sum of the codes (k, c) that chose each entry, and their number (k,)."""
    sums = codes.new_zeros(vocab_size, codes.shape[1]).index_add_(0, ids, codes)
    return sums, torch.bincount(ids, minlength=vocab_size)


def _directions(sums: Tensor, counts: Tensor, otherwise: Tensor) -> Tensor:
    """The mean direction of every entry's codes; `otherwise` where it has none."""
    means = F.normalize(sums / counts.clamp_min(1)[:, None], dim=1)
    return torch.where(counts[:, None] > 0, means, otherwise)
