"""PIM: permuted prediction of visual tokens, without mask tokens.

Every target is predicted from the context and from the contents of the targets before it in a random permutation; nothing
stands for the patches that come later, so early targets see less of the image than the fine-tuned model will.

    minimise   - sum_{t > c}  log p( token(z_t) | patches z_{<t} )      over permutations z

Source: the permuted baseline of Baraldi et al., section 3.1 and Table 2 (XLNet's objective on images). The query stream starts from
the mask vector plus the position of its target.
"""

from __future__ import annotations

from mapet.models.two_stream import pim_visibility
from mapet.objectives.mapet import PermutedTokenObjective


class PIM(PermutedTokenObjective):
    """Permuted pre-training: targets see the context and earlier targets."""

    summary = "tokens in a random order, every target sees only what came before"
    mask_tokens_are_seen = False
    visibility = staticmethod(pim_visibility)
