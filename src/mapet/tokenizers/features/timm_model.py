"""Feature maps of any timm model, for example CLIP's ResNet-50x64, from which the paper makes k-CLIP."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mapet.compat import timm
from mapet.errors import TokenizerError, in_one_line, nearest
from mapet.runtime.seeding import seeded_globally
from mapet.tokenizers.features.network import NetworkFeatures
from mapet.tokenizers.features.timm_weights import load_weights


def require_model(name: str) -> None:
    """Refuses the name of features that is no timm model.

    Raises:
        TokenizerError: With the nearest name.
    """
    if not timm.is_model(name):
        close = nearest(name, ["pixels", "coates", *timm.list_models()]).partition("Allowed:")[0]
        raise TokenizerError(
            f"There are no features called '{name}'. {close}Allowed: pixels, coates, any timm model, or the folder of a run."
        )


class TimmFeatures(NetworkFeatures):
    """The last feature map of a timm model, or that of another layer.

    Args:
        image_size: Height and width of its images in pixels.
        patch_size: How many pixels one cell of the feature map covers.
        model: Name of a timm model.
        pretrained: Published weights, downloaded by timm; False gives random ones, which is only good for smoke runs.
        checkpoint: A local file of that model's weights in place of the download; see `load_weights`.
        layer: The block of a ViT or the stage of another model whose map is taken, negative ones counted from the end; by default
            the last, as the model's head would see it.
        projection: Whether each token of a ViT passes the model's head, such as CLIP's projection.
    """

    def __init__(
        self,
        image_size: int,
        patch_size: int,
        model: str,
        pretrained: bool = True,
        checkpoint: str | None = None,
        layer: int | None = None,
        projection: bool = False,
    ) -> None:
        require_model(model)
        # Without classes a network has no head, and so no projection.
        options = {} if projection else {"num_classes": 0}
        build, config = partial(timm.create_model, model, **options), timm.get_pretrained_cfg(model)
        assert config is not None
        super().__init__(image_size, patch_size, model, build, config.mean, config.std, layer, projection)
        self.model, self.pretrained, self.checkpoint, self._build = model, pretrained, checkpoint, build

    def settings(self) -> dict[str, Any]:
        """What `create_features` needs to build it again; where the weights came from does not matter then."""
        return {"name": "timm", "model": self.model, "pretrained": self.pretrained, **self.layer_settings()}

    def fit(self, images: Tensor, generator: torch.Generator) -> None:
        """Fetches the weights: from `checkpoint`, from timm's download, or random ones drawn from `generator`; needs no images."""
        device = self.mean.device
        if self.checkpoint is not None:
            network = self._build()
            load_weights(network, self.model, Path(self.checkpoint))
        elif self.pretrained:
            network = self._download()
        else:
            seed = int(torch.randint(2**62, (1,), generator=generator, device=generator.device))
            with seeded_globally(seed, "random weights"):
                network = self._build()
        self.backbone = self.prepared(network).to(device)

    def _download(self) -> nn.Module:
        try:
            return self._build(pretrained=True)
        except Exception as error:  # timm passes on whatever its download raises: HTTP, sockets, cache, missing weights
            raise TokenizerError(
                f"The weights of '{self.model}' cannot be downloaded: {in_one_line(error)}. Give a local file as "
                f"'timm:{self.model}@FILE' (timm's or the publisher's own), connect to the network once (timm keeps them), use "
                "features 'coates' that need none, or pretrained=False for a smoke run."
            ) from error
