"""What must hold of every estimate, whatever the job."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from small_models import job, tiny

import dsconf
from dsconf.job import Job
from dsconf.memory.estimate import estimate
from dsconf.memory.terms import TERMS
from dsconf.memory.timeline.common import frame_of
from dsconf.memory.timeline.host import host_terms
from dsconf.memory.timeline.resident import resident
from dsconf.memory.zero.slices import owned
from dsconf.model.lora import with_lora
from dsconf.model.read import read_model
from dsconf.model.spec import Model

COUNTS = st.integers(1, 500)
REAL = ("gpt2", "meta-llama/Llama-3.2-1B", "facebook/opt-1.3b", "EleutherAI/pythia-1b")


@st.composite
def shapes(draw: st.DrawFn) -> dict[str, Any]:
    """Sizes of a llama of some hundred to some hundred thousand parameters."""
    hidden = 2 * draw(st.integers(1, 32))
    return {
        "layers": draw(st.integers(1, 6)),
        "vocab": draw(st.integers(1, 2000)),
        "hidden": hidden,
        "mlp": draw(st.integers(1, 200)),
        "tied": draw(st.booleans()),
    }


@st.composite
def settings(draw: st.DrawFn, stages: tuple[int, ...] = (0, 1, 2, 3)) -> dict[str, Any]:
    """A job's words besides model and ranks; buckets from far below a parameter to far above the model."""
    stage = draw(st.sampled_from(stages))
    size = st.sampled_from((1, 10, 1000, 10**5, 10**7))
    found: dict[str, Any] = {
        "stage": stage,
        "precision": draw(st.sampled_from(("bf16", "fp16", "fp32"))),
        "seq_len": draw(st.integers(1, 64)),
        "micro_batch": draw(st.integers(1, 4)),
        "accumulation": draw(st.integers(1, 2)),
        "checkpointing": draw(st.booleans()),
        "reentrant": draw(st.booleans()),
        "attention": draw(st.sampled_from(("sdpa", "eager"))),
        "reduce_bucket_size": draw(size),
        "overlap_comm": draw(st.booleans()),
        "optimizer_fused": draw(st.booleans()),
    }
    if stage == 3:
        found |= {
            "prefetch_bucket_size": draw(st.sampled_from((0, 10, 1000, 10**6))),
            "max_live_parameters": draw(size),
            "max_reuse_distance": draw(st.sampled_from((0, 1000, 10**6))),
            "param_persistence_threshold": draw(st.sampled_from((0, 10, 1000))),
            "sub_group_size": draw(size),
        }
    if stage:
        found["offload_optimizer"] = draw(st.sampled_from(("none", "none", "cpu")))
    return found


JOBS = {"shape": shapes(), "words": settings(), "world_size": st.integers(1, 16)}


def peak(one: Job, rank: int | None = 0) -> int:
    return estimate(one, rank).peak_bytes


@given(**JOBS)
def test_terms_sum_to_the_peak(shape: dict[str, Any], words: dict[str, Any], world_size: int) -> None:
    """To the byte; every term has a formula and a source, and the peak is the highest moment after initialisation."""
    found = estimate(job(tiny(**shape), world_size, **words))
    assert sum(term.num_bytes for term in found.peak.terms) == found.peak_bytes
    for moment in found.moments:
        for term in moment.terms:
            known = TERMS[term.name]
            assert (term.num_bytes > 0, term.formula) == (True, known.formula(term.num_bytes))
            assert term.source in known.places.values()
        assert len({term.name for term in moment.terms}) == len(moment.terms)
        assert moment.num_bytes <= found.peak_bytes
    assert found.peak_phase in ("forward", "backward", "step")
    assert found.peak_bytes < found.reserved_bytes < found.process_bytes
    per_node = min(8, world_size)
    assert sum(size for _, size in found.host_terms) * per_node == found.host_bytes_per_node


