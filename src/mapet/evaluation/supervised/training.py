"""What trainings on labels share, beyond the engine's loop: they begin with a copy of a backbone that is evaluated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mapet.data.batch import LoadedBatch
from mapet.engine.checkpoint import Checkpoint
from mapet.engine.loop import LoopSettings, Training
from mapet.errors import SettingsError
from mapet.evaluation.frozen_backbone import FrozenBackbone
from mapet.runtime.processes import require_agreement
from mapet.runtime.rank import this_process
from mapet.runtime.run_directory import RunDirectory


class SupervisedTraining(Training[LoadedBatch]):
    """Base of all trainings on labels.

    Args:
        frozen: The backbone, which stays as it is, and the images.
        folder: For metrics.jsonl and TensorBoard's events, and for checkpoints if the subject has a folder.
        loop: Of `Training`: `when`, `stop`, `clock`.

    Under torchrun, every process takes its share of each batch.

    Attributes:
        uses_backbone: Whether it begins with the backbone's weights.
    """

    uses_backbone: bool = True

    def __init__(self, frozen: FrozenBackbone, folder: Path, name: str, **loop: Any) -> None:
        when = loop.pop("when", LoopSettings(keeps_checkpoints=frozen.folder is not None))
        super().__init__(RunDirectory(folder), frozen.device, frozen.unreadable, when, processes=this_process(), **loop)
        self.frozen, self.name, self.title = frozen, name, f"{name.capitalize()}, {frozen.title}"

    def check_share(self, batch_size: int) -> int:
        """The images of a batch, at least one for every process.

        Raises:
            SettingsError: There are fewer.
        """
        if batch_size < self.processes.world:
            raise SettingsError(
                f"A batch has {batch_size:,} images, and {self.processes.world} processes share it; allowed: one image or more for "
                "each. Start fewer processes (torchrun --nproc-per-node), or set a larger batch_size."
            )
        return batch_size

    def agreed(self, identity: str) -> str:
        """The identity of the training, which must be the same in all processes."""
        require_agreement({"settings, backbone, images or labels": identity})
        return identity

    def run(self) -> None:
        """Takes all steps that are left; see `Training.run`.

        Raises:
            ModelError: The backbone's features are not finite.
        """
        if self.uses_backbone and self.first_step == 0:
            self.frozen.check_finite()
        super().run()

    def other_training(self, checkpoint: Checkpoint) -> str:
        """The message where the checkpoint found is not one of this training."""
        return (
            f"{checkpoint.path} belongs to a {self.name} of another backbone, on other images or labels, or with other settings. "
            f"Give another --out, or remove {self.run_directory.path}."
        )
