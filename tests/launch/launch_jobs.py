"""Jobs whose launch is tested, and launchers that write down what they were called with."""

from __future__ import annotations

import os
import stat
import subprocess
from argparse import ArgumentParser, Namespace
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
from search_fakes import fake_cluster, fake_model

from dsconf.config.render import render
from dsconf.config.settings import Settings
from dsconf.job import Job
from dsconf.launch.folder import launch_files
from dsconf.launch.plan import Launch, launch_of
from dsconf.workload import Workload

LAUNCHERS = ("accelerate", "deepspeed", "torchrun")
RECORDER = """#!/bin/sh
printf '%s\\0' "${0##*/}" "$@" > "$RECORD"
env -0 > "$RECORD.env"
"""


def launch(target: str, gpus: int = 8, *, gpus_per_node: int = 8, stage: int = 3, **fields: object) -> Launch:
    """One way to train on ``gpus``; ``fields`` are those of Settings and Workload, micro-batch 2 × 3 by default."""
    said: dict[str, object] = {"micro_batch": 2, "accumulation": 3, "precision": "bf16", **fields}
    names = {"workload": Workload.__dataclass_fields__, "settings": Settings.__dataclass_fields__}
    words = {kind: {name: said[name] for name in known if name in said} for kind, known in names.items()}
    sharing = int(str(said.get("sequence_parallel", 1)))
    settings = Settings(stage=stage, **words["settings"], train_batch=6 * gpus // sharing)  # type: ignore[arg-type]
    cluster = replace(fake_cluster(gpus), gpus_per_node=gpus_per_node)
    workload = Workload(**words["workload"])  # type: ignore[arg-type]
    return launch_of(Job(fake_model(), cluster, settings, workload), target, "a model")


class Called(NamedTuple):
    """What a launcher was called with: its name first."""

    words: list[str]
    environment: dict[str, str]


def called(command: str, cwd: Path, **environment: str) -> Called:
    """The launcher that ``command``, run by bash in ``cwd``, ends in; none of them is real."""
    programs, record = cwd / "programs", cwd / "record"
    programs.mkdir(exist_ok=True)
    for name in LAUNCHERS:
        (programs / name).write_text(RECORDER)
        (programs / name).chmod(stat.S_IRWXU)
    path = os.pathsep.join([str(programs), os.environ["PATH"]])
    clean = {name: os.environ[name] for name in ("LANG", "TMPDIR") if name in os.environ}
    env = {**clean, "PATH": path, "HOME": str(cwd), "RECORD": str(record), **environment}
    subprocess.run(["bash", "-euc", command], cwd=cwd, env=env, check=True, timeout=60)
    variables = (pair.partition("=") for pair in Path(f"{record}.env").read_text().split("\0"))
    return Called(record.read_text().split("\0")[:-1], {name: value for name, _, value in variables})


def parsed(call: Called) -> Namespace:
    """The call as the launcher that was called reads it."""
    if call.words[0] == "torchrun":
        run = pytest.importorskip("torch.distributed.run")
        found: Namespace = run.get_args_parser().parse_args(call.words[1:])
        return found
    if call.words[0] == "deepspeed":
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("DS_ACCELERATOR", "cpu")
            runner = pytest.importorskip("deepspeed.launcher.runner")
        return Namespace(**vars(runner.parse_args(call.words[1:])))
    command = pytest.importorskip("accelerate.commands.launch")
    assert call.words[1] == "launch"
    parser: ArgumentParser = command.launch_command_parser()
    return parser.parse_args(call.words[2:])


def write_folder(job: Launch, folder: Path, *, slurm: bool = False) -> None:
    """What ``recommend -o folder`` writes for ``job``."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = {"ds_config.json": render(job.settings, job.target)}
    for name, text in (texts | launch_files(job, str(folder), "ds_config.json", slurm=slurm)).items():
        (folder / name).write_text(text)