@given(shape=shapes(), words=settings(stages=(0, 3)), world_size=st.integers(2, 16))
def test_without_slices_of_a_buffer_all_ranks_are_alike(
    shape: dict[str, Any], words: dict[str, Any], world_size: int
) -> None:
    one = job(tiny(**shape), world_size, **words)
    assert len({peak(one, rank) for rank in range(world_size)}) == 1


@given(shape=shapes(), words=settings(), pair=st.tuples(st.integers(1, 64), st.integers(1, 64)))
def test_more_ranks_never_raise_the_states(shape: dict[str, Any], words: dict[str, Any], pair: tuple[int, int]) -> None:
    """Apart from padding: every tensor at stage 3, and the buffer below it, may be longer by less than 2 x ranks."""
    few, many = sorted(pair)
    model = tiny(**shape)
    states = [sum(n for _, n in resident(frame_of(job(model, ranks, **words)), 0).terms) for ranks in (few, many)]
    tensors = len(model.parameters.before) + model.layers * len(model.parameters.layer) + len(model.parameters.after)
    padding = 20 * tensors if words["stage"] == 3 else 4 * 2 * many + 12 * 2
    assert states[1] <= states[0] + padding + 512 * 4


@given(
    **JOBS,
    what=st.sampled_from(("micro_batch", "seq_len")),
    by=st.integers(1, 100),
)
def test_more_tokens_never_lower_the_peak(
    shape: dict[str, Any], words: dict[str, Any], world_size: int, what: str, by: int
) -> None:
    more = words | {what: words[what] + by}
    model = tiny(**shape)
    assert peak(job(model, world_size, **more)) >= peak(job(model, world_size, **words))


@given(shape=shapes(), words=settings(), by=COUNTS)
def test_a_larger_vocabulary_never_lowers_the_peak(shape: dict[str, Any], words: dict[str, Any], by: int) -> None:
    """On one rank: on several the slices' edges move with it, and rank 0 may have less of the layers."""
    larger = shape | {"vocab": shape["vocab"] + by}
    assert peak(job(tiny(**larger), **words)) >= peak(job(tiny(**shape), **words))


@given(
    shape=shapes(),
    words=settings(stages=(3,)),
    world_size=st.integers(1, 16),
    by=st.sampled_from((1, 100, 10**5, 10**7)),
)
def test_a_larger_permanent_bucket_never_lowers_the_peak(
    shape: dict[str, Any], words: dict[str, Any], world_size: int, by: int
) -> None:
    model = tiny(**shape)
    more = words | {"reduce_bucket_size": words["reduce_bucket_size"] + by}
    # What a bucket saves in gradients that wait outside it is never more than what it takes itself.
    assert peak(job(model, world_size, **more)) >= peak(job(model, world_size, **words))


@given(
    shape=shapes(),
    words=settings(stages=(1, 2)),
    world_size=st.integers(1, 16),
    by=st.sampled_from((1, 100, 10**5, 10**7)),
)
def test_a_larger_bucket_lowers_the_peak_by_a_rank_s_gradients_at_most(
    shape: dict[str, Any], words: dict[str, Any], world_size: int, by: int
) -> None:
    """A bucket that fills later makes the buffer of the rank's own gradients later, when activations may be gone."""
    model = tiny(**shape)
    more = words | {"reduce_bucket_size": words["reduce_bucket_size"] + by}
    own = (4 if words["precision"] == "fp32" else 2) * owned(model, world_size, 0).whole
    assert peak(job(model, world_size, **more)) >= peak(job(model, world_size, **words)) - own


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("name", REAL)
def test_a_larger_bucket_never_lowers_the_peak_of_a_real_model(name: str, stage: int, accumulation: int) -> None:
    model = read_model(model=name)
    words = {"stage": stage, "precision": "bf16", "seq_len": 256, "accumulation": accumulation}
    sizes = (10**6, 10**7, 10**8, 5 * 10**8, 10**9)
    peaks = [peak(job(model, 8, **words, reduce_bucket_size=size)) for size in sizes]
    assert peaks == sorted(peaks)


