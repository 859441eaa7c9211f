"""slurm.sh under a Slurm whose srun and scontrol are small scripts, but whose torchrun is the real one."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from launch_jobs import called, launch, parsed, write_folder

SCONTROL = """#!/bin/sh
[ "$*" = "show hostnames nodes[1-2]" ] || exit 1
echo localhost
echo another
"""
# Starts what it is told on each of two nodes, with the variables that Slurm gives a task.
SRUN = """#!/usr/bin/env bash
while [[ $1 == --* ]]; do echo "srun $1" >> "$LOG"; shift; done
for node in 0 1; do SLURM_NODEID=$node SLURM_PROCID=$node "$@" & tasks+=($!); done
for task in "${tasks[@]}"; do wait "$task" || exit 1; done
"""
TRAIN = """
import os, sys, torch, torch.distributed as dist
dist.init_process_group("gloo")
total = torch.tensor(float(dist.get_rank() + 1))
dist.all_reduce(total)
line = f"rank {dist.get_rank()} node {os.environ['GROUP_RANK']} total {total.item()} {sys.argv[1:]}"
with open(os.environ["LOG"], "a") as log:
    print(line, file=log)
dist.destroy_process_group()
"""


def programs(folder: Path, **scripts: str) -> str:
    folder.mkdir()
    for name, text in scripts.items():
        (folder / name).write_text(text)
        (folder / name).chmod(stat.S_IRWXU)
    return os.pathsep.join([str(folder), str(Path(sys.executable).parent), os.environ["PATH"]])


@pytest.mark.launch
def test_two_nodes_meet_on_the_first(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    folder, log = tmp_path / "my run", tmp_path / "log"
    write_folder(launch("deepspeed", 2, gpus_per_node=1, offload_optimizer="cpu"), folder, slurm=True)
    (tmp_path / "train.py").write_text(TRAIN)
    torchrun = f'#!/bin/sh\nexec "{sys.executable}" -m torch.distributed.run "$@"\n'
    environment = {
        **os.environ,
        "PATH": programs(tmp_path / "bin", srun=SRUN, scontrol=SCONTROL, torchrun=torchrun),
        "SLURM_JOB_NODELIST": "nodes[1-2]",
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_CPUS_PER_TASK": "64",
        "LOG": str(log),
    }
    command = ["bash", str(folder / "slurm.sh"), "train.py", "--seed", "1 2"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    words = ["--deepspeed", "--deepspeed_config", f"{folder}/ds_config.json", "--seed", "1 2"]
    assert sorted(log.read_text().splitlines()) == [
        f"rank 0 node 0 total 3.0 {words}",
        f"rank 1 node 1 total 3.0 {words}",
        "srun --cpus-per-task=64",
        "srun --kill-on-bad-exit=1",
    ]


def directives(text: str) -> dict[str, str]:
    """What sbatch reads: the #SBATCH lines above the first command."""
    head = text.partition("\nset -euo")[0]
    return dict(re.findall(r"^#SBATCH --([a-z-]+)=?(\S*)$", head, re.MULTILINE))


@pytest.mark.parametrize("target", ["deepspeed", "hf", "accelerate"])
def test_what_is_asked_of_slurm(target: str, tmp_path: Path) -> None:
    write_folder(launch(target, 16), tmp_path / "whole", slurm=True)
    text = (tmp_path / "whole" / "slurm.sh").read_text()
    found = directives(text)
    assert len(found) == text.count("\n#SBATCH ")
    assert (found["nodes"], found["ntasks-per-node"], found["gpus-per-node"]) == ("2", "1", "8")
    assert (found["cpus-per-task"], found["mem"], found["exclusive"]) == ("64", "0", "")
    assert re.fullmatch(r"\d+:\d\d:\d\d", found["time"])
    write_folder(launch(target, 2), tmp_path / "part", slurm=True)
    found = directives((tmp_path / "part" / "slurm.sh").read_text())
    assert (found["nodes"], found["gpus-per-node"], found["cpus-per-task"]) == ("1", "2", "16")
    assert "exclusive" not in found, "the other six GPUs of the node are somebody else's"


@pytest.mark.parametrize("gpus", [16, 12])
def test_each_node_starts_accelerate_or_torchrun_with_its_own_rank(gpus: int, tmp_path: Path) -> None:
    """The last task's call is the one recorded."""
    folder = tmp_path / "my run"
    write_folder(launch("accelerate", gpus), folder, slurm=True)
    (tmp_path / "train.py").write_text("")
    srun = SRUN.replace("for node in 0 1", "for node in 1")
    (tmp_path / "log").write_text("")
    programs(tmp_path / "programs", srun=srun, scontrol=SCONTROL)
    said = {"SLURM_JOB_NODELIST": "nodes[1-2]", "SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "64"}
    call = called(f"bash '{folder}/slurm.sh' train.py --seed 1", tmp_path, LOG=str(tmp_path / "log"), **said)
    args = parsed(call)
    assert args.training_script_args == ["--seed", "1"]
    if gpus == 16:
        assert (args.machine_rank, args.main_process_ip, args.main_process_port) == (1, "localhost", 10007)
    else:
        assert (args.node_rank, args.nproc_per_node, args.rdzv_endpoint) == (1, "4", "localhost:10007")
        assert call.environment["ACCELERATE_DEEPSPEED_CONFIG_FILE"] == f"{folder}/ds_config.json"


def test_submitted_from_elsewhere_it_says_what_is_missing(tmp_path: Path) -> None:
    write_folder(launch("hf", 4), tmp_path / "run", slurm=True)
    script = (tmp_path / "run" / "slurm.sh").read_text().replace(str(tmp_path / "run"), "run")
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path / "run", capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "there is no run/ds_config.json in " in done.stderr
