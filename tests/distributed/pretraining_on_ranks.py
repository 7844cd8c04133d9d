"""Pre-training in each of several processes, for every objective."""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from mapet.engine.parallel import whole_state
from mapet.errors import MapetError
from mapet.objectives import OBJECTIVES
from mapet.pretraining import step as step_module
from mapet.pretraining.pretrain import pretrain
from mapet.registry import options_of
from mapet.runtime.processes import process_group
from mapet.runtime.run_directory import RunDirectory
from mapet.token_store.read import TokenStore
from tests.contracts.tiny_objectives import NEEDED, SMALL
from tests.tiny import LOCATION, at_step, tiny_settings, tiny_trainer

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


# With blocks of two streams, with a regressor and a decoder, and with a frozen teacher.
SHARDED = ("mapet", "cae", "mvp")
# Ways to compute the passes of MaPeT, and how far two processes with sharded weights may be from one with whole ones.
WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "parts": {"mechanics__micro_batch": 3, "mechanics__activation_checkpointing": True, "mechanics__compile": True},
    "bf16": {"training__precision": "bf16"},
}
TOLERANCE = {"plain": 1e-5, "parts": 1e-5, "bf16": 2e-3}


def train(folder: Path, name: str, run: str = "", **changes: Any) -> dict[str, Tensor]:
    """Trains the objective `name` in the run directory `run`, by default of its name, in FOLDER; the weights."""
    with process_group("cpu") as processes:
        store = TokenStore.open(folder / "store")
        trainer = tiny_trainer(folder / (run or name), store, settings_of(name, **changes), monitors=[], processes=processes)
        trainer.run()
        return whole_state(trainer.objective)


def train_all(folder: Path, mode: str = "ddp", names: Sequence[str] = tuple(OBJECTIVES)) -> None:
    """Every objective; each process writes its weights, the first also what it logged."""
    with process_group("cpu") as processes:
        for name in names:
            weights = train(folder, name, mechanics__parallel=mode)
            save_file(weights, folder / f"{name}-{processes.rank}.safetensors")


def train_sharded(folder: Path) -> None:
    """Each process holds a part of the weights."""
    train_all(folder, "fsdp", SHARDED)


def train_sharded_by_machine(folder: Path) -> None:
    """As if two processes were on each machine."""
    os.environ["LOCAL_WORLD_SIZE"] = "2"
    train_all(folder, "hsdp", ("mapet",))


def train_in_many_ways(folder: Path, mode: str = "ddp") -> None:
    """MaPeT, its passes computed in each of the `WAYS`."""
    step_module.COMPILER = "aot_eager"  # inductor takes a minute
    warnings.filterwarnings("ignore", "The .grad attribute")  # of torch's own tracing
    with process_group("cpu"):
        for name, changes in WAYS.items():
            train(folder, "mapet", name, mechanics__parallel=mode, training__steps=6, training__drop_path=0.0, **changes)


def train_in_many_ways_sharded(folder: Path) -> None:
    train_in_many_ways(folder, "fsdp")


def start(folder: Path, mode: str = "ddp", **changes: Any) -> str:
    """The job, on tokens in FOLDER/store if they are there; the message it ends with, or ""."""
    tokens = folder / "store"
    try:
        pretrain(
            LOCATION,
            settings_of("mapet", mechanics__checkpoint_every=4, mechanics__parallel=mode, **changes),
            folder / "run",
            tokens=tokens if tokens.exists() else None,
        )
    except MapetError as error:
        return str(error)
    return ""


def start_and_die(folder: Path) -> None:
    """The same with sharded weights; the last process is killed at step 10."""
    from mapet.pretraining.training import PreTraining

    run = PreTraining.run

    def dying(self: PreTraining) -> None:
        if self.processes.rank == self.processes.world - 1:
            at_step(self, 10, lambda: os.kill(os.getpid(), signal.SIGKILL))
        run(self)

    PreTraining.run = dying  # type: ignore[method-assign]
    start(folder, "fsdp")


def stop_one_sharded(folder: Path) -> str:
    return stop_one(folder, 13, "fsdp")


def stop_one(folder: Path, step: int = 9, mode: str = "ddp") -> str:
    """SIGTERM comes to the last process while step number `step` is taken."""
    from mapet.pretraining.training import PreTraining

    run = PreTraining.run

    def stopped(self: PreTraining) -> None:
        if self.processes.rank == self.processes.world - 1:
            at_step(self, step, lambda: os.kill(os.getpid(), signal.SIGTERM))
        run(self)

    PreTraining.run = stopped  # type: ignore[method-assign]
    return start(folder, mode)


def losses(run: Path) -> list[float]:
    return [entry["loss"] for entry in RunDirectory(run).read_metrics()]
