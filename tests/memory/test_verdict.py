"""The verdict against measured out-of-memory boundaries, and its figures by hand."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import replace
from typing import Any

import pytest
from measured_cases import MEASURED, MIB

from benchmarks.memory import accuracy
from dsconf import estimate
from dsconf.cluster.catalogue import find_gpu
from dsconf.cluster.spec import Cluster
from dsconf.config.settings import Settings
from dsconf.job import Job
from dsconf.memory.estimate import estimate as estimate_job
from dsconf.memory.fit import shortfall_bytes, verdict
from dsconf.memory.timeline.reserved import largest_request, nccl_bytes, reserved
from dsconf.read_job import read_job

ALLOCATOR = {"expandable_segments:True": "expandable", "default": "default"}
CASES = {
    row["name"]: row
    for name in ("h200-llama-qwen2-gpt2.jsonl", "h200-ten-families.jsonl")
    for row in accuracy.read(MEASURED / name)
}
BOUNDARY: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
for line in (MEASURED / "h200-oom-boundary.jsonl").read_text().splitlines():
    BOUNDARY[json.loads(line)["base"], json.loads(line)["allocator"]].append(json.loads(line))


def _with(job: Job, allocator: str) -> Job:
    return replace(job, workload=replace(job.workload, allocator=allocator))


@pytest.mark.parametrize(("base", "allocator"), BOUNDARY)
def test_what_is_reserved_is_more_than_any_cap_that_failed(base: str, allocator: str) -> None:
    job = _with(accuracy.job_of(CASES[base]), ALLOCATOR[allocator])
    peak = CASES[base]["measured"]["peak_mib"] * MIB
    failed = [row["cap_over_peak"] for row in BOUNDARY[base, allocator] if not row["ran"]]
    assert reserved(job, int(peak)) > max(failed, default=1.0) * peak


def test_the_boundary_was_met_from_both_sides() -> None:
    rows = [row for found in BOUNDARY.values() for row in found]
    for allocator, least in (("default", 40), ("expandable_segments:True", 10)):
        mine = [row for row in rows if row["allocator"] == allocator]
        assert sum(not row["ran"] for row in mine) > least
        assert sum(row["ran"] for row in mine) > 40
    assert len({row["base"] for row in rows}) == 25


def _job(**words: Any) -> Job:
    return read_job(params=None, model="Qwen/Qwen2.5-0.5B", gpus=words.pop("gpus", 8), **words)


def test_reserved_by_hand() -> None:
    # 2 × 1024 tokens of 151936 logits in fp32 are larger than the 5e8-element bucket in bf16.
    job = _job(seq_len=1024, micro_batch_size=2, stage=2)
    assert largest_request(job) == 4 * 2 * 1024 * 151936
    assert reserved(job, 10**10) == 10**10 + 3 * 10**8 + 64 * MIB
    assert reserved(_with(job, "default"), 10**10) == 10**10 + 2 * 4 * 2 * 1024 * 151936
    assert largest_request(_job(seq_len=128, stage=2)) == 2 * 500_000_000


def test_the_default_allocator_turns_a_yes_into_less() -> None:
    words: dict[str, Any] = {"model": "Qwen/Qwen2.5-0.5B", "gpus": 8, "seq_len": 4096, "micro_batch_size": 2}
    found, plain = estimate(**words), estimate(**words, allocator="default")
    assert plain.peak_bytes == found.peak_bytes
    outside = found.process_bytes - found.reserved_bytes
    between = replace(find_gpu("h100-80gb"), memory_bytes=found.process_bytes)
    assert verdict(found, between) == "yes"
    assert verdict(plain, between) == "tight"
    assert shortfall_bytes(plain, between) == plain.reserved_bytes - found.reserved_bytes
    assert verdict(found, replace(between, memory_bytes=found.peak_bytes + outside)) == "tight"
    assert verdict(found, replace(between, memory_bytes=found.peak_bytes + outside - 1)) == "no"


def test_a_model_that_cannot_be_loaded_does_not_fit() -> None:
    """Without zero.Init each rank holds the whole model before it is cut up; the steps would need a fraction."""
    words: dict[str, Any] = {"params": "70B", "gpus": 256, "gpu": "a100-80gb", "stage": 3, "micro_batch_size": 1}
    words |= {"activation_checkpointing": True}
    gpu = find_gpu("a100-80gb")
    assert verdict(estimate(**words), gpu) == "yes"
    whole = estimate(**words, zero_init=False)
    assert whole.peak_bytes < gpu.memory_bytes / 2
    assert whole.init_peak_bytes > gpu.memory_bytes
    assert verdict(whole, gpu) == "no"


def test_parameters_that_do_not_fit_twice_are_flattened_on_the_host() -> None:
    job = _job(stage=2)
    bare = 2 * job.model.num_params
    at_start = estimate_job(job).init_peak_bytes
    assert 2 * bare < at_start < 2 * bare + 4 * MIB
    small = replace(job.cluster.gpu, memory_bytes=2 * bare)
    tight = replace(job, cluster=replace(job.cluster, gpu=small))
    assert bare < estimate_job(tight).init_peak_bytes < 2 * bare


def test_nccl_by_hand() -> None:
    """Kernels and communicator, and over NVLink 24 channels of one LL, one LL128 and one SIMPLE buffer; of those that
    reduce in a clone of the world's group 484 MiB more."""
    nvlink, pcie = find_gpu("h100-80gb"), find_gpu("l4")
    third, ring = Settings(stage=3), 524_288 + 4_915_200 + 4_194_304
    assert nccl_bytes(Cluster(nvlink, 1, 8), third) == 558 * MIB
    assert nccl_bytes(Cluster(nvlink, 8, 8), third) == 558 * MIB + 24 * ring
    assert nccl_bytes(Cluster(nvlink, 8, 8), Settings(engine="ddp")) == 558 * MIB + 24 * ring
    assert nccl_bytes(Cluster(pcie, 2, 2), third) == 558 * MIB + 2 * ring
    clone = 484 * MIB // 24
    for stage in (0, 1, 2):
        assert nccl_bytes(Cluster(nvlink, 8, 8), Settings(stage=stage)) == 558 * MIB + 24 * (ring + clone)
    assert nccl_bytes(Cluster(pcie, 2, 2), Settings(stage=1)) == 558 * MIB + 2 * (ring + clone)
