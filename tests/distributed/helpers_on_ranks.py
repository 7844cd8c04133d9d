"""What the helpers of runtime/processes.py do in each of several processes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from mapet.errors import SettingsError
from mapet.runtime.processes import all_sum_, barrier, broadcast_, gather_numbers, gather_rows, process_group, this_process


def use_helpers(folder: Path) -> dict[str, Any]:
    rank = this_process().rank
    alone = ""
    try:
        all_sum_(torch.ones(1))
    except SettingsError as error:
        alone = str(error)
    with process_group("cpu") as processes, process_group("cpu") as again:
        rows = torch.arange(2 * rank).view(rank, 2) + 100 * rank
        barrier()
        return {
            "processes": [processes.rank, processes.world, processes.local_rank],
            "nested is the same": again == processes,
            "without a group": alone,
            "sum": all_sum_(torch.tensor([rank, 1.5], dtype=torch.float64)).tolist(),
            "broadcast": broadcast_(torch.tensor([rank + 7]), source=1).tolist(),
            "rows": gather_rows(rows).tolist(),
            "half": gather_rows(rows.half()).tolist(),
            "no rows": list(gather_rows(torch.empty(0, 3)).shape),
            "numbers": gather_numbers(10 + rank),
        }


def use_the_group_twice(folder: Path) -> list[float]:
    """The process that others meet at is slow to leave the first group: they are ahead in the second."""
    leave = torch.distributed.destroy_process_group
    if this_process().rank == 0:
        torch.distributed.destroy_process_group = lambda: (time.sleep(1.0), leave())
    sums = []
    for number in (1.0, 2.0):
        with process_group("cpu"):
            sums.append(float(all_sum_(torch.tensor([number]))))
    return sums
