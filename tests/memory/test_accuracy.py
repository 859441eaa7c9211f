"""Predicted against measured peaks, of rank 0 or of every real rank: all cases of six files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from measured_cases import MEASURED, MIB, REPO

from benchmarks.memory import accuracy
from dsconf.memory.estimate import estimate

FILES = {
    "h200-llama-qwen2-gpt2.jsonl": 159,
    "h200-ten-families.jsonl": 66,
    "h200-unseen-settings.jsonl": 56,
    "h200-optimizers.jsonl": 14,
    "h200-wider-space.jsonl": 6,
    "h200-real-ranks.jsonl": 44,
}
ROWS: dict[str, list[dict[str, Any]]] = {name: accuracy.read(MEASURED / name) for name in FILES}
EVERY = [row for rows in ROWS.values() for row in rows]
NAMED = {row["name"]: row for row in EVERY}

OUTSIDE = {
    "gpt2m-ddp-fp32": "4 bytes a parameter more in the second step, most likely DDP's old buckets; see below",
    "llama1b-z3-w8-fp16": "all three steps were skipped for overflow, so the moments never came; see the test below",
    "falcon-z3-w4-b3-s512-u39": "as much as the embedding is held from forward on, and it is not known by what",
}
"""Cases that are further off than 3 %, and why."""


def test_the_files_are_whole() -> None:
    assert {name: len(rows) for name, rows in ROWS.items()} == FILES
    assert len(NAMED) == sum(FILES.values())
    assert set(OUTSIDE) <= set(NAMED)


@pytest.mark.parametrize("name", [name for name in NAMED if name not in OUTSIDE])
def test_each_case_is_within_3_percent(name: str) -> None:
    assert abs(accuracy.result_of(NAMED[name]).error) < 3


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.xfail(strict=True, reason=r)) for n, r in OUTSIDE.items()]
)
def test_cases_that_are_known_to_be_further_off(name: str) -> None:
    assert abs(accuracy.result_of(NAMED[name]).error) < 3


@pytest.mark.parametrize("file", FILES)
def test_in_the_median_they_are_within_half_a_percent(file: str) -> None:
    assert median(abs(accuracy.result_of(row).error) for row in ROWS[file]) < 0.5


def test_19_of_20_are_within_1_percent() -> None:
    errors = [abs(accuracy.result_of(row).error) for row in EVERY]
    assert accuracy.percentile(errors, 0.95) < 1


def test_the_third_step_of_plain_ddp_is_as_predicted() -> None:
    """gpt2m-ddp-fp32: forward and backward of step 2 were 1354 MiB higher than of step 3, 4 bytes x 354 823 168.

    DDP frees its first buckets when it rebuilds them (torch: Reducer::rebuild_buckets); another run did not hold them.
    """
    row = NAMED["gpt2m-ddp-fp32"]
    second, third = row["measured"]["iterations"][1:]
    extra = 4 * row["n_params"] / MIB
    assert second["bwd_mib"] - third["bwd_mib"] == pytest.approx(extra, abs=1)
    assert accuracy.result_of(row).predicted / MIB == pytest.approx(third["bwd_mib"], rel=0.001)


def test_no_other_case_is_5_percent_off() -> None:
    far = {name for name, row in NAMED.items() if abs(accuracy.result_of(row).error) >= 5}
    assert far == {"gpt2m-ddp-fp32", "llama1b-z3-w8-fp16"}


def test_a_bucket_larger_than_the_model_is_made_in_the_head() -> None:
    """phi-z2-w32-b2-s384-u14: 500 million elements beside all activations and the output projection's gradient.

    The hook of its bias comes first, while the weight's gradient of 51 200 x 1024 still waits for its own.
    """
    result = accuracy.result_of(NAMED["phi-z2-w32-b2-s384-u14"])
    peak = estimate(result.job, rank=0).peak
    terms = {term.name: term.num_bytes for term in peak.terms}
    assert peak.name == "in the output projection"
    assert terms["reduce bucket"] == 2 * 500_000_000
    assert terms["newest gradient"] == 2 * 51_200 * 1025
    assert abs(result.error) < 0.5


def test_without_the_moments_the_skipped_steps_are_as_predicted() -> None:
    """llama1b-z3-w8-fp16: 8 bytes a parameter on an eighth are what the overflowed steps never allocated."""
    row = NAMED["llama1b-z3-w8-fp16"]
    without = accuracy.result_of(row).predicted - 8 * row["n_params"] // row["world_size"]
    assert without / MIB == pytest.approx(row["measured"]["peak_mib"], rel=0.005)


def test_parameters_are_counted_exactly() -> None:
    for row in EVERY:
        if "n_params" in row:
            assert accuracy.job_of(row).model.num_params == row["n_params"] or row["lora"], row["name"]


def test_what_real_ranks_hold_outside_torch() -> None:
    """CUDA's context and NCCL: one communicator of DDP and stage 3, two of DeepSpeed's other stages."""
    for row in ROWS["h200-real-ranks.jsonl"]:
        found = estimate(accuracy.job_of(row), rank=row["rank"])
        outside = (found.process_bytes - found.reserved_bytes) / MIB
        assert outside == pytest.approx(row["measured"]["outside_mib"], rel=0.03), row["name"]


@pytest.mark.parametrize("name", ["llama1b-z2-w8-lora", "llama1b-z3-w8-lora"])
def test_lora_trains_its_adapters_only(name: str) -> None:
    """r x (inputs + outputs) of each linear layer: q, o 4096, k, v 2560, gate, up, down 10240 of 16 layers, r = 16."""
    per_layer = 16 * (2 * (2048 + 2048) + 2 * (2048 + 512) + 3 * (2048 + 8192))
    assert accuracy.job_of(NAMED[name]).model.parameters.trainable() == 16 * per_layer


def test_deepspeeds_own_estimators_by_hand() -> None:
    """2 + 18/N bytes at stage 2; at stage 3 18/N and 4 times the largest module, Llama's embedding of 128256 x 2048."""
    total, embedding = 1_235_814_400, 128_256 * 2048
    two = accuracy.result_of(NAMED["llama1b-z2-w64-b2-s1024"])
    assert two.theirs == 2 * total + 18 * total // 64
    three = accuracy.result_of(NAMED["llama1b-z3-w8-b2-s1024"])
    assert three.theirs == 4 * embedding + 18 * total // 8
    assert accuracy.result_of(NAMED["llama1b-z1-w8-b2-s1024"]).theirs is None


