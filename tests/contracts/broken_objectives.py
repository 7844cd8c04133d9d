"""Objectives that break one promise each, as one might by mistake; `BROKEN` says which check must notice."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from mapet.compat import VisionTransformer
from mapet.data.batch import Batch
from mapet.models.two_stream import mapet_visibility
from mapet.objectives.base import ObjectiveOutput, token_loss
from mapet.objectives.encoding import gather_rows, masked_sequence, run_blocks
from mapet.objectives.mapet import MaPeT, PermutationCorruption
from mapet.objectives.masking import MaskCorruption, random_mask
from mapet.objectives.mim import MIM
from mapet.objectives.pixels import PixelObjective
from tests.contracts import objective_suite as suite
from tests.contracts.tiny_objectives import PATCH


class OpenMIM(MIM):
    """MIM with a seam at which the next ones break it."""

    def encode(self, images: Tensor, mask: Tensor) -> Tensor:
        return run_blocks(self.backbone, masked_sequence(self.backbone, images, mask, self.mask_token))

    def forward(self, batch: Batch, corruption: MaskCorruption, return_logits: bool = False) -> ObjectiveOutput:
        hidden, valid = corruption.hidden_patches()
        logits = self.predict(gather_rows(self.encode(batch.images, corruption.mask)[:, 1:], hidden))
        targets = self.check_tokens(batch).gather(1, hidden)
        return token_loss(logits, targets, hidden, valid=valid, return_logits=return_logits)


class ShowsWhatIsHidden(OpenMIM):
    def encode(self, images: Tensor, mask: Tensor) -> Tensor:
        return super().encode(images, torch.zeros_like(mask))


class SeesOwnContent(MaPeT):
    @staticmethod
    def visibility(prefix_length: int, num_targets: int) -> Tensor:
        contents, queries = mapet_visibility(prefix_length, num_targets).chunk(2)
        queries[:, prefix_length:] |= torch.eye(num_targets, dtype=torch.bool)
        return torch.cat([contents, queries])


class PredictsTheNextPatch(MIM):
    """Takes the tokens of the neighbours on the right."""

    def forward(self, batch: Batch, corruption: MaskCorruption, return_logits: bool = False) -> ObjectiveOutput:
        ids = None if batch.token_ids is None else batch.token_ids.roll(-1, dims=1)
        return super().forward(Batch(batch.images, ids), corruption, return_logits)


class NamesOtherPatches(MIM):
    """Predicts rightly, but says that it was about other patches."""

    def forward(self, batch: Batch, corruption: MaskCorruption, return_logits: bool = False) -> ObjectiveOutput:
        output = super().forward(batch, corruption, return_logits)
        positions = output.target_positions
        return dataclasses.replace(output, target_positions=None if positions is None else positions.flip(1))


class HidesTheSameEverywhere(MIM):
    def corrupt(self, batch: Batch, generator: torch.Generator) -> MaskCorruption:
        return MaskCorruption(super().corrupt(batch, generator).mask[:1].expand(len(batch.images), -1))


class HidesTheSameAlways(MaPeT):
    def corrupt(self, batch: Batch, generator: torch.Generator) -> PermutationCorruption:
        return super().corrupt(batch, torch.Generator().manual_seed(0))


class DrawsFromTheGlobalGenerator(MIM):
    def corrupt(self, batch: Batch, generator: torch.Generator) -> MaskCorruption:
        return MaskCorruption(random_mask(len(batch.images), self.num_patches, self.num_targets, torch.default_generator, "cpu"))


class AveragesOverTheBatch(MIM):
    def forward(self, batch: Batch, corruption: MaskCorruption, return_logits: bool = False) -> ObjectiveOutput:
        output = super().forward(batch, corruption, return_logits)
        return dataclasses.replace(output, loss_sum=output.loss_sum / max(1, len(batch.images)) ** 2)


class TrainsItsHeadOnly(OpenMIM):
    def encode(self, images: Tensor, mask: Tensor) -> Tensor:
        return super().encode(images, mask).detach()


class ChangesTheBackbone(MIM):
    def __init__(self, backbone: VisionTransformer, vocab_size: int, num_context: float | None = None) -> None:
        super().__init__(backbone, vocab_size, num_context)
        backbone.mask_token = self.mask_token


class ForgetsWhatItLearned(MIM):
    """Counts its steps where no checkpoint can see it."""

    steps = 0

    def before_optimizer_step(self) -> None:
        self.steps += 1

    def predict(self, features: Tensor) -> Tensor:
        return super().predict(features) * (1 + self.steps)


class PeeksAtPixels(PixelObjective[MaskCorruption]):
    """Predicts the mean of hidden patches, which it forgot to hide."""

    summary = "the mean colour of patches"

    def __init__(self, backbone: VisionTransformer) -> None:
        super().__init__(backbone)
        self.head = nn.Linear(backbone.embed_dim, 1)

    def corrupt(self, batch: Batch, generator: torch.Generator) -> MaskCorruption:
        return MaskCorruption(random_mask(len(batch.images), self.num_patches, 8, generator, "cpu"))

    def forward(self, batch: Batch, corruption: MaskCorruption, return_logits: bool = False) -> ObjectiveOutput:
        features = self.backbone.forward_features(batch.images)[:, 1:]
        means = nn.functional.avg_pool2d(self.pixels(batch.images), PATCH).mean(dim=1).flatten(1)
        errors = (self.head(features).squeeze(2) - means).square() * corruption.mask
        return ObjectiveOutput(errors.sum(), corruption.mask.sum())


BROKEN: dict[type, suite.Check] = {
    ShowsWhatIsHidden: suite.content_of_a_target_never_reaches_its_own_prediction,
    SeesOwnContent: suite.content_of_a_target_never_reaches_its_own_prediction,
    PredictsTheNextPatch: suite.targets_are_the_tokens_of_their_patches,
    NamesOtherPatches: suite.targets_are_the_tokens_of_their_patches,
    HidesTheSameEverywhere: suite.every_image_has_a_draw_of_its_own,
    HidesTheSameAlways: suite.another_seed_hides_something_else,
    DrawsFromTheGlobalGenerator: suite.draws_come_from_the_generator_alone,
    AveragesOverTheBatch: suite.loss_is_the_sum_over_micro_batches,
    TrainsItsHeadOnly: suite.gradient_reaches_all_but_the_unused,
    ChangesTheBackbone: suite.backbone_stays_a_timm_model,
    ForgetsWhatItLearned: suite.state_dict_holds_all_that_was_learned,
    PeeksAtPixels: suite.hidden_pixels_never_enter_the_blocks,
}
