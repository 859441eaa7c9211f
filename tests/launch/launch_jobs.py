"""Jobs whose launch is tested, and launchers that write down what they were called with."""

from __future__ import annotations

import os
import stat
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from search_fakes import fake_cluster, fake_model

from dsconf.config.settings import Settings
from dsconf.job import Job
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
