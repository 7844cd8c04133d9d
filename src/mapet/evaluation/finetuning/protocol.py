"""Fine-tuning (MaPeT, Table 9) and supervised training from scratch: the whole network learns, and its accuracy is the figure.

    mapet evaluate finetune:base RUN DATA                                           a backbone that was pre-trained here
    mapet evaluate finetune:scratch random:vit_base_patch16_224 DATA --out FOLDER    the baseline without pre-training

In its folder it keeps checkpoints, from which the same command continues exactly, metrics.jsonl, and the finished model.
"""

from __future__ import annotations

import tempfile
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from mapet.checkpoints.backbone_folder import save_backbone
from mapet.data.source import ImageSource
from mapet.evaluation.classes import check_complete
from mapet.evaluation.finetuning.settings import FineTuneSettings
from mapet.evaluation.finetuning.training import FineTuning
from mapet.evaluation.frozen_backbone import FrozenBackbone
from mapet.evaluation.protocol import Metrics
from mapet.evaluation.supervised.length import describe_extended_schedule
from mapet.runtime.files import write_json


@dataclass(frozen=True, kw_only=True)
class FineTune(FineTuneSettings):
    """Trains all weights on labelled images; see `FineTuneSettings` for the settings."""

    name: ClassVar[str] = "finetune"
    several_processes: ClassVar[bool] = True
    with_random: ClassVar[bool] = False
    keeps_model: ClassVar[bool] = True

    def open_data(self, location: str) -> tuple[ImageSource, ImageSource]:
        """Training and test images of the same classes."""
        train, test = super().open_data(location)
        check_complete(train, test)
        return train, test

    def note(self, train_images: int) -> str:
        """A line if the training has more epochs because there are few images."""
        return describe_extended_schedule(train_images, self.batch_size, self.epochs, self.min_steps)

    def evaluate(self, frozen: FrozenBackbone) -> Metrics:
        """Accuracies of the model at its last step; with an average of the weights also those of the average, named ema_*."""
        context = nullcontext(frozen.folder) if frozen.folder else tempfile.TemporaryDirectory(prefix="mapet-finetune-")
        with context as folder:
            tuning = FineTuning(frozen, self, Path(folder))
            metrics = tuning.train_and_evaluate()
            if frozen.folder and tuning.is_first_process:
                save_models(tuning, frozen.folder)
            evaluations = [entry for entry in tuning.run_directory.read_metrics() if "test_top1" in entry]
        details = {
            "steps": tuning.total_steps,
            "weights": {"kept": len(tuning.transfer.kept), "dropped": tuning.transfer.dropped, "new": tuning.transfer.new},
            "top1_by_epoch": [[entry["epoch"], entry["test_top1"]] for entry in evaluations],
        }
        return replace(metrics, details=details)


def save_models(tuning: FineTuning, folder: Path) -> None:
    """Writes model/ (and ema_model/) and the names of its classes, in the order of its outputs."""
    for prefix, model in tuning.models.items():
        save_backbone(folder / f"{prefix}model", tuning.spec, model)  # type: ignore[arg-type]
    names = tuning.frozen.train.classes or [str(number) for number in range(tuning.frozen.num_classes)]
    write_json(folder / "classes.json", [*names])
