"""All settings of a pre-training run, typed and checked.

Everything outside `mechanics` is science: it changes what is learned, is hashed, and must not change when a run is continued.
`mechanics` describes how the work is done on this machine and can change at any time.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from mapet.config.architecture import LARGEST_IMAGE, LARGEST_VOCABULARY, check_architecture, check_names
from mapet.errors import SettingsError, allowed_values, nearest

_Beta = Annotated[float, Field(ge=0, lt=1)]
_Positive = Annotated[float, Field(gt=0)]
_Share = Annotated[float, Field(gt=0, le=1)]
_Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]
# No run comes near these; what exceeds them is a slip, and ends in words rather than in a lack of memory.
_MANY, _MOST = 2**20, 2**40
# Features that need no file, no network and no code from elsewhere.
LOCAL_FEATURES = ("coates", "pixels")


class Section(BaseModel):
    """A group of settings; unknown keys are errors, and so is a value of another kind, such as true for a number."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, strict=True)

    @field_validator("*", mode="before")
    @classmethod
    def _as_yaml_means_it(cls, value: Any) -> Any:
        return as_yaml_means_it(value)


class BackboneSettings(Section):
    """A timm ViT: its name and the keyword arguments of `timm.create_model` (image size and drop path are set elsewhere)."""

    name: str = "vit_tiny_patch16_224"
    options: dict[str, Any] = {"init_values": 0.1, "num_classes": 0}

    @field_validator("options")
    @classmethod
    def _set_elsewhere(cls, options: dict[str, Any]) -> dict[str, Any]:
        for name, setting in (("img_size", "image_size"), ("drop_path_rate", "training.drop_path")):
            if name in options:
                raise ValueError(f"{name} is the setting {setting}; set that one instead")
        check_architecture(options, where="backbone.options")
        return options


class ObjectiveSettings(Section):
    """What is hidden and predicted."""

    name: str = "mapet"
    options: dict[str, Any] = {}

    @field_validator("options")
    @classmethod
    def _identifiers(cls, options: dict[str, Any]) -> dict[str, Any]:
        check_names(options, where="objective.options")
        return options


class ViewSettings(Section):
    """Which part of an image is seen, by tokenizer and backbone alike; a view ignores what it does not have."""

    name: Literal["fixed", "stored", "online"] = Field(
        default="fixed",
        description="fixed: the central square; stored: random crops whose tokens are stored; online: a new crop in every epoch",
    )
    count: int = Field(default=4, ge=1, le=_MANY, description="stored crops an image, shown in turn")
    scale: tuple[_Share, _Share] = Field(default=(0.2, 1.0), description="smallest and largest share of the area of a random crop")
    flip: bool = Field(default=True, description="mirror half of the random crops")
    seed: _Seed = Field(default=0, description="of the stored crops, which several runs can share; others follow the run's")

    @field_validator("scale")
    @classmethod
    def _smaller_first(cls, scale: tuple[float, float]) -> tuple[float, float]:
        if scale[0] > scale[1]:
            raise ValueError("give the smaller share first")
        return scale


class TokenizerSettings(Section):
    """How visual tokens are made where no tokenizer is given: k-means over features of patches."""

    image_size: int | None = Field(
        default=None, ge=1, le=LARGEST_IMAGE, description="pixels at which images are tokenised; by default the image size"
    )
    features: str = "coates"
    options: dict[str, Any] = {}
    vocab_size: int = Field(default=512, ge=2, le=LARGEST_VOCABULARY)
    num_points: int = Field(default=200_000, ge=1, le=_MOST, description="patches whose features are clustered, about")
    max_images: int | None = Field(default=20_000, ge=1, le=_MOST, description="images that they are taken from; null takes all")
    iterations: int = Field(default=20, ge=1, le=_MANY)
    restarts: int = Field(default=3, ge=1, le=_MANY)

    @field_validator("options")
    @classmethod
    def _identifiers(cls, options: dict[str, Any]) -> dict[str, Any]:
        check_names(options, where="tokenizer.options")
        return options


class TrainingSettings(Section):
    """Optimisation. Learning rates are per step, absolute, not scaled by the batch size."""

    epochs: float | None = Field(default=None, gt=0, le=_MOST, description="passes over the images; give this or `steps`")
    steps: int | None = Field(default=None, ge=1, le=_MOST)
    batch_size: int = Field(default=256, ge=1, le=_MANY, description="images per optimizer step, over all processes")
    lr: float = Field(default=1.5e-3, gt=0)
    min_lr: float = Field(default=1e-5, ge=0)
    warmup_lr: float = Field(default=1e-6, ge=0)
    warmup_epochs: float = Field(default=0, ge=0, le=_MOST)
    warmup_steps: int = Field(default=0, ge=0, le=_MOST)
    betas: tuple[_Beta, _Beta] = (0.9, 0.999)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.05, ge=0)
    clip_norm: float | None = Field(default=3.0, gt=0)
    drop_path: float = Field(default=0.1, ge=0, lt=1)
    color_jitter: float = Field(default=0.4, ge=0, le=1)
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[_Positive, _Positive, _Positive] = (0.229, 0.224, 0.225)
    precision: Literal["fp32", "bf16"] = "fp32"

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give either training.epochs or training.steps")
        if self.warmup_epochs and self.warmup_steps:
            raise ValueError("give either training.warmup_epochs or training.warmup_steps")
        return self


