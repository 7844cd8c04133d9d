"""CAE: encode visible patches only, regress the representations of the hidden ones, and read their tokens from these.

The encoder never sees a mask token. A latent contextual regressor predicts the encoder's features of the hidden patches; a
decoder predicts tokens from them; a second loss compares them with the encoder's own features of the hidden patches
(no gradient). So encoding and solving the task are kept apart.

    minimise   sum_{i hidden}  - log p( token(i) | visible patches )  +  2 | guess(i) - encoder(hidden patches)_i |^2 / width

Source: Chen et al., "Context Autoencoder for Self-Supervised Representation Learning". In the released code the second encoder is a
copy of the first that lags one optimizer step behind (`teacher="lagging"`); its authors call the encoder itself as good (`"self"`).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mapet.checkpoints.projections import join_biases
from mapet.compat import VisionTransformer
from mapet.config.architecture import Depth, Heads, Width
from mapet.data.batch import Batch
from mapet.errors import ModelError, SettingsError, nearest
from mapet.models.backbone import grid_size
from mapet.models.backbone import num_heads as heads_of
from mapet.models.regressor import LayerNorm, Neck, sine_positions
from mapet.models.weights import init_linears, load_strictly
from mapet.objectives.base import IGNORED, MaskedTokenObjective, ObjectiveOutput, token_loss
from mapet.objectives.block_masks import block_masks
from mapet.objectives.encoding import encode_patches, gather_rows
from mapet.objectives.masking import MaskCorruption, random_mask

TEACHERS, MASKS = ("self", "lagging"), ("random", "block")


class CAE(MaskedTokenObjective[MaskCorruption]):
    """Context autoencoder on visual tokens.

    Args:
        backbone: A plain timm ViT, trained in place.
        vocab_size: Number of visual tokens.
        num_context: Number of patches that stay visible, or their share; by default half of them.
        mask: "random" patches, or "block" (rectangles, as published).
        teacher: Who represents the hidden patches: the encoder "self", or a copy "lagging" one optimizer step behind.
        width: Of regressor and decoder; by default the backbone's.
        num_heads: Of regressor and decoder; by default the backbone's.
        regressor_depth: Blocks of the regressor.
        decoder_depth: Blocks of the decoder.
        layer_scale: Initial layer scale of both.
        alignment: Weight of the distance between guesses and representations.
    """

    summary = "encode visible patches, regress the hidden ones, decode their tokens"

    def __init__(
        self,
        backbone: VisionTransformer,
        vocab_size: int,
        num_context: float | None = None,
        mask: str = "random",
        teacher: str = "self",
        width: Width | None = None,
        num_heads: Heads | None = None,
        regressor_depth: Depth = 4,
        decoder_depth: Depth = 4,
        layer_scale: float = 0.1,
        alignment: float = 2.0,
    ) -> None:
        super().__init__(backbone, vocab_size, 0.5 if num_context is None else num_context)
        for name, value, allowed in (("mask", mask, MASKS), ("teacher", teacher, TEACHERS)):
            if value not in allowed:
                raise SettingsError(f"CAE cannot have {name} '{value}'. {nearest(value, allowed)}")
        self.mask_kind, self.alignment = mask, alignment
        embed_dim = backbone.embed_dim
        width = embed_dim if width is None else width
        self.neck = Neck(width, num_heads or heads_of(backbone), regressor_depth, decoder_depth, float(layer_scale))
        self.project = nn.Identity() if width == embed_dim else nn.Sequential(nn.Linear(embed_dim, width), LayerNorm(width))
        self.head = nn.Linear(width, vocab_size)
        self.register_buffer("positions", sine_positions(grid_size(backbone), width), persistent=False)
        self.init_weights()
        init_linears(self.neck)
        init_linears(self.project)
        self.teacher = copy.deepcopy(backbone).requires_grad_(False) if teacher == "lagging" else None

    positions: Tensor

    @property
    def sequence_length(self) -> float:
        """Visible patches for the prediction and, without gradient, the hidden ones for the alignment; prefix tokens twice."""
        return self.num_patches + 2 * self.backbone.num_prefix_tokens

    def corrupt(self, batch: Batch, generator: torch.Generator) -> MaskCorruption:
        """Hides all but `num_context` patches of every image."""
        size, device = len(batch.images), batch.images.device
        if self.mask_kind == "block":
            mask = block_masks(size, grid_size(self.backbone), self.num_targets, generator, device, filling="blocks")
        else:
            mask = random_mask(size, self.num_patches, self.num_targets, generator, device)
        return MaskCorruption.of_known_counts(mask, self.num_targets, equal=True)

    def forward(self, batch: Batch, corruption: MaskCorruption, return_logits: bool = False) -> ObjectiveOutput:
        """Cross-entropy of the hidden tokens plus the weighted distance of guesses and representations; logits in raster order."""
        token_ids = self.check_tokens(batch)
        hidden, visible = self._split(corruption)
        guesses = self.guess(batch.images, visible, hidden)
        targets = token_ids.gather(1, hidden)
        logits = self.head(self.neck.decode(guesses, gather_rows(self.positions, hidden)))
        tokens = token_loss(logits, targets, hidden, return_logits=return_logits)
        distances = (guesses - self.represent(batch.images, hidden)).square().mean(dim=2)
        alignment = distances.masked_fill(targets == IGNORED, 0).sum()
        metrics = {**tokens.metrics, "alignment": alignment.detach()}
        loss_sum = tokens.loss_sum + self.alignment * alignment
        return ObjectiveOutput(loss_sum, tokens.num_targets, metrics, tokens.logits, tokens.target_positions)

    def guess(self, images: Tensor, visible: Tensor, hidden: Tensor) -> Tensor:
        """What the regressor thinks of the hidden patches, (B, T, width)."""
        encoded = self.project(encode_patches(self.backbone, images, visible))
        queries = self.mask_token.expand(*hidden.shape, -1)
        return self.neck.regress(encoded, queries, gather_rows(self.positions, visible), gather_rows(self.positions, hidden))

    @torch.no_grad()
    def represent(self, images: Tensor, hidden: Tensor) -> Tensor:
        """The teacher's features of the hidden patches alone, (B, T, width)."""
        return self.project(encode_patches(self.teacher or self.backbone, images, hidden))

    @torch.no_grad()
    def before_optimizer_step(self) -> None:
        """Lets a lagging teacher catch up with the encoder as it is before the optimizer moves it."""
        if self.teacher is not None:
            self.teacher.load_state_dict(self.backbone.state_dict())

    def load_released(self, state_dict: Mapping[str, Tensor]) -> None:
        """Loads a CAE pre-training checkpoint, under its published key names; its teacher only where there is one.

        Raises:
            ModelError: Lists the keys that are missing, left over or of another shape.
        """
        joined = join_biases(_cross_attention_biases(state_dict))
        renamed = {
            _our_name(key): value for key, value in joined.items() if self.teacher is not None or not key.startswith("teacher.")
        }
        load_strictly(self, renamed, optional=("backbone.head.", "teacher.head."))

    def _split(self, corruption: MaskCorruption) -> tuple[Tensor, Tensor]:
        """Hidden and visible patches in raster order, (B, T) and (B, V); every image must hide as many."""
        hidden, valid = corruption.hidden_patches()
        if valid is not None and not bool(valid.all()):
            counts = sorted(set(corruption.mask.sum(dim=1).tolist()))
            raise ModelError(f"CAE encodes visible patches only, so every image must hide equally many; these hide {counts}.")
        order = corruption.mask.to(torch.int8).argsort(dim=1, stable=True)
        return hidden, order[:, : self.num_patches - hidden.shape[1]]


