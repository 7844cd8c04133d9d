"""An objective of your own: images are turned by 0, 90, 180 or 270 degrees, and the turn is predicted (Gidaris et al., 2018).

    python examples/own_objective.py [RUN]

It is trained on digits. An objective defines what is drawn (`corrupt`) and its loss (`forward`); batches, accumulation, resuming,
checkpoints and evaluation come with it. The suite in `tests/contracts` accepts this one.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from mapet import Batch
from mapet.compat import VisionTransformer
from mapet.objectives import Objective, ObjectiveOutput


@dataclass(frozen=True)
class Turns:
    """How often each image is turned by 90 degrees.

    Args:
        turns: (B,) int64, 0 to 3.
    """

    turns: Tensor


class Rotation(Objective[Turns]):
    """Tells from the mean of the patches by how much an image was turned.

    Args:
        backbone: A plain timm ViT for square images, trained in place.
    """

    summary = "by how many quarter turns is the image turned?"
    needs = ()  # neither visual tokens, nor pixels as they were before normalisation

    def __init__(self, backbone: VisionTransformer) -> None:
        super().__init__(backbone)
        self.head = nn.Linear(backbone.embed_dim, 4)

    def corrupt(self, batch: Batch, generator: torch.Generator) -> Turns:
        """Draws from `generator` alone, one entry an image: so runs resume exactly and batches can be split."""
        device = batch.images.device
        return Turns(torch.randint(4, (len(batch.images),), generator=generator, device=generator.device).to(device))

    def forward(self, batch: Batch, corruption: Turns, return_logits: bool = False) -> ObjectiveOutput:
        """Cross-entropy summed over images, not averaged: whoever trains divides by `num_targets` of the whole batch."""
        every_turn = torch.stack([batch.images.rot90(turns, dims=(2, 3)) for turns in range(4)], dim=1)
        turned = every_turn[torch.arange(len(batch.images), device=every_turn.device), corruption.turns]
        patches = self.backbone.forward_features(turned)[:, self.backbone.num_prefix_tokens :]
        loss_sum = cross_entropy(self.head(patches.mean(dim=1)), corruption.turns, reduction="sum")
        return ObjectiveOutput(loss_sum, torch.ones_like(corruption.turns).sum())


def main(out: str = "runs/own_objective", *changes: str) -> None:
    """Pre-trains and judges it."""
    from mapet.config import load_recipe
    from mapet.evaluation.evaluate import evaluate
    from mapet.evaluation.probes.knn import KNN
    from mapet.pretraining.pretrain import pretrain
    from mapet.runtime.device import choose_device

    named = ["objective.name=own_objective:Rotation", "objective.options={}"]  # importable from this folder
    run = pretrain("digits", load_recipe("digits", [*named, *changes]), out)
    print(evaluate(run, None, [KNN()], device=choose_device("cpu"))[0].line())


if __name__ == "__main__":
    main(*sys.argv[1:])