def test_deepspeeds_own_estimators_are_deepspeeds() -> None:
    """The same figures from DeepSpeed itself, for each case of the second file that it has an estimator for."""
    pytest.importorskip("deepspeed")
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
    from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs

    compared = 0
    for row in ROWS["h200-ten-families.jsonl"]:
        result = accuracy.result_of(row)
        settings, total = result.job.settings, result.job.model.num_params
        where = {"num_gpus_per_node": row["world_size"], "cpu_offload": settings.offload_optimizer != "none"}
        if settings.stage == 2:
            _, theirs = estimate_zero2_model_states_mem_needs(total, **where)
        elif settings.stage == 3:
            where["cpu_offload_params"] = settings.offload_param != "none"
            largest = accuracy._largest_module(result.job)
            _, theirs, _ = estimate_zero3_model_states_mem_needs(total, largest, **where)
        else:
            assert result.theirs is None
            continue
        assert result.theirs == pytest.approx(theirs, abs=1)
        compared += 1
    assert compared == 44


def _run(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.memory.accuracy", *words]
    return subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=120)


def test_the_benchmark_prints_cases_then_groups() -> None:
    done = _run(str(MEASURED / "h200-ten-families.jsonl"), "--strict")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert sum("-z" in line.split()[0] for line in lines if line.strip()) == 66
    for group in (
        "all",
        "stage: ZeRO 1",
        "family: mixtral",
        "checkpointing: on",
        "attention: eager",
        "precision: fp16",
    ):
        assert any(line.startswith(group) for line in lines), group


def test_the_benchmark_says_what_is_wrong_in_one_line(tmp_path: Path) -> None:
    broken = tmp_path / "broken.jsonl"
    for text, word in (("{", "broken.jsonl"), ("", "no cases"), (json.dumps({"name": "x"}), "has no 'model'")):
        broken.write_text(text, encoding="utf-8")
        done = _run(str(broken))
        assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
        assert word in done.stderr
    assert _run(str(tmp_path / "missing.jsonl")).returncode == 1
