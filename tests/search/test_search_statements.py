"""Whatever is asked, what recommend says of its answer is true of the candidates it examined."""

from __future__ import annotations

import re
from functools import cache
from random import Random
from typing import Any

import pytest
from search_said import codes, figures

from dsconf import InputError, recommend
from dsconf.report.reasons import sentences
from dsconf.search.answer import Recommendation
from dsconf.search.candidates import Candidate
from dsconf.search.explain.scaling import alike
from dsconf.search.names import name
from dsconf.search.rank import EQUAL, WORTH_A_HOST, Decision, decide, exceeds_likely_host, needs_unstated_host

SIZES = ("125M", "410M", "1.3B", "3B", "7B", "13B", "34B", "70B")
CARDS = ("h100-80gb", "a100-40gb", "l40s", "rtx-4090", "h200", "v100-32gb", "a10")
JOBS = 24


def asked(seed: int) -> dict[str, Any]:
    draw = Random(seed)
    words: dict[str, Any] = {
        "params": draw.choice(SIZES),
        "gpu": draw.choice(CARDS),
        "gpus": draw.choice((1, 2, 3, 4, 8, 12, 16, 32, 64)),
        "seq_len": draw.choice((512, 1024, 2048, 4096)),
    }
    if draw.random() < 0.4:
        words["host_memory"] = draw.choice(("64GiB", "512GiB", "2TiB"))
    if draw.random() < 0.3:
        words["lora_rank"] = 16
    if draw.random() < 0.2:
        words["offload"] = "none"
    if draw.random() < 0.2:
        words["global_batch_size"] = words["gpus"] * draw.choice((1, 2, 8))
    return words


@cache
def found(seed: int) -> Recommendation:
    return recommend(**asked(seed))


def answered() -> list[int]:
    return [seed for seed in range(JOBS) if found(seed).recommended is not None]


def winner_of(seed: int) -> Candidate:
    winner = found(seed).recommended
    assert winner is not None
    return winner


def decision(seed: int) -> Decision:
    made = decide(found(seed).candidates)
    assert made is not None
    return made


def test_the_questions_reach_what_they_should() -> None:
    """Small and large, offloaded or not, tight or with room, and some that fit nowhere."""
    assert JOBS // 2 <= len(answered()) < JOBS
    winners = [winner_of(seed) for seed in answered()]
    assert {winner.settings.stage for winner in winners} >= {0, 1, 3}
    assert {winner.offloads > 0 for winner in winners} == {True, False}
    heads = [found(seed).why[0] for seed in answered()]
    assert {head.code for head in heads} >= {"simplest", "fastest"}
    assert {head.figures["resort"] for head in heads} >= {None, "offload"}


@pytest.mark.parametrize("seed", range(JOBS))
def test_nothing_that_counts_is_clearly_faster(seed: int) -> None:
    if found(seed).recommended is None:
        assert not [c for c in found(seed).candidates if c.settings.engine == "deepspeed" and c.fits != "no"]
        return
    winner, head, ours = winner_of(seed), found(seed).why[0], decision(seed).rivals
    assert any(candidate is winner for candidate in ours)
    for candidate in found(seed).candidates:
        precise = candidate.settings.engine == "deepspeed" and not candidate.settings.bf16_optimizer_states
        if precise and candidate.fits == "yes":
            hosted = needs_unstated_host(candidate) and not needs_unstated_host(winner)
            spare = WORTH_A_HOST if hosted or exceeds_likely_host(candidate) else 0.0
            faster = candidate.tokens_per_second * (1 - EQUAL) > winner.tokens_per_second * (1 + spare)
            assert not faster or exceeds_likely_host(candidate)
    fastest = max(candidate.tokens_per_second for candidate in ours)
    if head.code == "simplest":
        assert (1 - EQUAL) * fastest <= winner.tokens_per_second < fastest
        assert head.figures["gain"] == fastest / winner.tokens_per_second - 1
    else:
        assert head.code == ("only_one" if len(ours) == 1 else "fastest")
        assert winner.tokens_per_second == fastest
        assert head.figures.get("count", 1) == len(ours)
    held = held_back(seed)
    told = head.figures["held_back"]
    assert (told and told["name"]) == (held and name(held))