@given(shape=shapes(), words=settings(stages=(1,)), world_size=st.integers(1, 64))
def test_each_stage_holds_no_more_than_the_one_before(
    shape: dict[str, Any], words: dict[str, Any], world_size: int
) -> None:
    """Parameters, gradients between backward and step, master weights and states; stage 3 pads every tensor."""
    assume(words["offload_optimizer"] == "none")
    model = tiny(**shape)

    def held(stage: int) -> int:
        one = job(model, world_size, **(words | {"stage": stage}))
        terms = dict(resident(frame_of(one), 0).terms)
        kept = sum(terms.get(name, 0) for name in ("parameters", "master weights", "optimizer states"))
        width = 4 if words["precision"] == "fp32" else 2
        gradients = {1: width * model.num_params, 2: width * owned(model, world_size, 0).whole}
        return kept + gradients.get(stage, terms.get("gradients", 0))

    tensors = 2 + model.layers * 9 + 2
    assert held(2) <= held(1)
    assert held(3) <= held(2) + 20 * tensors + 512 * 4


@given(shape=shapes(), words=settings(), world_size=st.integers(1, 16), rank=st.integers(1, 2))
def test_adapters_need_no_more_than_training_all(
    shape: dict[str, Any], words: dict[str, Any], world_size: int, rank: int
) -> None:
    """QLoRA <= LoRA <= full in what stays on the card, where the adapters are smaller than the model.

    With the optimizer offloaded the card has the parameters alone, and there the adapters come on top.
    """
    assume(words.get("offload_optimizer", "none") == "none")
    model = tiny(**(shape | {"hidden": max(16, shape["hidden"]), "mlp": max(64, shape["mlp"])}))
    adapted = with_lora(model, rank)
    assume(adapted.parameters.trainable() * 20 < model.num_params)

    def states(of: Model, **more: Any) -> int:
        return sum(size for _, size in resident(frame_of(job(of, world_size, **words, **more)), 0).terms)

    full, lora, quantized = states(model), states(adapted), states(adapted, quantize="4bit")
    tensors = len(adapted.parameters.layer) * adapted.layers + 4
    assert quantized <= lora
    assert lora <= full + 20 * tensors + 2048


def test_adapters_need_no_more_in_the_peak_of_a_real_model() -> None:
    words = {"model": "meta-llama/Llama-3.1-8B", "gpus": 8, "stage": 2, "seq_len": 1024}
    full = dsconf.estimate(**words).peak_bytes
    lora = dsconf.estimate(**words, lora_rank=16).peak_bytes
    quantized = dsconf.estimate(**words, lora_rank=16, quantize="4bit").peak_bytes
    assert quantized < lora < full


@given(shape=shapes(), words=settings(stages=(1, 2, 3)), world_size=st.integers(1, 16))
def test_offload_takes_from_the_card_and_gives_to_the_host(
    shape: dict[str, Any], words: dict[str, Any], world_size: int
) -> None:
    model = tiny(**shape)
    there = job(model, world_size, **(words | {"offload_optimizer": "none"}))
    here = job(model, world_size, **(words | {"offload_optimizer": "cpu"}))
    assert sum(n for _, n in host_terms(frame_of(here), 0, False)) > sum(
        n for _, n in host_terms(frame_of(there), 0, False)
    )
    largest = max(p.numel for block in model.parameters if isinstance(block, tuple) for p in block)
    states = [sum(n for _, n in resident(frame_of(one), 0).terms) for one in (here, there)]
    assert states[0] <= states[1] + 4 * largest + 2048


def test_the_same_question_has_the_same_answer() -> None:
    one = job(tiny(), 4, stage=3, precision="bf16")
    assert estimate(one) == estimate(replace(one))
