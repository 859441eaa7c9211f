"""What the recommender would choose among candidates that were all trained on an H200, against their measured steps."""

from __future__ import annotations

import json
import statistics
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from dsconf.cluster.read import read_cluster
from dsconf.config.resolve import resolve
from dsconf.job import Job
from dsconf.model.read import read_model
from dsconf.search.candidates import Candidate, evaluate, real_tools
from dsconf.search.rank import choose, ranked
from dsconf.workload import Workload

FILE = Path(__file__).parents[1] / "measured/h200-step-times-grid.jsonl"
WARM_UP = 2


@cache
def rows() -> dict[str, list[dict[str, Any]]]:
    """DeepSpeed's rows by model and adapters."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in map(json.loads, FILE.read_text().splitlines()):
        if row["engine"] == "deepspeed":
            found.setdefault(row["name"].partition(":")[0], []).append(row)
    return {name: group for name, group in found.items() if len(group) > 1}


def candidate(row: dict[str, Any]) -> Candidate:
    model = read_model(model=row["model"], lora_rank=row["lora_rank"] or None)
    workload = Workload(
        seq_len=row["seq_len"],
        micro_batch=row["micro_batch_size"],
        accumulation=row["gradient_accumulation_steps"],
        checkpointing=row["gradient_checkpointing"],
    )
    cluster = read_cluster(1, "h200", host_memory="110GiB")
    return evaluate(Job(model, cluster, resolve(row["ds_config"], 1), workload), real_tools())


def seconds(row: dict[str, Any]) -> float:
    return statistics.median(row["measured"]["step_seconds"][WARM_UP:])


@pytest.mark.parametrize("name", list(rows()))
def test_the_choice_reaches_95_percent_of_the_fastest_measured(name: str) -> None:
    by_candidate = {id(one := candidate(row)): (one, row) for row in rows()[name]}
    order = ranked(one for one, _ in by_candidate.values())
    chosen = choose(order)
    assert chosen is not None
    fastest = min(seconds(row) for row in rows()[name])
    assert fastest / seconds(by_candidate[id(chosen)][1]) >= 0.95


@pytest.mark.parametrize("name", list(rows()))
def test_the_choice_is_not_slower_than_the_next_in_order(name: str) -> None:
    by_candidate = {id(one := candidate(row)): (one, row) for row in rows()[name]}
    order = ranked(one for one, _ in by_candidate.values())
    chosen = choose(order)
    following = next(one for one in order if one is not chosen)
    noise = 1.05
    assert seconds(by_candidate[id(chosen)][1]) <= noise * seconds(by_candidate[id(following)][1])


def test_what_ran_was_said_to_fit() -> None:
    assert {candidate(row).fits for group in rows().values() for row in group} == {"yes"}


def test_the_files_models_reach_from_a_tenth_to_eight_billion_parameters() -> None:
    sizes = {name: read_model(model=group[0]["model"]).num_params for name, group in rows().items()}
    assert len(sizes) == 7
    assert min(sizes.values()) < 0.2e9
    assert max(sizes.values()) > 8e9
