from __future__ import annotations

import torch

from mapet.tokenizers.clustering.start import plus_plus
from tests.tokenizers.clustering.test_kmeans import seeded


def test_seeding_does_not_fall_for_what_outliers_gain_for_themselves():
    centres = 10 * torch.randn(20, 16, generator=seeded())
    crowd = centres.repeat(30, 1) + torch.randn(600, 16, generator=seeded(1))
    outliers = 60 * torch.nn.functional.normalize(torch.randn(12, 16, generator=seeded(2)))
    draws = torch.rand(40, 6, generator=seeded(3), dtype=torch.float64)
    few, many = (plus_plus(torch.cat([crowd, outliers]), draws, share) for share in (1 / 256, 1.0))
    assert int((few.norm(dim=1) > 59).sum()) < 6 < 10 < int((many.norm(dim=1) > 59).sum())
    assert len(few.unique(dim=0)) == 40
