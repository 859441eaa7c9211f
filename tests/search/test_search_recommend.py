"""What the search promises, with a small memory and speed model in place of the real ones."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from search_fakes import FAKES, FakeStep, fake_cluster, fake_model, fake_step_time
from search_said import codes, figures

import dsconf
from dsconf.cluster.spec import Cluster
from dsconf.errors import DoesNotFitError, DsconfError
from dsconf.job import Job
from dsconf.memory.estimate import Estimate
from dsconf.model.spec import Model
from dsconf.search.answer import Recommendation
from dsconf.search.constraints import Constraints
from dsconf.search.explain.reason import shortage
from dsconf.search.question import Question
from dsconf.search.rank import EQUAL, best_of_each, combination
from dsconf.search.recommend import answer
from dsconf.search.space import combinations
from dsconf.units import GIB, TIB

LARGE = fake_model(8192, 80)
SMALL = fake_model(2048, 16)


def ask(
    model: Model,
    cluster: Cluster,
    fixed: Constraints = Constraints(),  # noqa: B008
    adapters: Model | None = None,
    alternatives: bool = True,
) -> Recommendation:
    question = Question(model, cluster, fixed, 8, FAKES, lambda rank: adapters or model)
    return answer(question, "deepspeed", alternatives)


def pairs(found: Recommendation) -> list[dict[str, Any]]:
    """The figures of each two changes under which it would fit."""
    return [reason.figures for reason in found.why if reason.code == "fits_with_two_changes"]


def best_rate(found: Recommendation) -> float:
    """Tokens a second of the fastest DeepSpeed candidate that fits with headroom."""
    fitting = [c for c in found.candidates if c.fits == "yes" and c.settings.engine == "deepspeed"]
    return max(candidate.tokens_per_second for candidate in fitting)


@given(
    hidden=st.sampled_from([1024, 2048, 4096, 8192]),
    layers=st.integers(4, 96),
    gpus=st.sampled_from([1, 2, 8, 16, 64]),
    memory=st.sampled_from([16, 24, 40, 80, 141]),
    host=st.sampled_from([64, 512, 2048, 8192]),
)
def test_what_is_recommended_fits_and_more_memory_never_hurts(
    hidden: int, layers: int, gpus: int, memory: int, host: int
) -> None:
    model = fake_model(hidden, layers)
    found = ask(model, fake_cluster(gpus, memory * GIB, host * GIB), alternatives=False)
    larger = ask(model, fake_cluster(gpus, 2 * memory * GIB, host * GIB), alternatives=False)
    if found.recommended is None:
        return
    estimate = found.recommended.estimate
    assert estimate.process_bytes <= memory * GIB
    assert estimate.host_bytes_per_node <= host * GIB
    assert larger.recommended is not None
    if found.recommended.fits == "yes":
        assert larger.recommended.fits == "yes"
        assert best_rate(larger) >= best_rate(found)
        assert larger.recommended.tokens_per_second >= (1 - EQUAL) * found.recommended.tokens_per_second


@given(gpus=st.sampled_from([1, 8, 64]), share=st.integers(1, 60), memory=st.sampled_from([24, 80]))
def test_nothing_is_cut_unsaid(gpus: int, share: int, memory: int) -> None:
    """Every candidate of the space is examined or counted as ruled out, and none that is ruled out would fit."""
    cluster, fixed = fake_cluster(gpus, memory * GIB), Constraints(global_batch=gpus * share)
    found = ask(SMALL, cluster, fixed, alternatives=False)
    space = [
        (settings, workload) for settings, workloads in combinations(SMALL, cluster, fixed) for workload in workloads
    ]
    assert found.examined + found.ruled_out == len(space)
    everything = ask(SMALL, fake_cluster(gpus, 10**6 * GIB), fixed, alternatives=False)
    assert everything.ruled_out == 0
    fitting = [c for c in everything.candidates if c.estimate.process_bytes <= memory * GIB]
    assert len(fitting) == sum(c.fits != "no" for c in found.candidates)


def test_the_fastest_that_fits_wins() -> None:
    found = ask(SMALL, fake_cluster(8))
    assert found.recommended is not None
    assert found.recommended.tokens_per_second == best_rate(found)


def test_of_equally_fast_candidates_the_simplest_wins() -> None:
    """Stage 3 a little faster than stage 1 and 2, as where it hides its traffic and they do not."""

    def step_time(job: Job) -> FakeStep:
        step = fake_step_time(job)
        quicker = 1.01 if job.settings.stage == 3 else 1.0
        return FakeStep(step.seconds / quicker, step.parts, step.tokens_per_second * quicker)

    tools = FAKES._replace(step_time=step_time)  # type: ignore[arg-type]
    fixed = Constraints(micro_batch=1, checkpointing=True)
    model, cluster = fake_model(4096, 32), fake_cluster(8, 40 * GIB, 8 * TIB)
    cluster = replace(cluster, gpu=replace(cluster.gpu, link_bandwidth=1e15))
    found = answer(Question(model, cluster, fixed, 8, tools, lambda rank: model), "deepspeed")
    assert found.recommended is not None
    assert found.candidates[0].settings.stage == 3
    assert found.recommended.settings.stage == 1
    assert found.why[0].code == "simplest"
    assert found.why[0].figures["faster"]["name"].startswith("ZeRO stage 3")
    assert found.why[0].figures["gain"] == pytest.approx(0.01, rel=0.02)


def test_a_full_70b_on_eight_80_gb_gpus_is_offloaded_and_says_the_host_memory() -> None:
    """16 bytes of each of 64.7 B parameters are 0.94 TiB, more than 8 × 80 GiB; offload needs 18 on the host."""
    found = ask(LARGE, fake_cluster(8))
    assert found.recommended is not None
    assert found.recommended.settings.offload_optimizer == "cpu"
    assert found.recommended.estimate.host_bytes_per_node > 0.9 * TIB
    needed = figures(found.notes, "host_memory")
    assert needed["needed_bytes"] == found.recommended.estimate.host_bytes_per_node
    assert needed["stated_bytes"] is needed["assumed_bytes"] is None, "more than its GPUs have"
    without = figures(found.why, "without_offload_fits_on")
    assert (without["config"]["gpus"], without["fewest"]) == (16, True)
    assert all(c.fits == "no" for c in found.candidates if not c.offloads)


def test_too_small_a_host_is_a_clear_no_with_what_it_would_take() -> None:
    found = ask(LARGE, fake_cluster(8, host=64 * GIB))
    assert found.recommended is None
    nearest = figures(found.why[:1], "nothing_fits")
    assert nearest["config"]["name"].startswith("ZeRO stage 3, optimizer on cpu")
    assert nearest["short"]["host_bytes"] > 0
    host = figures(found.why, "fits_with_host_memory")["config"]["host_bytes_per_node"]
    assert host == pytest.approx(1.06 * TIB, rel=0.01)
    assert figures(found.why, "fits_on_more_gpus")["config"]["gpus"] == 16


def test_the_fewest_gpus_named_are_the_fewest() -> None:
    found = ask(LARGE, fake_cluster(8), Constraints(offload="none"))
    assert found.recommended is None
    gpus = figures(found.why, "fits_on_more_gpus")["config"]["gpus"]
    assert ask(LARGE, fake_cluster(gpus), Constraints(offload="none")).recommended is not None
    assert ask(LARGE, fake_cluster(gpus - 8), Constraints(offload="none")).recommended is None


def test_every_remedy_works_when_taken() -> None:
    fixed = Constraints(seq_len=65536, offload="none", checkpointing=False, micro_batch=4)
    adapters = fake_model(256, 2)
    cluster = fake_cluster(8, 40 * GIB)
    found = ask(fake_model(4096, 32), cluster, fixed, adapters)
    assert found.recommended is None
    seq_len = figures(found.why, "fits_with_shorter_sequences")["seq_len"]
    assert ask(fake_model(4096, 32), cluster, fixed._replace(seq_len=seq_len)).recommended is not None
    assert ask(fake_model(4096, 32), cluster, fixed._replace(seq_len=2 * seq_len)).recommended is None
    assert ("fits_with_lora" in codes(found.why)) == (ask(adapters, cluster, fixed).recommended is not None)
    assert figures(found.why, "more_gpus_do_not_help") == {"gpus": 16384}


def test_what_fills_the_gpu_is_named_only_where_the_gpu_is_too_small() -> None:
    small = ask(LARGE, fake_cluster(8), Constraints(offload="none"))
    nearest = next(candidate for candidate in small.candidates if candidate.settings.engine == "deepspeed")
    assert small.why[0].figures["fullest"]["peak_bytes"] == nearest.estimate.peak_bytes
    assert small.why[0].figures["fullest"]["term"]["name"] == "states"
    assert ask(LARGE, fake_cluster(8, host=64 * GIB)).why[0].figures["fullest"] is None


def test_initialisation_is_named_where_it_holds_more_than_the_step() -> None:
    def estimate(job: Job) -> Estimate:
        found = FAKES.estimate(job)
        return replace(found, init_peak_bytes=found.peak_bytes + 2 * GIB)

    tools = FAKES._replace(estimate=estimate)
    found = answer(Question(SMALL, fake_cluster(8), Constraints(), 8, tools, lambda rank: SMALL), "deepspeed")
    assert found.recommended is not None
    assert found.why[1].code == "fullest_at_start"
    assert found.why[1].figures["peak_bytes"] == found.recommended.estimate.peak_bytes
    assert found.why[1].figures["start_bytes"] == found.recommended.estimate.peak_bytes + 2 * GIB


def test_an_impossible_job_says_that_nothing_helps() -> None:
    found = ask(fake_model(2**17, 200), fake_cluster(1, 2 * GIB), Constraints(offload="none", stage=0))
    assert found.recommended is None
    assert found.why[1].code == "no_single_change"
    with pytest.raises(DoesNotFitError, match="nothing fits"):
        _ = found.config_text


def test_where_one_change_is_too_little_two_are_named_and_work() -> None:
    """Activations of 64 Ki tokens fit on no number of GPUs, and states of 6.6 B parameters on no single one."""
    model, cluster = fake_model(4096, 32), fake_cluster(1, 24 * GIB)
    fixed = Constraints(seq_len=2**16, offload="none", checkpointing=True, micro_batch=1)
    found = ask(model, cluster, fixed)
    assert found.recommended is None
    assert found.why[1].code == "no_single_change"
    larger = next(pair for pair in pairs(found) if pair["gpus"] is not None)
    assert not larger["unrestricted"]
    shorter = fixed._replace(seq_len=larger["seq_len"])
    assert ask(model, fake_cluster(larger["gpus"], 24 * GIB), shorter).recommended is not None
    lifted = next(pair for pair in pairs(found) if pair["unrestricted"])
    assert ask(model, cluster, Constraints(seq_len=lifted["seq_len"])).recommended is not None


def test_lifted_restrictions_on_more_gpus_are_named_where_neither_helps_alone() -> None:
    """Stage 0 holds 16 bytes of each of 65 B parameters on any number of GPUs, and one GPU does so at any stage."""
    found = ask(LARGE, fake_cluster(1, 80 * GIB, 64 * GIB), Constraints(stage=0))
    gpus = next(pair["gpus"] for pair in pairs(found) if pair["unrestricted"] and pair["gpus"] is not None)
    assert ask(LARGE, fake_cluster(gpus, 80 * GIB, 64 * GIB)).recommended is not None
    assert ask(LARGE, fake_cluster(gpus, 80 * GIB, 64 * GIB), Constraints(stage=0)).recommended is None


def test_a_small_model_is_told_that_plain_ddp_does() -> None:
    plain = figures(ask(SMALL, fake_cluster(8)).notes, "plain_torch")
    assert plain["config"]["name"].startswith("torch DDP")
    assert plain["gain"] >= -0.03
    assert "plain_torch" not in codes(ask(LARGE, fake_cluster(64)).notes)


def test_one_gpu_is_told_that_zero_shards_nothing() -> None:
    assert "one_gpu" in codes(ask(SMALL, fake_cluster(1)).notes)
    assert "one_gpu" not in codes(ask(SMALL, fake_cluster(2)).notes)


def test_the_runner_up_is_another_combination() -> None:
    found = ask(SMALL, fake_cluster(8))
    following = figures(found.why, "next_best")
    assert following["config"]["name"] == "ZeRO stage 1, micro-batch 16"
    assert following["gain"] == pytest.approx(-0.012, abs=0.0005)
    assert following["lost_to"] == "communication"


def test_the_table_has_each_combination_once() -> None:
    """Two for torch DDP, stage 0 and the four offloads; with and without bf16 states two for each of stages 1 to 3."""
    found = ask(SMALL, fake_cluster(8))
    best = best_of_each(found.candidates)
    assert len({combination(candidate) for candidate in best}) == len(best) == 24
    for candidate in best:
        rivals = [c for c in found.candidates if combination(c) == combination(candidate)]
        assert candidate.tokens_per_second == max(c.tokens_per_second for c in rivals if c.fits == candidate.fits)


def test_tight_is_recommended_only_where_nothing_has_headroom() -> None:
    """Offload ruled out on one GPU, every candidate holds 16 bytes a parameter and the same activations."""
    fixed = Constraints(offload="none", checkpointing=True, micro_batch=1)
    needed = ask(SMALL, fake_cluster(1), fixed).candidates[0].estimate.process_bytes
    tight = ask(SMALL, fake_cluster(1, needed), fixed)
    assert tight.recommended is not None
    assert tight.recommended.fits == "tight"
    assert tight.why[0].figures["resort"] == "tight"
    assert figures(tight.notes, "little_headroom")["process_bytes"] == needed
    assert ask(SMALL, fake_cluster(1, needed - 1), fixed).recommended is None
    roomy = ask(SMALL, fake_cluster(1, needed * 2), fixed)
    assert roomy.recommended is not None
    assert roomy.recommended.fits == "yes"


def test_a_config_that_the_schema_refuses_is_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    found = ask(SMALL, fake_cluster(8))
    good = found.config_text
    monkeypatch.setattr("dsconf.config.render.render", lambda *_: good.replace('"stage"', '"stagee"'))
    with pytest.raises(DsconfError, match=r"zero_optimization\.stagee unknown key"):
        _ = found.config_text


def test_more_gpus_fill_the_node_first() -> None:
    """16 bytes of 6.6 B parameters at stage 3: 98 GiB on one GPU, 24.5 on each of four."""
    model, fixed = fake_model(4096, 32), Constraints(offload="none", checkpointing=True, micro_batch=1, stage=3)
    for memory, gpus in ((40, 4), (14, 16)):
        larger = figures(ask(model, fake_cluster(1, memory * GIB), fixed).why, "fits_on_more_gpus")
        assert larger["config"]["gpus"] == gpus


def test_a_drive_is_a_remedy_where_the_host_is_too_small() -> None:
    """The small memory model puts all that is offloaded on the drive: 18 bytes of each of 64.7 B parameters."""
    found = ask(LARGE, fake_cluster(8, host=64 * GIB))
    driven = figures(found.why, "fits_with_nvme")["config"]
    assert driven["name"].startswith("ZeRO stage 3, ")
    assert driven["nvme_bytes_per_node"] == pytest.approx(1.06 * TIB, rel=0.01)
    assert driven["host_bytes_per_node"] == 0
    assert ask(LARGE, fake_cluster(8, host=64 * GIB, nvme="/disk")).recommended is not None
    elsewhere = ask(LARGE, fake_cluster(8, host=64 * GIB), Constraints(offload="optimizer"))
    assert elsewhere.recommended is None
    assert "fits_with_nvme" not in codes(elsewhere.why), "the person wants the optimizer in host memory"


def test_the_figures_of_a_drive_are_those_of_the_config_that_is_named() -> None:
    words = {"params": "405B", "gpus": 8, "gpu": "h200", "host_memory": "2TiB"}
    driven = figures(dsconf.recommend(**words).why, "fits_with_nvme")["config"]
    with_it = dsconf.recommend(**words, nvme="/disk")
    assert with_it.recommended is not None
    needs = [
        (candidate.estimate.nvme_bytes_per_node, candidate.estimate.host_bytes_per_node)
        for candidate in with_it.candidates
        if candidate.fits != "no" and candidate.workload.micro_batch == 1
    ]
    assert (driven["nvme_bytes_per_node"], driven["host_bytes_per_node"]) in needs


def test_a_drive_and_a_shorter_sample_are_named_where_neither_is_enough() -> None:
    """64 Ki tokens fit on no number of GPUs, and the states of 6.6 B parameters neither on the GPU nor on the host."""
    model, fixed = fake_model(4096, 32), Constraints(seq_len=2**16, checkpointing=True, micro_batch=1, stage=3)
    cluster = fake_cluster(1, 24 * GIB, 8 * GIB)
    found = ask(model, cluster, fixed)
    assert figures(found.why[1:2], "no_single_change") == {"gpus": 16384, "nvme": True, "seq_len": 128}
    driven_pair = next(pair for pair in pairs(found) if pair["nvme"])
    assert driven_pair["config"]["nvme_bytes_per_node"] > 0
    seq_len = driven_pair["seq_len"]
    driven = replace(cluster, nvme_path="/disk")
    assert ask(model, driven, fixed._replace(seq_len=seq_len)).recommended is not None
    assert ask(model, driven, fixed._replace(seq_len=2 * seq_len)).recommended is None
    assert ask(model, cluster, fixed._replace(seq_len=seq_len)).recommended is None


def test_restrictions_that_are_too_many_together_are_lifted_together() -> None:
    """Stage 0 holds everything on each GPU, and no stage does without offload: either is too much by itself."""
    found = ask(LARGE, fake_cluster(8), Constraints(stage=0, offload="none"))
    assert codes(found.why) == ["nothing_fits", "no_single_change", "fits_without_restrictions"]
    assert found.why[2].figures["config"]["name"].startswith("ZeRO stage ")
    assert ask(LARGE, fake_cluster(8)).recommended is not None


def test_a_remedy_with_less_precise_states_says_that_they_train_differently() -> None:
    words = {"params": "405B", "gpus": 8, "gpu": "h100-80gb", "offload": "none"}

    def more_gpus(**more: str) -> dict[str, Any]:
        return figures(dsconf.recommend(**words, **more).why, "fits_on_more_gpus")

    assert "bf16 states" in more_gpus()["config"]["name"]
    assert more_gpus()["rounds"]
    assert not more_gpus(optimizer_states="bf16")["rounds"], "that is what was asked for"
    assert not more_gpus(optimizer_states="fp32")["rounds"]


def test_a_sample_as_long_as_the_model_has_positions_is_not_called_too_long() -> None:
    """GPT-2 has 1024 positions: nothing longer exists, whether or not there is memory for it."""
    found = dsconf.recommend(model="gpt2", gpus=1, gpu="h100-80gb", seq_len=1024)
    assert figures(found.notes, "sample_all_positions") == {"seq_len": 1024, "positions": 1024}
    assert found.headroom is not None
    assert found.headroom.longest_seq_len == found.headroom.positions == 1024
    words = {"model": "gpt2", "gpu": "h100-80gb", "seq_len": 896, "micro_batch_size": 16, "stage": 0}
    words |= {"offload": "none", "activation_checkpointing": False, "optimizer_states": "fp32"}
    room = dsconf.recommend(**words).recommended
    assert room is not None
    full = dsconf.recommend(**words, gpu_memory=room.estimate.process_bytes)
    assert full.headroom is not None
    assert full.headroom.longest_seq_len == 896
    assert figures(full.notes, "sample_no_longer") == {"seq_len": 896, "step": 128}


def test_a_host_that_nobody_sells_is_not_taken_to_be_there() -> None:
    """18 bytes a parameter of 404 billion are 6.6 TiB on one node, 3.3 on each of two; a node has 4 at most."""
    words = {"params": "405B", "gpu": "h200", "stage": 3}
    found = dsconf.recommend(**words, gpus=8)
    assert found.recommended is None
    assert not any(candidate.fits != "no" for candidate in found.candidates)
    short = found.why[0].figures["short"]
    assert short["host_bytes"] > 0
    assert (short["host_limit_bytes"], short["host_stated"]) == (4 * TIB, False)
    host = figures(found.why, "fits_with_host_memory")["config"]["host_bytes_per_node"]
    assert host == pytest.approx(7.4 * TIB, rel=0.001)
    assert figures(found.why, "fits_on_more_gpus")["config"]["gpus"] == 16
    stated = dsconf.recommend(**words, gpus=8, host_memory="7.5TiB")
    assert stated.recommended is not None, "what is stated is believed"
    assert stated.recommended.estimate.host_bytes_per_node > 7 * TIB


def test_the_limit_of_an_unstated_host_is_in_the_row() -> None:
    """A model of 16 TiB of offloaded states, 8 GPUs to a node."""
    found = ask(fake_model(16384, 384), fake_cluster(8), Constraints(offload="optimizer"), alternatives=False)
    assert found.recommended is None
    short = next(shortage(c) for c in found.candidates if c.host_short_bytes)
    assert (short["host_limit_bytes"], short["host_stated"]) == (4 * TIB, False)
    stated = ask(
        fake_model(16384, 384), fake_cluster(8, host=4 * TIB), Constraints(offload="optimizer"), alternatives=False
    )
    assert next(shortage(c) for c in stated.candidates if c.host_short_bytes)["host_stated"]


def test_slower_cores_slow_what_is_offloaded_and_are_named() -> None:
    words = {"params": "13B", "gpu": "h100", "gpus": 1, "offload": "optimizer", "micro_batch_size": 1}
    assumed, few = dsconf.recommend(**words), dsconf.recommend(**words, cpu_cores=4, host_bandwidth="20GB/s")
    assert assumed.recommended is not None
    assert few.recommended is not None
    assert few.recommended.tokens_per_second < assumed.recommended.tokens_per_second
    assert assumed.assumption == (
        "8 of a node's 64 CPU cores (assumed, --cpu-cores); "
        "300 GB/s of host memory bandwidth a node (assumed, --host-bandwidth)"
    )
    assert few.assumption is None
