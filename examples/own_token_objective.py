"""An objective of your own that predicts visual tokens and hides nothing: every patch predicts its own token, from the whole image.

    python examples/own_token_objective.py [RUN]

It distils the tokenizer into the backbone. `TokenObjective` adds the head and checks the tokens; `MaskedTokenObjective` also adds a
mask token and `num_context`. The suite in `tests/contracts` accepts this one.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import torch

from mapet import Batch
from mapet.objectives import ObjectiveOutput
from mapet.objectives.base import TokenObjective, token_loss


@dataclass(frozen=True)
class Nothing:
    """No patch is hidden."""


class EveryToken(TokenObjective[Nothing]):
    """Predicts the token of every patch from the whole image."""

    summary = "the token of every patch, nothing hidden"

    def corrupt(self, batch: Batch, generator: torch.Generator) -> Nothing:
        """Draws nothing."""
        return Nothing()

    def forward(self, batch: Batch, corruption: Nothing, return_logits: bool = False) -> ObjectiveOutput:
        """Cross-entropy summed over all patches; logits are in raster order."""
        token_ids = self.check_tokens(batch)
        patches = self.backbone.forward_features(batch.images)[:, self.backbone.num_prefix_tokens :]
        positions = torch.arange(self.num_patches, device=patches.device).expand(len(patches), -1)
        return token_loss(self.head(patches), token_ids, positions, return_logits=return_logits)


def main(out: str = "runs/own_token_objective", *changes: str) -> None:
    """Pre-trains and evaluates it."""
    from mapet.config import load_recipe
    from mapet.evaluation.evaluate import evaluate
    from mapet.evaluation.probes.knn import KNN
    from mapet.pretraining.pretrain import pretrain
    from mapet.runtime.device import choose_device

    named = ["objective.name=own_token_objective:EveryToken", "objective.options={}"]  # importable from this folder
    run = pretrain("digits", load_recipe("digits", [*named, *changes]), out)
    print(evaluate(run, None, [KNN()], device=choose_device("cpu"))[0].line())


if __name__ == "__main__":
    main(*sys.argv[1:])
