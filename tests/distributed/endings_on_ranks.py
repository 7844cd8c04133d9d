"""Pre-training in several processes of which one dies, breaks, differs or is asked to stop."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import tests.tiny
from mapet.data.batch import Batch
from mapet.errors import MapetError
from mapet.pretraining.pretrain import pretrain
from mapet.pretraining.step import TrainingStep
from mapet.pretraining.training import PreTraining
from mapet.runtime import attendance
from mapet.runtime.processes import Processes, this_process
from tests.distributed.pretraining_on_ranks import settings_of, start
from tests.tiny import LOCATION, at_step, weights_of

# Seldom checkpoints, and a process that loads images, which inherits what its parent has open.
ELASTIC: dict[str, Any] = {"mechanics__checkpoint_every": 4, "mechanics__workers": 1}


def start_differently(folder: Path) -> str:
    """The last process differs in what FOLDER/fact names."""
    changes: dict[str, Any] = {}
    if this_process().rank == this_process().world - 1:
        fact = (folder / "fact").read_text()
        if fact == "version of torch":
            torch.__version__ = "2.0.0"  # type: ignore[assignment]
        elif fact == "images":
            tests.tiny.IMAGES = 41
        else:
            changes = {"training__lr": 1e-3}
    return start(folder, **changes)


def do_at(number: int, ranks: Callable[[Processes], bool], action: Callable[[], Any]) -> None:
    """Does something in some processes just before step `number` is taken."""
    run = PreTraining.run

    def acting(self: PreTraining) -> None:
        if ranks(self.processes):
            at_step(self, number, action)
        run(self)

    PreTraining.run = acting  # type: ignore[method-assign]


def is_last(processes: Processes) -> bool:
    return processes.rank == processes.world - 1


def send(number: int) -> None:
    os.kill(os.getpid(), number)


def requeue_one(folder: Path) -> int:
    """SIGUSR1 comes to the last process, as from Slurm: the exit code."""
    do_at(9, is_last, lambda: send(signal.SIGUSR1))
    return exit_code(folder)


def break_one(folder: Path) -> str:
    """The images of the last process are NaN in step 9: what all end with, and how many steps the optimizer took."""
    steps: list[bool] = []
    call, augment = TrainingStep.__call__, TrainingStep._augment

    def counted(self: TrainingStep, *inputs: Any) -> Any:
        before = weights_of(self.objective)
        sums = call(self, *inputs)
        steps.append(any(not torch.equal(value, before[name]) for name, value in self.objective.state_dict().items()))
        return sums

    def broken(self: TrainingStep, *inputs: Any) -> Batch:
        batch = augment(self, *inputs)
        return batch if inputs[2] != 9 or not is_last(self._processes) else Batch(batch.images * float("nan"), batch.token_ids)

    TrainingStep.__call__, TrainingStep._augment = counted, broken  # type: ignore[method-assign]
    message = start(folder)
    return f"{message.partition('. ')[0]}; steps taken: {sum(steps)} of {len(steps)}"


def exit_code(folder: Path) -> int:
    try:
        pretrain(LOCATION, settings_of("mapet", mechanics__checkpoint_every=4), folder / "run", tokens=folder / "store")
    except MapetError as error:
        return error.exit_code
    return 0


def start_whole(folder: Path) -> None:
    """Without a restart."""
    multiprocessing.set_start_method("fork", force=True)  # of processes that load images, as outside tests
    pretrain(LOCATION, settings_of("mapet", **ELASTIC), folder / "run", tokens=folder / "store")


def start_elastic(folder: Path) -> None:
    """What torchrun does with --nproc-per-node 2 --max-restarts 1."""
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        os.environ.pop(name, None)
    config = LaunchConfig(
        1, 1, 2, rdzv_backend="c10d", rdzv_endpoint="127.0.0.1:0", max_restarts=1, start_method="fork", monitor_interval=0.1
    )
    elastic_launch(config, run_in_agent)(folder)


def run_in_agent(folder: Path) -> None:
    """In one of its processes; the first is killed once."""
    attendance.SECONDS_FOR_ENTRIES = 1.0
    restarts = os.environ["TORCHELASTIC_RESTART_COUNT"]
    if restarts == "0":
        do_at(10, lambda processes: processes.rank == 0, lambda: send(signal.SIGKILL))
    start_whole(folder)
    (folder / f"restarts-{os.environ['RANK']}").write_text(restarts)