def held_back(seed: int) -> Candidate | None:
    """The fastest that only the memory of its host keeps from being recommended, where it is clearly faster."""
    winner = winner_of(seed)
    aside = [
        candidate
        for candidate in found(seed).candidates
        if (exceeds_likely_host(candidate) if winner.offloads else needs_unstated_host(candidate))
        and candidate.fits == winner.fits
        and not candidate.settings.bf16_optimizer_states
        and candidate.tokens_per_second > (1 + EQUAL) * winner.tokens_per_second
    ]
    return max(aside, key=lambda candidate: candidate.tokens_per_second, default=None)


@pytest.mark.parametrize("seed", range(JOBS))
def test_the_next_best_is_no_faster(seed: int) -> None:
    if "next_best" in codes(found(seed).why):
        assert figures(found(seed).why, "next_best")["gain"] <= 0
        (said,) = (line for line in sentences(found(seed).why) if line.startswith("Next best: "))
        assert "the same tokens/s, most of it lost" not in said


@pytest.mark.parametrize("seed", range(JOBS))
def test_the_front_has_nothing_worse_than_what_is_recommended(seed: int) -> None:
    if found(seed).recommended is not None:
        assert {point.fits for point in found(seed).pareto} == {winner_of(seed).fits}


@pytest.mark.parametrize("seed", range(JOBS))
def test_plain_torch_is_named_where_it_is_as_fast(seed: int) -> None:
    if found(seed).recommended is None or winner_of(seed).fits != "yes":
        return
    plain = [c.tokens_per_second for c in found(seed).candidates if c.settings.engine == "ddp" and c.fits == "yes"]
    as_fast = bool(plain) and max(plain) >= (1 - EQUAL) * winner_of(seed).tokens_per_second
    assert as_fast == ("plain_torch" in codes(found(seed).notes))


@pytest.mark.parametrize("seed", range(0, JOBS, 4))
def test_other_numbers_of_gpus_are_what_a_question_of_their_own_says(seed: int) -> None:
    """hpZ and the ranks that share a sequence are as here, so that it may be a little slower."""
    for scale in found(seed).scales:
        whole = recommend(**asked(seed) | {"gpus": scale.gpus}).recommended
        assert whole is not None
        if alike(scale.candidate, whole):
            assert scale.candidate.tokens_per_second == pytest.approx(whole.tokens_per_second, rel=2 * EQUAL)


@pytest.mark.parametrize("seed", range(JOBS))
def test_no_figure_is_nothing_and_no_number_wears_an_exponent(seed: int) -> None:
    lines = " ".join(sentences((*found(seed).why, *found(seed).notes)))
    assert not re.search(r"\de[+-]\d|\b0 B\b|\b0\.0+ (GiB|%)|the 1 ", lines), lines


def test_more_gpus_are_not_called_useless_where_another_partition_makes_use_of_them() -> None:
    """1.5B on L40S over a slow network: 64 do without hpZ, 128 do not."""
    words = {"params": "1.5B", "gpu": "l40s", "network": "10Gbit/s", "global_batch_size": 256}
    few, many = recommend(**words, gpus=64), recommend(**words, gpus=128).recommended
    assert many is not None
    assert many.settings.hpz_partition_size == 8
    assert few.recommended is not None
    assert many.tokens_per_second > 1.1 * few.recommended.tokens_per_second
    assert "more_gpus_bring_nothing" not in codes(few.notes)
    (told,) = (change for change in few.changes if change.gpus == 128)
    assert told.tokens_per_second == many.tokens_per_second
    (network,) = (change for change in few.changes if change.kind == "network_between_nodes")
    assert network.reason.code == "twice_as_fast"
    assert network.reason.figures["bytes_per_second"] == [2.5e9], "20 Gbit/s"


