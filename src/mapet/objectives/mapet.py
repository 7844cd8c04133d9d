"""MaPeT: masked and permuted prediction of visual tokens.

A random permutation of the patches is cut into a context and T targets. Every target is predicted from the context, from the
contents of the targets before it, and from mask tokens (a learned vector plus position) in place of itself and of the targets
after it. So the model knows where everything is, as in masked prediction, and learns the dependencies between targets, as in
permuted prediction; every row sees exactly N positions, as in fine-tuning.

    minimise   - sum_{t > c}  log p( token(z_t) | patches z_{<t},  mask tokens z_{>=t} )      over permutations z

Source: Baraldi et al., "Learning to Mask and Permute Visual Tokens for Vision Transformer Pre-Training", section 3.2. The cutting
point c of the paper counts the class token; `num_context` = c - 1 counts patches. Layout and masks: `models/two_stream.py`.
"""

from __future__ import annotations

from mapet.models.two_stream import mapet_visibility
from mapet.objectives.permutation import PermutedTokenObjective


class MaPeT(PermutedTokenObjective):
    """Masked and permuted pre-training: targets see the context, earlier targets, and mask tokens for all others."""

    summary = "tokens in a random order, every target sees mask tokens for the rest"
    mask_tokens_are_seen = True
    visibility = staticmethod(mapet_visibility)
