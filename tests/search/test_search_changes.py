"""Every change that is named does what is said of it when it is made."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache

import pytest
from search_fakes import FAKES, fake_cluster, fake_model
from search_said import codes

import dsconf
from dsconf.config.render import render
from dsconf.errors import InputError
from dsconf.search.answer import Recommendation
from dsconf.search.candidates import Candidate
from dsconf.search.constraints import Constraints
from dsconf.search.explain.changes import Change, _more_memory, _scaled
from dsconf.search.explain.scaling import Scale
from dsconf.search.names import name
from dsconf.search.question import Question
from dsconf.search.rank import combination
from dsconf.search.recommend import answer
from dsconf.units import GIB

CARD = {"params": "8B", "gpus": 8, "gpu": "h100-80gb"}


@cache
def real() -> Recommendation:
    """ZeRO without checkpointing, since 8 cards of 80 GiB have the room."""
    return dsconf.recommend(**CARD)


@cache
def offloaded() -> Recommendation:
    return dsconf.recommend(params="70B", gpus=8, gpu="h100-80gb")


def change(found: Recommendation, kind: str) -> Change:
    (one,) = (change for change in found.changes if change.kind == kind)
    assert one.reason in found.why
    return one


def rate(found: Recommendation) -> float:
    assert found.recommended is not None
    return found.recommended.tokens_per_second


def test_more_gpus_give_what_asking_for_them_gives() -> None:
    more = [one for one in real().changes if one.kind == "gpus"]
    assert [one.gpus for one in more] == [16]
    doubled = dsconf.recommend(**{**CARD, "gpus": 16})
    assert more[0].tokens_per_second == rate(doubled)
    assert more[0].gain == rate(doubled) / rate(real()) - 1
    assert more[0].reason.code == "more_gpus"
    figures = more[0].reason.figures
    assert (figures["config"]["gpus"], figures["now"], figures["gain"]) == (16, 8, more[0].gain)
    assert figures["gain_of_each"] is None or figures["gain_of_each"] == pytest.approx((1 + more[0].gain) / 2 - 1)


def test_a_little_more_memory_fits_what_is_said_to_fit() -> None:
    more = change(real(), "gpu_memory")
    memory = real().cluster.gpu.memory_bytes
    enough = dsconf.recommend(**CARD, gpu_memory=memory + more.short_bytes)
    assert rate(enough) == pytest.approx((1 + more.gain) * rate(real()))
    short = dsconf.recommend(**CARD, gpu_memory=memory + more.short_bytes - 1)
    assert rate(short) < 0.99 * rate(enough)


def test_more_accumulation_gives_what_asking_for_it_gives() -> None:
    more = change(real(), "accumulation")
    winner = real().recommended
    assert winner is not None
    words = {"global_batch_size": 8 * winner.global_batch, "micro_batch_size": winner.workload.micro_batch}
    asked = dsconf.recommend(**CARD, **words, stage=winner.settings.stage)
    assert more.tokens_per_second == pytest.approx(rate(asked), rel=0.05)
    assert more.reason.code == "more_accumulation"
    assert more.reason.figures == {
        "global_batch": 8 * winner.global_batch,
        "accumulation": 8,
        "config": None,
        "gain": more.gain,
    }


def test_checkpointing_on_takes_off_and_costs_what_is_said() -> None:
    more = change(real(), "checkpointing")
    winner = real().recommended
    assert winner is not None
    assert not winner.workload.checkpointing
    words = {"stage": winner.settings.stage, "offload": "none", "activation_checkpointing": True}
    assert more.tokens_per_second == rate(dsconf.recommend(**CARD, **words))
    same = dsconf.estimate(**CARD, config=winner_config(real()), activation_checkpointing=True)
    saved = winner.estimate.process_bytes - same.process_bytes
    assert more.reason.code == "checkpointing_on"
    assert more.reason.figures["saved_bytes"] == saved > 0


def winner_config(found: Recommendation) -> dict[str, object]:
    config: dict[str, object] = json.loads(found.config_text)
    return config


def test_checkpointing_off_that_does_not_fit_says_by_how_much() -> None:
    less = change(offloaded(), "checkpointing")
    assert less.fits == "no"
    assert less.reason.code == "checkpointing_off_does_not_fit"
    assert less.reason.figures["short"]["gpu_bytes"] == less.short_bytes > 0
    winner = offloaded().recommended
    assert winner is not None
    switched = combination(
        winner._replace(job=replace(winner.job, workload=replace(winner.workload, checkpointing=False)))
    )
    nearest = next(candidate for candidate in offloaded().candidates if combination(candidate) == switched)
    config = json.loads(render(nearest.settings, "deepspeed"))
    one = dsconf.estimate(params="70B", gpus=8, gpu="h100-80gb", config=config)
    assert one.process_bytes - offloaded().cluster.gpu.memory_bytes == less.short_bytes
    assert less.reason.figures["config"]["name"] == name(nearest)
    assert not less.reason.figures["same_settings"], "its buckets are not the winner's"


def test_without_offload_from_how_many_gpus_on() -> None:
    fewest = change(offloaded(), "offload").gpus
    assert fewest == 16
    words = {"params": "70B", "gpu": "h100-80gb", "offload": "none"}
    assert dsconf.recommend(gpus=fewest, **words).recommended is not None
    assert dsconf.recommend(gpus=8, **words).recommended is None


def test_a_faster_link_is_brought_up_where_the_step_waits_for_it() -> None:
    slow = fake_cluster(8)
    model = fake_model(2048, 16)
    question = Question(model, slow, Constraints(micro_batch=1), 8, FAKES, lambda rank: model)
    kinds = {one.kind for one in answer(question, "deepspeed").changes}
    assert "link_in_node" in kinds
    assert "nvlink" not in kinds
    on_pcie = replace(slow, gpu=replace(slow.gpu, link_bandwidth=slow.gpu.host_bandwidth))
    found = answer(question._replace(cluster=on_pcie), "deepspeed")
    linked = change(found, "nvlink")
    with_it = replace(on_pcie, gpu=replace(on_pcie.gpu, link_bandwidth=300e9))
    step = FAKES.step_time(replace(found.recommended.job, cluster=with_it))  # type: ignore[union-attr]
    assert linked.tokens_per_second == pytest.approx(step.tokens_per_second)
    assert linked.reason.code == "nvlink"
    assert linked.reason.figures == {"bytes_per_second": 300e9, "gain": linked.gain}


def test_more_host_memory_is_named_where_it_would_be_faster() -> None:
    model = fake_model(2048, 16)
    fixed = Constraints(micro_batch=1, stage=3)
    cluster = fake_cluster(8, host=64 * GIB)
    winner = answer(Question(model, cluster, fixed, 8, FAKES, lambda rank: model), "deepspeed").recommended
    assert winner is not None
    quick = winner.step._replace(tokens_per_second=1.5 * winner.tokens_per_second)
    far = winner._replace(fits="no", host_short_bytes=9 * GIB, step=quick)
    near = far._replace(host_short_bytes=4 * GIB)
    slow = near._replace(host_short_bytes=GIB, step=winner.step)
    both = near._replace(host_short_bytes=GIB, gpu_short_bytes=GIB)
    (more,) = _more_memory(winner, [winner, far, near, slow, both])
    assert more.kind == "host_memory"
    assert more.reason.code == "more_memory"
    figures = more.reason.figures
    assert (figures["where"], figures["more_bytes"], figures["gain"]) == ("host", 4 * GIB, 0.5)
    assert figures["config"]["name"] == "ZeRO stage 3, micro-batch 1"
    assert (more.short_bytes, more.gain) == (4 * GIB, 0.5)
    unstated = winner._replace(job=replace(winner.job, cluster=fake_cluster(8)))
    assert list(_more_memory(unstated, [unstated, near])) == [], "more than any host has is nothing to buy"
    large = near._replace(host_short_bytes=0, gpu_short_bytes=30 * GIB)
    assert list(_more_memory(winner, [winner, large])) == [], "a card half as large again is another card"


def test_adapters_that_the_memory_model_does_not_know_are_no_remedy() -> None:
    words = {"model": "mistralai/Mixtral-8x7B-v0.1", "gpus": 1, "gpu": "h100-80gb"}
    found = dsconf.recommend(**words, offload="none")
    assert found.recommended is None
    assert "fits_with_lora" not in codes(found.why)
    with pytest.raises(InputError, match="LoRA adapters on experts of one tensor"):
        dsconf.recommend(**words, lora_rank=8)


def test_states_in_bf16_are_named_where_they_are_faster_and_taken_only_where_nothing_else_fits() -> None:
    """70B on 16 cards: with 6 bytes a parameter less there is room for a larger micro-batch."""
    words = {"params": "70B", "gpu": "h100-80gb", "offload": "none"}
    found = dsconf.recommend(gpus=16, **words)
    assert found.recommended is not None
    assert not found.recommended.settings.bf16_optimizer_states
    low = change(found, "bf16_states")
    rates = [c.tokens_per_second for c in found.candidates if c.fits == "yes" and c.settings.bf16_optimizer_states]
    assert low.tokens_per_second == max(rates) > 1.05 * rate(found)
    alone = dsconf.recommend(gpus=12, **words)
    assert alone.recommended is not None
    assert alone.recommended.settings.bf16_optimizer_states
    assert alone.why[0].figures["resort"] == "bf16_states"
    assert not any(one.kind == "bf16_states" for one in alone.changes)


def test_within_a_node_a_number_without_offload_is_not_called_the_fewest() -> None:
    """On 4 cards only 8 is tried before whole nodes, and 5 to 7 may do as well."""
    found = dsconf.recommend(params="30B", gpus=4, gpu="h100-80gb")
    without = change(found, "offload")
    assert without.reason.code == "without_offload_fits_on"
    assert (without.gpus, without.reason.figures["fewest"]) == (8, False)
    words = {"params": "30B", "gpu": "h100-80gb", "offload": "none", "optimizer_states": "fp32"}
    assert dsconf.recommend(gpus=8, **words).recommended is not None
    assert change(offloaded(), "offload").reason.figures["fewest"]


def test_checkpointing_that_is_all_that_differs_needs_no_other_name() -> None:
    found = dsconf.recommend(params="7B", gpus=16, gpu="rtx-4090")
    less = change(found, "checkpointing")
    assert less.reason.code == "checkpointing_off_does_not_fit"
    assert less.reason.figures["same_settings"]
    assert less.reason.figures["config"]["micro_batch"] == 1
    winner = found.recommended
    assert winner is not None
    words = {"activation_checkpointing": False, "micro_batch_size": 1, "gradient_accumulation_steps": 1}
    same = dsconf.estimate(params="7B", gpus=16, gpu="rtx-4090", config=winner_config(found), **words)
    assert same.process_bytes - found.cluster.gpu.memory_bytes == less.short_bytes


def test_checkpointing_that_saves_nothing_says_what_else_fills_the_gpu() -> None:
    """A short sample of a small model: the optimizer's step holds more than backward does."""
    words = {"params": "500M", "gpus": 1, "gpu": "h100-80gb", "micro_batch_size": 1, "seq_len": 128}
    found = dsconf.recommend(**words)
    more = change(found, "checkpointing")
    assert found.recommended is not None
    peak = found.recommended.estimate.peak
    assert peak.phase == "step"
    assert more.reason.figures["saved_bytes"] <= 0
    assert more.reason.figures["fullest"] == {"phase": "step", "moment": peak.name}


