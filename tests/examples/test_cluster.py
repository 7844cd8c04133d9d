"""The examples for clusters: scripts run with stand-ins for torchrun and Slurm; the others are parsed, their commands checked."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch.distributed.run import get_args_parser
from typer.main import get_command

from mapet.cli.app import app

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "cluster"
WORDS = ["my photos", "RUN", "mapet_tiny", "--set", "training.batch_size=64"]


def run(script: str, folder: Path, programs: dict[str, str], **variables: str) -> tuple[int, str]:
    """Exit code and output of a script, with stand-ins in front of the PATH."""
    for name, text in programs.items():
        (folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / name).chmod(0o755)
    environment = os.environ | {"PATH": f"{folder}:{os.environ['PATH']}"} | variables
    done = subprocess.run(
        ["bash", FOLDER / script, *WORDS], env=environment, cwd=folder, capture_output=True, text=True, timeout=60
    )
    return done.returncode, done.stdout + done.stderr


def check_torchrun(words: list[str]) -> Any:
    """The options, which torchrun must know; the command must be one of mapet."""
    options = get_args_parser().parse_args(words)
    assert options.module
    assert options.training_script == "mapet"
    check_mapet(options.training_script_args)
    return options


def check_mapet(words: list[str]) -> None:
    """As typer parses `mapet WORDS`, without running it or looking for the images."""
    command = get_command(app).commands[words[0]]  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mapet.data.sources.require_location", lambda _: None)
        command.make_context(words[0], words[1:])


@pytest.mark.parametrize("script", ["one_node.sh", "several_nodes.sh"])
def test_scripts_start_torchrun(script: str, tmp_path: Path) -> None:
    code, output = run(script, tmp_path, {"torchrun": 'printf "%q " "$@"'}, GPUS="2", NODES="1:2", HOST="node1", JOB="first")
    assert code == 0, output
    options = check_torchrun(shlex.split(output))
    assert options.nproc_per_node == "2"
    assert options.max_restarts >= 3
    assert options.training_script_args[-2:] == WORDS[-2:]
    if script == "several_nodes.sh":
        assert (options.nnodes, options.rdzv_endpoint, options.rdzv_backend) == ("1:2", "node1:29400", "c10d")


SLURM = {
    # Two tasks; they leave their numbers and words behind, and end with the code in CODE.
    "srun": """shift
        for rank in 0 1; do SLURM_PROCID=$rank SLURM_LOCALID=$rank SLURM_NTASKS=2 "$@" || code=$?; done
        exit ${code:-0}""",
    "scontrol": 'if [ "$1" = show ]; then echo node1; echo node2; else echo "$@" >> requeued; fi',
    "mapet": 'echo "$RANK $LOCAL_RANK $WORLD_SIZE $MASTER_ADDR $MASTER_PORT" >> tasks; printf "%q " "$@" > words; exit $CODE',
}


@pytest.mark.parametrize(
    ("code", "restarts", "requeued"), [(0, 0, False), (75, 0, True), (75, 50, True), (2, 0, False), (137, 0, True), (137, 3, False)]
)
def test_slurm_queues_again_what_is_worth_it(code: int, restarts: int, requeued: bool, tmp_path: Path) -> None:
    slurm = {"SLURM_JOB_ID": "20007", "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_RESTART_COUNT": str(restarts)}
    assert run("slurm.sh", tmp_path, SLURM, CODE=str(code), **slurm)[0] == code
    assert (tmp_path / "tasks").read_text().splitlines() == ["0 0 2 node1 20007", "1 1 2 node1 20007"]
    words = shlex.split((tmp_path / "words").read_text())
    check_mapet(words)
    assert words == ["pretrain", "my photos", "--out", "RUN", "--recipe", "mapet_tiny", "--set", "training.batch_size=64"]
    assert (tmp_path / "requeued").exists() == requeued
    assert not requeued or (tmp_path / "requeued").read_text() == "requeue 20007\n"


def test_slurm_asks_for_the_signal_that_mapet_knows() -> None:
    from mapet.runtime.interrupt import RESTART_SIGNAL

    assert f"--signal={RESTART_SIGNAL.name.removeprefix('SIG')}@" in (FOLDER / "slurm.sh").read_text()


def test_kubernetes() -> None:
    service, job = yaml.safe_load_all((FOLDER / "kubernetes.yaml").read_text())
    spec = job["spec"]
    container = spec["template"]["spec"]["containers"][0]
    program, *words = container["command"]
    options = check_torchrun(words)
    assert program == "torchrun"
    assert options.nnodes == str(spec["completions"]) == str(spec["parallelism"])
    assert int(options.nproc_per_node) == container["resources"]["limits"]["nvidia.com/gpu"]
    assert service["metadata"]["name"] == spec["template"]["spec"]["subdomain"]
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    assert options.rdzv_endpoint.startswith(f"{job['metadata']['name']}-0.{service['metadata']['name']}:")
    assert {volume["name"] for volume in container["volumeMounts"]} == {v["name"] for v in spec["template"]["spec"]["volumes"]}
    waits = {entry["name"]: entry["value"] for entry in container["env"]}["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"]
    assert spec["template"]["spec"]["terminationGracePeriodSeconds"] > int(waits)


def test_skypilot(tmp_path: Path) -> None:
    task = yaml.safe_load((FOLDER / "skypilot.yaml").read_text())
    (tmp_path / "torchrun").write_text('#!/bin/bash\nprintf "%q " "$@"\n')
    (tmp_path / "torchrun").chmod(0o755)
    node = {
        "SKYPILOT_NUM_NODES": "2",
        "SKYPILOT_NUM_GPUS_PER_NODE": "8",
        "SKYPILOT_NODE_RANK": "1",
        "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2",
    }
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"} | node | task["envs"]
    done = subprocess.run(["bash", "-euc", task["run"]], env=environment, capture_output=True, text=True, timeout=60, check=True)
    options = check_torchrun(shlex.split(done.stdout))
    assert (options.nnodes, options.node_rank, options.master_addr) == ("2", 1, "10.0.0.1")
