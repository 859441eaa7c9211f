"""The fullest rank without looking at the moments of any, and what a job's frame keeps for other batches."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_models import job, tiny
from test_estimate_properties import settings, shapes

from dsconf.memory.estimate import estimate
from dsconf.memory.timeline import common, stage_1_and_2
from dsconf.memory.timeline.common import Alive, Step, prepare
from dsconf.memory.zero.slices import rivals
from dsconf.memory.zero.wrapper import reduces_in_hooks
from dsconf.model.read import read_model

WORDS = settings(stages=(1, 2))
MORE = st.fixed_dictionaries(
    {
        "optimizer": st.sampled_from(("adamw", "sgd", "adafactor", "muon")),
        "grad_accum_dtype": st.sampled_from((None, None, "fp32")),
        "communication_dtype": st.sampled_from((None, "fp32")),
        "reduce_scatter": st.booleans(),
        "contiguous_gradients": st.booleans(),
    }
)


@given(shape=shapes(), words=settings(), more=MORE, world_size=st.integers(1, 16))
def test_the_peak_is_that_of_its_moment(
    shape: dict[str, Any], words: dict[str, Any], more: dict[str, Any], world_size: int
) -> None:
    """Its bytes are found before its terms are named."""
    found = estimate(job(tiny(**shape), world_size, **words, **more))
    assert found.peak_bytes == found.peak.num_bytes == max(moment.num_bytes for moment in found.moments)


@given(shape=shapes(), words=settings(), more=MORE, world_size=st.integers(1, 16))
def test_another_batch_changes_nothing_that_is_kept(
    shape: dict[str, Any], words: dict[str, Any], more: dict[str, Any], world_size: int
) -> None:
    one = job(tiny(**shape), world_size, **words, **more)
    work = one.workload
    batch = {"micro_batch": work.micro_batch + 1, "accumulation": 3 - work.accumulation, "seq_len": work.seq_len + 1}
    estimate(replace(one, workload=replace(work, **batch, checkpointing=not work.checkpointing)))
    found = estimate(one)
    common._frame.cache_clear()
    assert found == estimate(one)
    assert found.moments == estimate(one).moments


@given(shape=shapes(), words=WORDS, more=MORE, world_size=st.integers(2, 16))
def test_the_first_of_the_fullest_is_found(
    shape: dict[str, Any], words: dict[str, Any], more: dict[str, Any], world_size: int
) -> None:
    """The same as from an estimate of each rank that is worth a try."""
    one = job(tiny(**shape), world_size, **words, **more)
    step = prepare(one)
    if step.wrapper != "zero12":
        return
    buffered = one.settings.offload_optimizer == "none" or not stage_1_and_2.alike(one.settings)
    if one.settings.optimizer == "muon" and one.settings.offload_optimizer != "none":
        return
    ranks = rivals(one.model, world_size, reduces_in_hooks(one.settings), buffered)
    peaks = [estimate(one, rank).peak_bytes for rank in ranks]
    found = estimate(one)
    assert (found.rank, found.peak_bytes) == (ranks[peaks.index(max(peaks))], max(peaks))


@pytest.mark.parametrize(
    ("name", "gpus", "stage", "worth_a_try"),
    [
        ("gpt2", 8, 2, 6),
        ("gpt2", 64, 2, 13),
        ("facebook/opt-1.3b", 4, 2, 4),
        ("meta-llama/Llama-3.1-70B", 8, 1, 5),
        ("mistralai/Mixtral-8x7B-v0.1", 64, 1, 25),
    ],
)
def test_of_many_ranks_none_is_looked_at_until_the_terms_of_the_fullest_are_asked_for(
    name: str, gpus: int, stage: int, worth_a_try: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[int] = []

    def moments_of(step: Step, rank: int) -> list[Alive]:
        looked.append(rank)
        return stage_1_and_2.moments(step, rank)

    monkeypatch.setattr("dsconf.memory.estimate.moments", moments_of)
    one = job(read_model(model=name), gpus, stage=stage, precision="bf16", seq_len=2048, checkpointing=True)
    assert len(rivals(one.model, gpus, stage == 2)) == worth_a_try
    found = estimate(one)
    assert looked == []
    assert found.peak.num_bytes == found.peak_bytes
    assert looked == [found.rank]
