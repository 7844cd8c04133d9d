"""Pre-training in each of several processes, for every objective."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from mapet.errors import MapetError
from mapet.objectives import OBJECTIVES
from mapet.pretraining.pretrain import pretrain
from mapet.registry import options_of
from mapet.runtime.processes import process_group
from mapet.runtime.run_directory import RunDirectory
from mapet.token_store.read import TokenStore
from tests.contracts.tiny_objectives import NEEDED, SMALL
from tests.tiny import LOCATION, at_step, tiny_settings, tiny_trainer, weights_of

STEPS = 20
CHANGES: dict[str, Any] = {
    "training__batch_size": 12,
    "training__steps": STEPS,
    "training__drop_path": 0.3,
    "training__color_jitter": 0.4,
    "mechanics__checkpoint_every": 100,
}


def settings_of(name: str, **changes: Any):
    """Of a short run with everything that is drawn at random."""
    kind = OBJECTIVES.get(name)
    options = {key: value for key, value in SMALL.items() if key in options_of(kind)}
    for need in kind.needs:
        options |= NEEDED.get(need, {})
    return tiny_settings(objective={"name": name, "options": options}, **(CHANGES | changes))


def train(folder: Path, name: str, **changes: Any) -> dict[str, Tensor]:
    """Trains the objective `name` in FOLDER/NAME; the weights."""
    with process_group("cpu") as processes:
        store = TokenStore.open(folder / "store")
        trainer = tiny_trainer(folder / name, store, settings_of(name, **changes), monitors=[], processes=processes)
        trainer.run()
        return weights_of(trainer.objective)


def train_all(folder: Path) -> None:
    """Every objective; each process writes its weights, the first also what it logged."""
    with process_group("cpu") as processes:
        for name in OBJECTIVES:
            save_file(train(folder, name), folder / f"{name}-{processes.rank}.safetensors")


def start(folder: Path) -> str:
    """The job, on tokens in FOLDER/store if they are there; the message it ends with, or ""."""
    tokens = folder / "store"
    try:
        pretrain(
            LOCATION,
            settings_of("mapet", mechanics__checkpoint_every=4),
            folder / "run",
            tokens=tokens if tokens.exists() else None,
        )
    except MapetError as error:
        return str(error)
    return ""


def start_and_die(folder: Path) -> None:
    """The same; the last process is killed at step 10."""
    from mapet.pretraining.training import PreTraining

    run = PreTraining.run

    def dying(self: PreTraining) -> None:
        if self.processes.rank == self.processes.world - 1:
            at_step(self, 10, lambda: os.kill(os.getpid(), signal.SIGKILL))
        run(self)

    PreTraining.run = dying  # type: ignore[method-assign]
    start(folder)


def stop_one(folder: Path) -> str:
    """SIGTERM comes to the last process while step number 9 is taken."""
    from mapet.pretraining.training import PreTraining

    run = PreTraining.run

    def stopped(self: PreTraining) -> None:
        if self.processes.rank == self.processes.world - 1:
            at_step(self, 9, lambda: os.kill(os.getpid(), signal.SIGTERM))
        run(self)

    PreTraining.run = stopped  # type: ignore[method-assign]
    return start(folder)


def losses(run: Path) -> list[float]:
    return [entry["loss"] for entry in RunDirectory(run).read_metrics()]