def test_offload_that_was_asked_for_is_not_said_to_be_needed() -> None:
    words = {"params": "8B", "gpus": 8, "gpu": "h100-80gb", "stage": 2}
    asked_for, without = recommend(**words, offload="optimizer"), recommend(**words, offload="none").recommended
    assert asked_for.why[0].figures["resort"] is None
    (change,) = (change for change in asked_for.changes if change.kind == "offload")
    assert without is not None
    assert (change.gpus, change.tokens_per_second) == (8, without.tokens_per_second)


def test_what_is_not_counted_is_said_to_be_left_out() -> None:
    (first, *_) = recommend(params="8B", gpus=8, gpu="h100-80gb", optimizer="lion").why
    assert first.code == "fastest"
    assert (first.figures["left_out"], first.figures["states"]) == ("offload", None)
    (first, *_) = recommend(params="13B", gpus=8, gpu="l40s", host_memory="1TiB").why
    assert (first.figures["left_out"], first.figures["states"]) == (None, "fp32")


def test_a_sample_beyond_the_positions_is_not_said_to_be_within_them() -> None:
    found = recommend(model="meta-llama/Llama-3.1-8B", gpus=8, gpu="h200", seq_len=262_144)
    assert not {"sample_all_positions"} & set(codes(found.notes))
    assert "beyond_positions" in codes(found.notes)
    bloom = recommend(model="bigscience/bloom-560m", gpus=1, gpu="h100-80gb", seq_len=4096)
    assert not {"sample_all_positions", "beyond_positions"} & set(codes(bloom.notes)), "ALiBi has no last position"


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ({"params": "7B", "gpu": "v100-32gb"}, "FlashAttention needs an Ampere card or a newer one"),
        ({"params": "7B", "gpu": "h100-80gb", "precision": "fp32"}, "FlashAttention only computes in 16 bits"),
        (
            {"model": "bigscience/bloom-560m", "gpu": "h100-80gb"},
            "transformers has no FlashAttention for bloom with ALiBi",
        ),
    ],
)
def test_flash_attention_is_refused_where_it_cannot_run(words: dict[str, Any], problem: str) -> None:
    with pytest.raises(InputError, match=rf"^--attention flash: {problem}; "):
        recommend(**words, gpus=1, attention="flash")


def test_a_tight_fit_and_the_hosts_memory_are_said_of_what_would_fit() -> None:
    more = figures(recommend(params="405B", gpus=8, gpu="h100-80gb").why, "fits_on_more_gpus")["config"]
    assert more["gpus"] == 16
    assert more["offload"] != "none"
    assert more["host_bytes_per_node"] > 0
    why = recommend(params="3B", gpus=1, gpu="rtx-4090", host_memory="16GiB").why
    host = figures(why, "fits_with_host_memory")["config"]
    taken = recommend(params="3B", gpus=1, gpu="rtx-4090", host_memory=host["host_bytes_per_node"]).recommended
    assert taken is not None
    assert taken.fits == host["fits"]


def test_accumulation_that_needs_other_settings_is_offered_with_them() -> None:
    found = recommend(params="3B", gpus=1, gpu="rtx-4090")
    (more,) = (change for change in found.changes if change.kind == "accumulation")
    batch = more.reason.figures["global_batch"]
    taken = recommend(params="3B", gpus=1, gpu="rtx-4090", global_batch_size=batch).recommended
    assert taken is not None
    assert taken.tokens_per_second >= 0.99 * more.tokens_per_second > 1.5 * winner_rate(found)


def winner_rate(found: Recommendation) -> float:
    assert found.recommended is not None
    return found.recommended.tokens_per_second


def test_a_card_without_bf16_says_what_it_trains_in() -> None:
    assert figures(recommend(params="1.3B", gpus=4, gpu="v100-32gb").notes, "no_bf16")["gpu"].startswith("V100 ")
    assert "no_bf16" not in codes(recommend(params="1.3B", gpus=4, gpu="h100-80gb").notes)
