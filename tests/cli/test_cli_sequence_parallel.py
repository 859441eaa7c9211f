"""``dsconf estimate --sequence-parallel`` and ``--tiled-loss``."""

from __future__ import annotations

import json
from typing import Any

import pytest
from click.testing import CliRunner

import dsconf
from dsconf.cli import group

JOB = ("--params", "8B", "--gpus", "8", "--stage", "3", "--seq-len", "65536")
WORDS: dict[str, Any] = {"params": "8B", "gpus": 8, "stage": 3, "seq_len": 65536}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--sequence-parallel", "4"), {"sequence_parallel": 4}),
        (("--tiled-loss", "--sequence-parallel", "4"), {"sequence_parallel": 4, "tiled_loss": True}),
        (("--tiled-loss", "8"), {"tiled_loss": 8}),
        (("--tiled-loss=auto",), {"tiled_loss": "auto"}),
    ],
)
def test_the_words_of_the_command_line(options: tuple[str, ...], words: dict[str, Any]) -> None:
    run = CliRunner().invoke(group, ["estimate", *JOB, *options, "--format", "json"])
    assert run.exit_code == 0
    expected = dsconf.estimate(**WORDS, **words).peak_bytes
    assert json.loads(run.stdout)["peak_bytes"] == expected < dsconf.estimate(**WORDS).peak_bytes


def test_a_refusal_is_one_line() -> None:
    run = CliRunner().invoke(group, ["estimate", *JOB, "--sequence-parallel", "3"])
    assert run.exit_code == 2
    assert run.stderr.splitlines() == ["dsconf: --sequence-parallel: 3 does not divide the 8 GPUs"]
