"""The fullest rank without looking at the moments of any, and what a job's frame keeps for other batches."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import settings as settings_of_hypothesis
from hypothesis import strategies as st
from small_models import job, tiny
from test_estimate_properties import REAL, settings, shapes

import dsconf
from dsconf.memory.estimate import estimate
from dsconf.memory.timeline import common, stage_1_and_2
from dsconf.memory.timeline.common import Frame, Rise
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


UNEVEN = {"layers": 2, "vocab": 1, "hidden": 2, "mlp": 13, "tied": False}
PLAIN = {"stage": 2, "precision": "bf16", "micro_batch": 4, "reduce_bucket_size": 1, "offload_optimizer": "none"}
OFFLOADED = {"stage": 2, "precision": "fp16", "accumulation": 2, "reduce_bucket_size": 1000, "offload_optimizer": "cpu"}


@given(shape=shapes(), words=WORDS, more=MORE, world_size=st.integers(1, 16))
@example(UNEVEN, PLAIN, {}, 4)
@example(UNEVEN | {"vocab": 300}, OFFLOADED, {"grad_accum_dtype": "fp32"}, 16)
@example(UNEVEN | {"vocab": 300}, OFFLOADED | {"stage": 1}, {"communication_dtype": "fp32"}, 16)
@example(UNEVEN | {"hidden": 32}, PLAIN, {"optimizer": "muon", "grad_accum_dtype": "fp32"}, 13)
@settings_of_hypothesis(max_examples=300, deadline=None)
def test_no_rank_is_fuller_than_the_fullest(
    shape: dict[str, Any], words: dict[str, Any], more: dict[str, Any], world_size: int
) -> None:
    """Of all there are, to the byte; and the rank that is named has that peak."""
    one = job(tiny(**shape), world_size, **words, **more)
    found = estimate(one)
    peaks = [estimate(one, rank).peak_bytes for rank in range(world_size)]
    assert (found.peak_bytes, peaks[found.rank]) == (max(peaks), max(peaks))


@pytest.mark.parametrize("offload", ["none", "cpu"])
@pytest.mark.parametrize("gpus", [2, 8, 16, 24, 64])
@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("name", REAL)
def test_no_rank_of_a_real_model_is_fuller(name: str, stage: int, gpus: int, offload: str) -> None:
    one = job(read_model(model=name), gpus, stage=stage, precision="bf16", seq_len=256, offload_optimizer=offload)
    assert estimate(one).peak_bytes == max(estimate(one, rank).peak_bytes for rank in range(gpus))


def test_the_rank_with_the_largest_piece_of_a_gradient_is_the_fullest_offloaded() -> None:
    """Stage 1 on 16 GPUs: rank 0 owns 501,891,328 elements of the embedding, whose norm it takes in fp64 as the first
    bucket goes to the host: 8 bytes each, 3.74 GiB. Rank 2 has no piece of an embedding."""
    words = {"model": "meta-llama/Llama-3.1-8B", "gpus": 16, "stage": 1, "offload": "optimizer", "seq_len": 1024}
    found = dsconf.estimate(**words, activation_checkpointing=True)
    terms = {term.name: term.num_bytes for term in found.peak.terms}
    assert (found.rank, found.peak.name) == (0, "copying gradients this rank owns")
    assert terms["fp64 gradient for the norm"] == 8 * 501_891_328
    assert dsconf.estimate(**words, activation_checkpointing=True, rank=2).peak_bytes < found.peak_bytes


@pytest.mark.parametrize(
    ("name", "gpus", "words", "at_most"),
    [
        ("gpt2", 8, {"stage": 2}, 7),
        ("gpt2", 64, {"stage": 2}, 13),
        ("facebook/opt-1.3b", 4, {"stage": 2}, 4),
        ("meta-llama/Llama-3.1-70B", 8, {"stage": 1}, 5),
        ("meta-llama/Llama-3.1-70B", 1024, {"stage": 1}, 6),
        ("meta-llama/Llama-3.1-70B", 1024, {"stage": 2}, 12),
        ("meta-llama/Llama-3.1-70B", 1024, {"stage": 2, "offload_optimizer": "cpu"}, 12),
        ("meta-llama/Llama-3.1-8B", 1024, {"stage": 2, "optimizer": "muon"}, 30),
        ("mistralai/Mixtral-8x7B-v0.1", 64, {"stage": 1}, 25),
    ],
)
def test_of_many_ranks_few_are_looked_at(
    name: str, gpus: int, words: dict[str, Any], at_most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And none again when the terms of the fullest are asked for, but that one."""
    looked: list[int] = []
    rises = stage_1_and_2.rises

    def rises_of(frame: Frame, accumulating: bool, sharded_loss: bool, rank: int) -> tuple[Rise, ...]:
        looked.append(rank)
        return rises(frame, accumulating, sharded_loss, rank)

    monkeypatch.setattr("dsconf.memory.timeline.stage_1_and_2.rises", rises_of)
    common._frame.cache_clear()
    one = job(read_model(model=name), gpus, precision="bf16", seq_len=2048, checkpointing=True, **words)
    found = estimate(one)
    assert len(looked) <= at_most
    assert found.peak.num_bytes == found.peak_bytes
    assert looked[-1] == found.rank
    assert len(looked) <= at_most + 1
