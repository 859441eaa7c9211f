"""``dsconf stages`` as a person runs it."""

from __future__ import annotations

import json
from pathlib import Path
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
    lines = [line.split()[0] for line in result.stdout.splitlines() if line.startswith("  ")]
    assert lines == ["stage", "a", "0", "1", "2", "3"]
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


def test_why_stages_1_and_2_are_equal_and_where_they_are_not() -> None:
    words = ("--model", "meta-llama/Llama-2-7b-hf", "--gpus", "8", "--gpu", "a100-80gb", "--seq-len", "1024")
    one, two = rows(*words)[1:3]
    assert one["estimate"] == two["estimate"]
    text = CliRunner().invoke(group, ["stages", *words]).stdout
    assert "Stages 1 and 2 are equal here: with overlap_comm both reduce each bucket" in text
    one, two = rows(*words, "--global-batch-size", "32")[1:3]
    assert one["estimate"]["peak_bytes"] > two["estimate"]["peak_bytes"]
    assert "are equal here" not in CliRunner().invoke(group, ["stages", *words, "--global-batch-size", "32"]).stdout


def test_the_settings_are_those_that_estimate_needs(tmp_path: Path) -> None:
    words = ("--model", "meta-llama/Llama-2-7b-hf", "--gpus", "8", "--gpu", "a100-80gb", "--seq-len", "1024")
    text = CliRunner().invoke(group, ["stages", *words]).stdout
    assert "reduce_bucket_size 200,000,000, allgather_bucket_size 200,000,000, overlap_comm true" in text
    assert rows(*words)[0]["settings"] == {}
    config = {"train_micro_batch_size_per_gpu": 1, "bf16": {"enabled": True}, "optimizer": {"type": "AdamW"}}
    for row in rows(*words)[1:]:
        file = tmp_path / "ds_config.json"
        file.write_text(json.dumps(config | {"zero_optimization": {"stage": row["stage"], **row["settings"]}}))
        command = ["estimate", *words, "--config", str(file), "--format", "json"]
        found = json.loads(CliRunner().invoke(group, command).stdout)
        assert found["process_bytes"] == row["estimate"]["process_bytes"]


def test_a_slower_network_slows_stages_on_several_nodes_and_is_named() -> None:
    words = ("--params", "1B", "--gpus", "16", "--gpu", "h100-80gb")
    near, far = rows(*words), rows(*words, "--network", "10Gbit/s")
    assert all(slow["tokens_per_second"] < fast["tokens_per_second"] for fast, slow in zip(near, far, strict=True))
    told = [CliRunner().invoke(group, ["stages", *words, *more]).stdout for more in ((), ("--network", "10Gbit/s"))]
    assert "in 2 nodes, network 400 Gbit/s a GPU (assumed, --network)\n" in told[0]
    assert "in 2 nodes, network 10 Gbit/s a GPU\n" in told[1]
