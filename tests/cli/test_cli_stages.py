"""``dsconf stages`` as a person runs it."""

from __future__ import annotations

import json
from typing import Any

from click.testing import CliRunner

from dsconf.cli import group


def rows(*words: str) -> list[dict[str, Any]]:
    result = CliRunner().invoke(group, ["stages", *words, "--format", "json"], prog_name="dsconf")
    assert result.exit_code == 0, result.output
    found: list[dict[str, Any]] = json.loads(result.stdout)["stages"]
    return found


def test_the_table_has_four_stages() -> None:
    result = CliRunner().invoke(group, ["stages", "--params", "7B", "--gpus", "8", "--gpu-memory", "80GiB"])
    assert result.exit_code == 0, result.output
    lines = [line.split()[0] for line in result.stdout.splitlines() if line.strip()]
    assert lines[-4:] == ["0", "1", "2", "3"]
    assert "optimizer states, gradients, parameters" in result.stdout


def test_each_stage_holds_less_than_the_one_before() -> None:
    peaks = [row["estimate"]["process_bytes"] for row in rows("--params", "7B", "--gpus", "8", "--gpu-memory", "80GiB")]
    assert peaks == sorted(peaks, reverse=True)


def test_what_is_sent_worked_out_by_hand() -> None:
    """bf16, N = 8, so 7/8 of 2 bytes a parameter a ring: two rings for an all-reduce, three where the parameters
    are gathered again. Stage 3 gathers for forward only, since all of so small a model stays gathered until
    backward, and reduce-scatters. Accumulation 4 repeats what is per micro-batch."""
    words = ("--model", "gpt2", "--gpus", "8", "--gpu-memory", "80GiB")
    ring = 2 * 124_439_808 * 7 // 8
    assert [row["sent_bytes"] for row in rows(*words)] == [2 * ring, 3 * ring, 3 * ring, 2 * ring]
    four = rows(*words, "--global-batch-size", "32")
    assert [row["sent_bytes"] for row in four] == [2 * ring, 3 * ring, 9 * ring, 8 * ring]


def test_one_gpu_sends_nothing_and_is_told_so() -> None:
    assert [row["sent_bytes"] for row in rows("--params", "125M", "--gpus", "1")] == [0, 0, 0, 0]
    result = CliRunner().invoke(group, ["stages", "--params", "125M", "--gpus", "1"])
    assert "ZeRO shards nothing" in result.stdout