class Mechanics(Section):
    """How the work is done; never what is learned."""

    device: str = Field(default="auto", description="auto, cpu, cuda, cuda:1, mps")
    workers: int = Field(default=2, ge=0, le=1024, description="data loading processes")
    micro_batch: int | None = Field(
        default=None,
        ge=1,
        le=_MANY,
        description="images per forward pass; the rest of the batch is accumulated (drop path then draws otherwise)",
    )
    activation_checkpointing: bool = False
    compile: bool = Field(default=False, description="compile the blocks (torch.compile); the first steps take longer")
    parallel: Literal["ddp", "fsdp", "hsdp"] = Field(
        default="ddp",
        description="over several processes: ddp, each holds all weights; fsdp, a part of them; hsdp, the processes of one machine "
        "share them",
    )
    checkpoint_every: int = Field(default=500, ge=1, le=_MOST, description="optimizer steps between checkpoints")
    keep_checkpoints: int = Field(default=2, ge=1, le=_MANY)
    log_every: int = Field(default=10, ge=1, le=_MOST, description="optimizer steps between entries of metrics.jsonl")
    probe_every: float | None = Field(
        default=None, gt=0, description="epochs between online probes on labelled training images; null for none"
    )
    memory: float = Field(
        default=4.0,
        ge=0,
        le=_MANY,
        description="GiB of main memory for features that are clustered; more are read from disk in every pass",
    )
    longest_wait: float = Field(
        default=30.0,
        gt=0,
        le=_MANY,
        description="minutes that processes wait for one that does not arrive; four times as many while tokens are made",
    )
    max_unreadable: int = Field(
        default=0, ge=0, le=_MOST, description="unreadable images that are skipped before the run is refused"
    )


class PretrainSettings(Section):
    """A complete pre-training run."""

    seed: _Seed = 0
    image_size: int = Field(default=224, ge=1, le=LARGEST_IMAGE)
    backbone: BackboneSettings = BackboneSettings()
    objective: ObjectiveSettings = ObjectiveSettings()
    view: ViewSettings = ViewSettings()
    tokenizer: TokenizerSettings = TokenizerSettings()
    training: TrainingSettings
    mechanics: Mechanics = Mechanics()

    @model_validator(mode="after")
    def _falling_rate(self) -> Self:
        lowest, highest = self.training.min_lr, self.training.lr
        if lowest > highest:
            raise ValueError(f"training.min_lr is {lowest:g}, above training.lr, which is {highest:g}; lower it as well")
        return self

    @property
    def science(self) -> dict[str, Any]:
        """Every setting that changes what is learned."""
        return self.model_dump(mode="json", exclude={"mechanics"})

    @property
    def science_hash(self) -> str:
        """Sixteen hex digits that name the science."""
        return hash_of_science(self.science)


def hash_of_science(science: dict[str, Any]) -> str:
    """Sixteen hex digits that name a science, as it is in memory or in a run's config.json."""
    return hashlib.sha256(json.dumps(science, sort_keys=True).encode()).hexdigest()[:16]


def as_yaml_means_it(value: Any) -> Any:
    """A value for a field that takes its own kind alone: a tuple in place of a list, a whole number in place of 1e4."""
    if isinstance(value, list):
        return tuple(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def parse_settings(values: dict[str, Any]) -> PretrainSettings:
    """Settings from nested plain values.

    Raises:
        SettingsError: Names the first setting that is unknown (with the nearest known one) or has a value that is not allowed.
    """
    try:
        return PretrainSettings.model_validate(values)
    except ValidationError as error:
        raise SettingsError(_explain(error)) from None


def setting_names(section: type[BaseModel] = PretrainSettings, prefix: str = "") -> list[str]:
    """Dotted names of all settings, as `--set` takes them."""
    names = []
    for name, field in section.model_fields.items():
        kind = field.annotation
        nested = isinstance(kind, type) and issubclass(kind, BaseModel)
        names += setting_names(kind, f"{prefix}{name}.") if nested else [prefix + name]  # type: ignore[arg-type]
    return names


def _explain(error: ValidationError) -> str:
    problem = error.errors()[0]
    name = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return f"There is no setting '{name}'. {nearest(name, setting_names())}"
    value = json.dumps(problem["input"], default=repr)[:80]
    if problem["type"] == "value_error":
        return f"{f'{name} = {value}: ' if name else ''}{problem['msg'].removeprefix('Value error, ')}."
    if problem["type"] == "missing":
        return f"{name} is missing.{_example(problem['loc'])}"
    return f"{name} = {value} is not allowed. Allowed: {allowed_values([problem])}.{_example(problem['loc'])}"


def _example(place: tuple[int | str, ...]) -> str:
    """The default of the setting at `place`, as one would write it; nothing for a setting without one."""
    name = ".".join(part for part in place if isinstance(part, str))
    default: Any = PretrainSettings.model_construct(training=TrainingSettings.model_construct()).model_dump(mode="json")
    for part in name.split("."):
        default = default.get(part) if isinstance(default, dict) else None
    if default is None or isinstance(default, dict):
        return ""
    return f" For example, the default: {name}={default if isinstance(default, str) else json.dumps(default)}"
