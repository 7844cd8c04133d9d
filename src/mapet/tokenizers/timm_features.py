"""The last feature map of any timm model, for example CLIP's ResNet-50x64, from which the paper makes k-CLIP."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from mapet.compat import timm
from mapet.errors import TokenizerError, nearest
from mapet.runtime.seeding import seeded_globally
from mapet.tokenizers.features import FeatureExtractor


class TimmFeatures(FeatureExtractor):
    """A timm model up to its last feature map; class and register tokens are dropped, patch tokens laid out as the grid.

    Args:
        image_size: Height and width of its images in pixels.
        patch_size: How many pixels one cell of the feature map covers.
        model: Name of a timm model.
        pretrained: Published weights, downloaded by timm; False gives random ones, which is only good for smoke runs.
        checkpoint: A local safetensors file of that model, in place of the download.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, image_size: int, patch_size: int, model: str, pretrained: bool = True, checkpoint: str | None = None
    ) -> None:
        if not timm.is_model(model):
            close = nearest(model, ["pixels", "coates", *timm.list_models()]).partition("Allowed:")[0]
            raise TokenizerError(f"There are no features called '{model}'. {close}Allowed: pixels, coates, or any timm model.")
        grid = image_size // patch_size
        backbone = _at_size(timm.create_model(model, pretrained=False, num_classes=0), image_size)
        found = _last_map(backbone, torch.zeros(1, 3, image_size, image_size)).shape[1:]
        if tuple(found[:2]) != (grid, grid):
            raise TokenizerError(
                f"'{model}' at {image_size} px has a feature map of {found[0]} x {found[1]}, not the {grid} x {grid} of patch size "
                f"{patch_size}. Give patch size {image_size // found[0]}, or image size {image_size * grid // found[0]}."
            )
        super().__init__(image_size, (grid, grid), int(found[2]))
        self.patch_size, self.model, self.pretrained, self.checkpoint = patch_size, model, pretrained, checkpoint
        self.backbone = backbone
        config: Any = backbone.pretrained_cfg
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(config[name]).view(3, 1, 1), persistent=False)

    def settings(self) -> dict[str, Any]:
        """What `create_features` needs to build it again; where the weights came from does not matter then."""
        sizes = {"image_size": self.image_size, "patch_size": self.patch_size}
        return {"name": "timm", **sizes, "model": self.model, "pretrained": self.pretrained}

    def fit(self, images: Tensor, generator: torch.Generator) -> None:
        """Fetches the weights: from `checkpoint`, from timm's download, or random ones drawn from `generator`; needs no images."""
        device = self.mean.device
        if self.checkpoint is not None:
            backbone = timm.create_model(self.model, pretrained=False, num_classes=0)
            _load_checkpoint(backbone, Path(self.checkpoint))
        elif self.pretrained:
            backbone = _download(self.model)
        else:
            seed = int(torch.randint(2**62, (1,), generator=generator, device=generator.device))
            with seeded_globally(seed, "random weights"):
                backbone = timm.create_model(self.model, pretrained=False, num_classes=0)
        self.backbone = _at_size(backbone, self.image_size).to(device)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Features (B, gh, gw, dim) of images (B, 3, image_size, image_size) in [0, 1]."""
        return _last_map(self.backbone, (images - self.mean) / self.std)


def _at_size(model: nn.Module, image_size: int) -> nn.Module:
    """The model for square images of `image_size`; position embeddings are resampled where there are any."""
    if hasattr(model, "set_input_size"):
        model.set_input_size(img_size=(image_size, image_size))  # pyright: ignore[reportCallIssue]
    return model.eval().requires_grad_(False)


@torch.no_grad()
def _last_map(model: Any, images: Tensor) -> Tensor:
    """(B, gh, gw, dim) whatever the model's own layout is."""
    output = model.forward_features(images)
    if output.ndim == 3:
        tokens = output[:, getattr(model, "num_prefix_tokens", 0) :]
        side = round(tokens.shape[1] ** 0.5)
        return tokens.reshape(len(tokens), side, -1, tokens.shape[2])
    return output if getattr(model, "output_fmt", "NCHW") == "NHWC" else output.permute(0, 2, 3, 1)


def _download(name: str) -> nn.Module:
    try:
        return timm.create_model(name, pretrained=True, num_classes=0)
    except Exception as error:  # timm passes on whatever its download raises: HTTP, sockets, cache, missing weights
        reason = str(error).strip().partition("\n")[0]
        raise TokenizerError(
            f"The weights of '{name}' cannot be downloaded: {reason}. Give a local file as 'timm:{name}@FILE.safetensors', "
            "connect to the network once (timm keeps them), use features 'coates' that need none, or pretrained=False for a smoke "
            "run."
        ) from error


def _load_checkpoint(model: Any, path: Path) -> None:
    """Loads a safetensors file strictly, apart from the classifier that the model goes without."""
    try:
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        raise TokenizerError(f"{path} cannot be read as a safetensors file: {error}.") from error
    classifiers = model.pretrained_cfg.get("classifier") or ()
    classifiers = (classifiers,) if isinstance(classifiers, str) else classifiers
    expected = model.state_dict()
    state = {key: value for key, value in state.items() if key in expected or not key.startswith(tuple(classifiers))}
    different = sorted(set(state) ^ set(expected)) or [key for key in expected if state[key].shape != expected[key].shape]
    if different:
        raise TokenizerError(
            f"{path} does not hold the weights of this timm model: {len(different)} tensors differ in name or shape, the first is "
            f"'{different[0]}'. Give a file saved from the same timm model."
        )
    model.load_state_dict(state)