def test_more_gpus_with_less_precise_states_say_that_they_train_differently() -> None:
    winner = real().recommended
    assert winner is not None
    low = next(candidate for candidate in real().candidates if candidate.settings.bf16_optimizer_states)
    assert _scaled(Scale(16, low, 1.2), winner).reason.figures["rounds"]
    assert not _scaled(Scale(16, winner, 1.2), winner).reason.figures["rounds"]
    assert not _scaled(Scale(16, low, 1.2), low).reason.figures["rounds"], "the winner rounds them, too"


def test_what_fits_without_offload_already_is_compared_and_no_gpus_are_asked_for() -> None:
    """70B on 32 L40S: offload is taken for its speed alone."""
    found = dsconf.recommend(params="70B", gpus=32, gpu="l40s")
    winner = found.recommended
    assert winner is not None
    assert winner.offloads
    less = change(found, "offload")
    assert less.gpus == 32
    best = max(c.tokens_per_second for c in found.candidates if c.fits == "yes" and not c.offloads and plain(c))
    assert less.tokens_per_second == best
    assert less.reason.code == "without_offload"
    assert less.reason.figures["gain"] == best / winner.tokens_per_second - 1 < 0


def plain(candidate: Candidate) -> bool:
    return candidate.settings.engine == "deepspeed" and not candidate.settings.bf16_optimizer_states
