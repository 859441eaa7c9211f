"""What the recommender would choose among candidates that were all trained on one card, against measured steps."""

from __future__ import annotations

import json
import statistics
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from dsconf import recommend
from dsconf.cluster.read import read_cluster
from dsconf.config.resolve import resolve
from dsconf.job import Job
from dsconf.model.read import read_model
from dsconf.search.candidates import Candidate, evaluate, real_models
from dsconf.search.rank import choose, ranked
from dsconf.workload import Workload

MEASURED = Path(__file__).parents[1] / "measured"
FILES = (
    "h200-step-times-grid.jsonl",
    "h200-step-times-unseen-grid.jsonl",
    "h200-step-times-third-grid.jsonl",
    "h100-step-times-grid.jsonl",
)
WARM_UP = 2


@cache
def rows() -> dict[str, list[dict[str, Any]]]:
    """DeepSpeed's rows by model and adapters; of a candidate that was run twice the later one."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    lines = [line for name in FILES for line in (MEASURED / name).read_text().splitlines()]
    for row in map(json.loads, lines):
        if row["engine"] == "deepspeed":
            found.setdefault(row["name"].partition(":")[0], {})[row["name"]] = row
    return {name: list(group.values()) for name, group in found.items() if len(group) > 1}


def candidate(row: dict[str, Any]) -> Candidate:
    model = read_model(model=row["model"], lora_rank=row["lora_rank"] or None)
    workload = Workload(
        seq_len=row["seq_len"],
        micro_batch=row["micro_batch_size"],
        accumulation=row["gradient_accumulation_steps"],
        checkpointing=row["gradient_checkpointing"],
    )
    cluster = read_cluster(1, row.get("gpu", "h200"), host_memory="300GiB" if "cpu_cores" in row else "110GiB")
    cluster = replace(cluster, cpu_cores=row.get("cpu_cores", 16))
    return evaluate(Job(model, cluster, resolve(row["ds_config"], 1), workload), real_models())


def seconds(row: dict[str, Any]) -> float:
    return statistics.median(row["measured"]["step_seconds"][WARM_UP:])


@pytest.mark.parametrize("name", list(rows()))
def test_the_choice_reaches_95_percent_of_the_fastest_measured(name: str) -> None:
    """Of those with states as precise as its own: bf16 states are another training, taken where no other fits."""
    by_candidate = {id(one := candidate(row)): (one, row) for row in rows()[name]}
    order = ranked(one for one, _ in by_candidate.values())
    chosen = choose(order)
    assert chosen is not None
    fastest = min(
        seconds(row)
        for one, row in by_candidate.values()
        if one.settings.bf16_optimizer_states == chosen.settings.bf16_optimizer_states
    )
    assert fastest / seconds(by_candidate[id(chosen)][1]) >= 0.95


@pytest.mark.parametrize("name", list(rows()))
def test_the_choice_is_not_slower_than_the_next_in_order(name: str) -> None:
    by_candidate = {id(one := candidate(row)): (one, row) for row in rows()[name]}
    order = ranked(one for one, _ in by_candidate.values())
    chosen = choose(order)
    following = next(one for one in order if one is not chosen)
    noise = 1.05
    assert seconds(by_candidate[id(chosen)][1]) <= noise * seconds(by_candidate[id(following)][1])


def test_what_ran_was_not_said_to_be_too_large() -> None:
    assert {candidate(row).fits for group in rows().values() for row in group} <= {"yes", "tight"}


def test_what_ran_out_of_memory_is_not_said_to_fit() -> None:
    """Llama 3.1 8B in torch alone with activation checkpointing ran out of memory on the H200 at micro-batches 8 and
    16, where torch's loop over lists holds the roots of all second moments at once in the optimizer step."""
    found = recommend(model="meta-llama/Llama-3.1-8B", gpus=1, gpu="h200", seq_len=1024, global_batch_size=16)
    alone = [one for one in found.candidates if one.settings.engine == "ddp" and one.workload.checkpointing]
    assert alone
    assert {(one.fits, one.estimate.peak_phase) for one in alone} == {("no", "step")}


def test_a_candidate_of_torch_alone_that_ran_out_of_memory_is_not_said_to_fit() -> None:
    """Falcon with ALiBi under autocast: each layer keeps a 16-bit copy of the mask of all heads."""
    lines = [line for name in FILES for line in (MEASURED / name).read_text().splitlines()]
    failed = [row for row in map(json.loads, lines) if "OutOfMemory" in row.get("error", "")]
    assert [row["name"] for row in failed] == ["falcon-rw-1b: ddp torch DDP, micro-batch 16"]
    assert failed[0]["gpu"] == "H100 SXM 80GB"
    found = recommend(model=failed[0]["model"], gpus=1, gpu="h100-80gb", seq_len=1024, global_batch_size=16)
    (same,) = (
        one
        for one in found.candidates
        if one.settings.engine == "ddp" and one.workload.micro_batch == 16 and not one.workload.checkpointing
    )
    assert same.fits == "no"


def test_the_files_models_reach_from_a_tenth_to_eight_billion_parameters() -> None:
    sizes = {name: read_model(model=group[0]["model"]).num_params for name, group in rows().items()}
    assert len(sizes) == 31
    assert min(sizes.values()) < 0.2e9
    assert max(sizes.values()) > 8e9
