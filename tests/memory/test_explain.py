"""``--explain``: the numbers behind every term add up to its bytes."""

from __future__ import annotations

import re
from typing import Any

import pytest

from dsconf.job import Job
from dsconf.memory.estimate import estimate
from dsconf.memory.explain import explain
from dsconf.read_job import read_job

JOBS = {
    "stage 1": {"stage": 1, "micro_batch_size": 4, "seq_len": 1024},
    "stage 2": {"stage": 2, "gpus": 8},
    "stage 2, offloaded": {"stage": 2, "gpus": 8, "offload": "optimizer"},
    "stage 3": {"stage": 3, "gpus": 8},
    "stage 3, fp16": {"stage": 3, "gpus": 4, "precision": "fp16"},
    "stage 0": {"stage": 0, "precision": "fp32"},
    "checkpointed": {"stage": 3, "gpus": 8, "activation_checkpointing": True},
}


def _job(**words: Any) -> Job:
    return read_job(params=None, model="Qwen/Qwen2.5-0.5B", **{"gpus": 1} | words)


def _numbers(line: str) -> list[int]:
    return [int(n.replace(",", "")) for n in re.findall(r"\d[\d,]*", line)]


@pytest.mark.parametrize("words", JOBS.values(), ids=JOBS)
def test_every_term_of_every_moment_is_explained_in_figures(words: dict[str, object]) -> None:
    job = _job(**words)
    found = estimate(job, 0)
    for moment in found.moments:
        for term in moment.terms:
            lines = explain(job, 0, term)
            assert any(_numbers(line) for line in lines), term.name
            if term.name == "saved activations":
                before, layers, each, rest, total = _numbers(lines[0])
                assert before + layers * each + rest == total == term.num_bytes
            elif "elements" in lines[0]:
                assert _numbers(lines[0])[-1] == term.num_bytes
                width, elements = _numbers(lines[0])[:2]
                assert 0 <= term.num_bytes - width * elements < width


def test_master_weights_are_four_bytes_for_each_parameter_of_the_slice() -> None:
    """494 032 768 parameters in 8 slices of 61 754 096, of 4 bytes each, are 117.8 pieces of 2 MiB: 118 are taken."""
    assert 118 * 2**21 == 247_463_936 == 4 * 61_865_984
    job = _job(stage=2, gpus=8)
    found = estimate(job, 0)
    (term,) = (term for term in found.peak.terms if term.name == "master weights")
    assert explain(job, 0, term) == (
        "4 bytes × 61,865,984 elements = 247,463,936 bytes, padding and the allocator's rounding included",
        "of 494,032,768 trained parameters (136,134,656 in the largest), 8 ranks",
    )


def test_the_operations_of_a_layer_add_up_to_what_it_keeps() -> None:
    """Layers are the same, so the list of one times their number is the term, but for what lies before them."""
    job = _job(stage=2, gpus=8, seq_len=512)
    found = estimate(job, 0)
    terms = (term for moment in found.moments for term in moment.terms if term.name == "saved activations")
    lines = explain(job, 0, max(terms, key=lambda term: term.num_bytes))
    _, _, each, *_ = _numbers(lines[0])
    assert sum(_numbers(line)[0] for line in lines[2:]) == each
