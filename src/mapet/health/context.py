"""The context of the monitors of a pre-training."""

from __future__ import annotations

from dataclasses import dataclass

from mapet.config.settings import PretrainSettings
from mapet.data.regions import Regions
from mapet.data.source import ImageSource
from mapet.engine.callbacks import RunContext
from mapet.objectives.base import Objective
from mapet.token_store.token_source import TokenSource


@dataclass(frozen=True)
class PretrainContext(RunContext):
    """The context of the monitors of a pre-training.

    Args:
        objective: What is trained.
        source: The images that it trains on.
        tokens: Their visual tokens.
        regions: The region of each image and view index.
        settings: Of the run.
        warmup_steps: Steps in which the learning rate rises.
    """

    objective: Objective
    source: ImageSource
    tokens: TokenSource
    regions: Regions
    settings: PretrainSettings
    warmup_steps: int