_NAMES = (
    ("encoder.", "backbone."),
    ("gamma_1_cross", "attention_scale"),
    ("gamma_2_cross", "mlp_scale"),
    ("gamma_1", "ls1.gamma"),
    ("gamma_2", "ls2.gamma"),
    ("encoder_to_decoder_norm.", "project.1."),
    ("encoder_to_decoder.", "project.0."),
    ("pretext_neck.regressor_blocks.", "neck.regressor."),
    ("pretext_neck.decoder_blocks.", "neck.decoder."),
    ("pretext_neck.norm2.", "neck.decoder_norm."),
    ("pretext_neck.norm.", "neck.regressor_norm."),
    ("pretext_neck.head.", "head."),
    ("cross_attn.q.", "query."),
    ("cross_attn.k.", "key."),
    ("cross_attn.v.", "value."),
    ("cross_attn.proj.", "proj."),
    ("norm1_q.", "norm_query."),
    ("norm1_k.", "norm_key."),
    ("norm1_v.", "norm_value."),
    ("norm2_cross.", "norm_mlp."),
    ("mlp_cross.fc1.", "mlp.0."),
    ("mlp_cross.fc2.", "mlp.2."),
)


def _our_name(key: str) -> str:
    """Our name of a parameter of CAE's release."""
    for theirs, ours in _NAMES:
        key = key.replace(theirs, ours)
    return key


def _cross_attention_biases(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`cross_attn.q_bias` and `.v_bias` as the biases of their projections."""
    return {
        key.replace("cross_attn.q_bias", "cross_attn.q.bias").replace("cross_attn.v_bias", "cross_attn.v.bias"): value
        for key, value in state_dict.items()
    }
