"""What the search promises, with a small memory and speed model in place of the real ones."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from search_fakes import FAKES, FakeStep, fake_cluster, fake_model, fake_step_time

import dsconf
from dsconf.cluster.spec import Cluster
from dsconf.errors import DoesNotFitError, DsconfError
from dsconf.job import Job
from dsconf.memory.estimate import Estimate
from dsconf.model.spec import Model
from dsconf.search.answer import Recommendation
from dsconf.search.explain.reasons import short as short_of
from dsconf.search.question import Question
from dsconf.search.rank import EQUAL, best_of_each, combination
from dsconf.search.recommend import answer
from dsconf.search.space import combinations
from dsconf.search.wish import Wish
from dsconf.units import GIB, TIB, format_bytes

LARGE = fake_model(8192, 80)
SMALL = fake_model(2048, 16)


def ask(
    model: Model,
    cluster: Cluster,
    wish: Wish = Wish(),  # noqa: B008
    adapters: Model | None = None,
    alternatives: bool = True,
) -> Recommendation:
    question = Question(model, cluster, wish, 8, FAKES, lambda rank: adapters or model)
    return answer(question, "deepspeed", alternatives)


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
    cluster, wish = fake_cluster(gpus, memory * GIB), Wish(global_batch=gpus * share)
    found = ask(SMALL, cluster, wish, alternatives=False)
    space = [
        (settings, workload) for settings, workloads in combinations(SMALL, cluster, wish) for workload in workloads
    ]
    assert found.examined + found.ruled_out == len(space)
    everything = ask(SMALL, fake_cluster(gpus, 10**6 * GIB), wish, alternatives=False)
    assert everything.ruled_out == 0
    fitting = [c for c in everything.candidates if c.estimate.process_bytes <= memory * GIB]
    assert len(fitting) == sum(c.fits != "no" for c in found.candidates)


def test_the_fastest_that_fits_wins() -> None:
    found = ask(SMALL, fake_cluster(8))
    assert found.recommended is not None
    assert found.recommended.tokens_per_second == best_rate(found)


def test_of_equally_fast_candidates_the_plainest_wins() -> None:
    """Stage 3 a little faster than stage 1 and 2, as where it hides its traffic and they do not."""

    def step_time(job: Job) -> FakeStep:
        step = fake_step_time(job)
        quicker = 1.01 if job.settings.stage == 3 else 1.0
        return FakeStep(step.seconds / quicker, step.parts, step.tokens_per_second * quicker)

    tools = FAKES._replace(step_time=step_time)  # type: ignore[arg-type]
    wish = Wish(micro_batch=1, checkpointing=True)
    model, cluster = fake_model(4096, 32), fake_cluster(8, 40 * GIB, 8 * TIB)
    cluster = replace(cluster, gpu=replace(cluster.gpu, link_bandwidth=1e15))
    found = answer(Question(model, cluster, wish, 8, tools, lambda rank: model), "deepspeed")
    assert found.recommended is not None
    assert found.candidates[0].settings.stage == 3
    assert found.recommended.settings.stage == 1
    assert "the plainest of the fastest" in found.why[0]
    assert "1.0 % more tokens/s, too few to tell" in found.why[0]


def test_a_full_70b_on_eight_80_gb_gpus_is_offloaded_and_says_the_host_memory() -> None:
    """16 bytes of each of 64.7 B parameters are 0.94 TiB, more than 8 × 80 GiB; offload needs 18 on the host."""
    found = ask(LARGE, fake_cluster(8))
    assert found.recommended is not None
    assert found.recommended.settings.offload_optimizer == "cpu"
    assert found.recommended.estimate.host_bytes_per_node > 0.9 * TIB
    assert any("of host memory in each node: give --host-memory to check" in note for note in found.notes)
    assert any("Without offload it fits from 16 GPUs on" in reason for reason in found.why)
    assert all(c.fits == "no" for c in found.candidates if not c.offloads)


def test_too_small_a_host_is_a_clear_no_with_what_it_would_take() -> None:
    found = ask(LARGE, fake_cluster(8, host=64 * GIB))
    assert found.recommended is None
    assert found.why[0].startswith("Nothing fits. The nearest, ZeRO stage 3, optimizer on cpu")
    assert "too much on each host" in found.why[0]
    remedies = " ".join(found.why[1:])
    assert "Host memory: 1.06 TiB in each node would fit it" in remedies
    assert "More GPUs: 16 would fit it" in remedies


def test_the_fewest_gpus_named_are_the_fewest() -> None:
    found = ask(LARGE, fake_cluster(8), Wish(offload="none"))
    assert found.recommended is None
    gpus = next(reason for reason in found.why if reason.startswith("More GPUs")).split()[2]
    assert ask(LARGE, fake_cluster(int(gpus)), Wish(offload="none")).recommended is not None
    assert ask(LARGE, fake_cluster(int(gpus) - 8), Wish(offload="none")).recommended is None


def test_every_remedy_works_when_taken() -> None:
    wish = Wish(seq_len=65536, offload="none", checkpointing=False, micro_batch=4)
    adapters = fake_model(256, 2)
    cluster = fake_cluster(8, 40 * GIB)
    found = ask(fake_model(4096, 32), cluster, wish, adapters)
    assert found.recommended is None
    remedies = {reason.split(":")[0]: reason for reason in found.why[1:]}
    assert "Shorter sequences" in remedies
    seq_len = int(remedies["Shorter sequences"].split("--seq-len ")[1].split()[0])
    assert ask(fake_model(4096, 32), cluster, wish._replace(seq_len=seq_len)).recommended is not None
    assert ask(fake_model(4096, 32), cluster, wish._replace(seq_len=2 * seq_len)).recommended is None
    assert ("LoRA" in remedies) == (ask(adapters, cluster, wish).recommended is not None)
    assert any(reason.startswith("More GPUs do not help, not even 16384") for reason in found.why)


def test_what_fills_the_gpu_is_named_only_where_the_gpu_is_too_small() -> None:
    small = ask(LARGE, fake_cluster(8), Wish(offload="none"))
    assert "; most of its peak of " in small.why[0]
    assert "most of its peak" not in ask(LARGE, fake_cluster(8, host=64 * GIB)).why[0]


def test_initialisation_is_named_where_it_holds_more_than_the_step() -> None:
    def estimate(job: Job) -> Estimate:
        found = FAKES.estimate(job)
        return replace(found, init_peak_bytes=found.peak_bytes + 2 * GIB)

    tools = FAKES._replace(estimate=estimate)
    found = answer(Question(SMALL, fake_cluster(8), Wish(), 8, tools, lambda rank: SMALL), "deepspeed")
    assert found.recommended is not None
    peak = found.recommended.estimate.peak_bytes / GIB + 2
    assert found.why[1].startswith(f"Memory is fullest in initialisation: {peak:.2f} GiB; the step is fullest in ")


def test_an_impossible_job_says_that_nothing_helps() -> None:
    found = ask(fake_model(2**17, 200), fake_cluster(1, 2 * GIB), Wish(offload="none", stage=0))
    assert found.recommended is None
    assert found.why[1].startswith("No single change fits it")
    with pytest.raises(DoesNotFitError, match="Nothing fits"):
        _ = found.config_text


def test_where_one_change_is_too_little_two_are_named_and_work() -> None:
    """Activations of 64 Ki tokens fit on no number of GPUs, and states of 6.6 B parameters on no single one."""
    model, cluster = fake_model(4096, 32), fake_cluster(1, 24 * GIB)
    wish = Wish(seq_len=2**16, offload="none", checkpointing=True, micro_batch=1)
    found = ask(model, cluster, wish)
    assert found.recommended is None
    assert found.why[1].startswith("No single change fits it")
    told = next(reason for reason in found.why if " GPUs would fit" in reason)
    seq_len, gpus = int(told.split("--seq-len ")[1].split()[0]), int(told.split(" on ")[1].split()[0])
    assert ask(model, fake_cluster(gpus, 24 * GIB), wish._replace(seq_len=seq_len)).recommended is not None
    told = next(reason for reason in found.why if "no restrictions would fit" in reason)
    seq_len = int(told.split("--seq-len ")[1].split()[0])
    assert ask(model, cluster, Wish(seq_len=seq_len)).recommended is not None


def test_lifted_restrictions_on_more_gpus_are_named_where_neither_helps_alone() -> None:
    """Stage 0 holds 16 bytes of each of 65 B parameters on any number of GPUs, and one GPU does so at any stage."""
    found = ask(LARGE, fake_cluster(1, 80 * GIB, 64 * GIB), Wish(stage=0))
    told = next(reason for reason in found.why if "no restrictions on" in reason)
    gpus = int(told.split(" on ")[1].split()[0])
    assert ask(LARGE, fake_cluster(gpus, 80 * GIB, 64 * GIB)).recommended is not None
    assert ask(LARGE, fake_cluster(gpus, 80 * GIB, 64 * GIB), Wish(stage=0)).recommended is None


def test_a_small_model_is_told_that_plain_ddp_does() -> None:
    notes = " ".join(ask(SMALL, fake_cluster(8)).notes)
    assert "small enough for plain torch DDP" in notes
    assert "plain torch" not in " ".join(ask(LARGE, fake_cluster(64)).notes)


def test_one_gpu_is_told_that_zero_shards_nothing() -> None:
    assert any("ZeRO shards nothing" in note for note in ask(SMALL, fake_cluster(1)).notes)
    assert not any("ZeRO shards nothing" in note for note in ask(SMALL, fake_cluster(2)).notes)


def test_the_runner_up_is_another_combination() -> None:
    found = ask(SMALL, fake_cluster(8))
    reason = next(reason for reason in found.why if reason.startswith("Next best"))
    assert "ZeRO stage 1, micro-batch 16, 1.2 % fewer tokens/s" in reason


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
    wish = Wish(offload="none", checkpointing=True, micro_batch=1)
    needed = ask(SMALL, fake_cluster(1), wish).candidates[0].estimate.process_bytes
    tight = ask(SMALL, fake_cluster(1, needed), wish)
    assert tight.recommended is not None
    assert tight.recommended.fits == "tight"
    assert "nothing fits with headroom" in tight.why[0]
    assert any("Little headroom" in note for note in tight.notes)
    assert ask(SMALL, fake_cluster(1, needed - 1), wish).recommended is None
    roomy = ask(SMALL, fake_cluster(1, needed * 2), wish)
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
    model, wish = fake_model(4096, 32), Wish(offload="none", checkpointing=True, micro_batch=1, stage=3)
    reasons = " ".join(ask(model, fake_cluster(1, 40 * GIB), wish).why)
    assert "More GPUs: 4 would fit it" in reasons
    reasons = " ".join(ask(model, fake_cluster(1, 14 * GIB), wish).why)
    assert "More GPUs: 16 would fit it" in reasons


def test_a_drive_is_a_remedy_where_the_host_is_too_small() -> None:
    """The small memory model puts all that is offloaded on the drive: 18 bytes of each of 64.7 B parameters."""
    found = ask(LARGE, fake_cluster(8, host=64 * GIB))
    (told,) = (reason for reason in found.why if reason.startswith("NVMe: --nvme PATH would fit it (ZeRO stage 3, "))
    assert told.endswith("), 1.06 TiB on the disk of each node and 0 B of host memory.")
    assert ask(LARGE, fake_cluster(8, host=64 * GIB, nvme="/disk")).recommended is not None
    elsewhere = ask(LARGE, fake_cluster(8, host=64 * GIB), Wish(offload="optimizer"))
    assert elsewhere.recommended is None
    assert not any("NVMe" in reason for reason in elsewhere.why), "the person wants the optimizer in host memory"


def test_the_figures_of_a_drive_are_those_of_the_config_that_is_named() -> None:
    words = {"params": "405B", "gpus": 8, "gpu": "h200", "host_memory": "2TiB"}
    told = next(reason for reason in dsconf.recommend(**words).why if reason.startswith("NVMe"))
    with_it = dsconf.recommend(**words, nvme="/disk")
    assert with_it.recommended is not None
    figures = [
        f"{format_bytes(candidate.estimate.nvme_bytes_per_node)} on the disk of each node and "
        f"{format_bytes(candidate.estimate.host_bytes_per_node)} of host memory."
        for candidate in with_it.candidates
        if candidate.fits != "no" and candidate.workload.micro_batch == 1
    ]
    assert told.split("), ")[1] in figures


def test_a_drive_and_a_shorter_sample_are_named_where_neither_is_enough() -> None:
    """64 Ki tokens fit on no number of GPUs, and the states of 6.6 B parameters neither on the GPU nor on the host."""
    model, wish = fake_model(4096, 32), Wish(seq_len=2**16, checkpointing=True, micro_batch=1, stage=3)
    cluster = fake_cluster(1, 24 * GIB, 8 * GIB)
    found = ask(model, cluster, wish)
    assert found.why[1].startswith("No single change fits it: not 16384 GPUs, offload, NVMe, LoRA or ")
    told = next(reason for reason in found.why if " and --nvme PATH would fit (" in reason)
    assert " on the disk of each node and " in told
    seq_len = int(told.split("--seq-len ")[1].split()[0])
    driven = replace(cluster, nvme_path="/disk")
    assert ask(model, driven, wish._replace(seq_len=seq_len)).recommended is not None
    assert ask(model, driven, wish._replace(seq_len=2 * seq_len)).recommended is None
    assert ask(model, cluster, wish._replace(seq_len=seq_len)).recommended is None


def test_restrictions_that_are_too_many_together_are_lifted_together() -> None:
    """Stage 0 holds everything on each GPU, and no stage does without offload: either is too much by itself."""
    found = ask(LARGE, fake_cluster(8), Wish(stage=0, offload="none"))
    assert found.why[1].startswith("No single change fits it")
    assert found.why[2].startswith("All restrictions lifted: it would fit (ZeRO stage ")
    assert len(found.why) == 3
    assert ask(LARGE, fake_cluster(8)).recommended is not None


def test_a_remedy_with_less_precise_states_says_that_they_train_differently() -> None:
    words = {"params": "405B", "gpus": 8, "gpu": "h100-80gb", "offload": "none"}
    rounds = "; its optimizer states in bf16 round each update."

    def more_gpus(**more: str) -> str:
        found = dsconf.recommend(**words, **more)
        return next(reason for reason in found.why if reason.startswith("More GPUs"))

    assert "bf16 states" in more_gpus()
    assert more_gpus().endswith(rounds)
    assert "round each update" not in more_gpus(optimizer_states="bf16"), "that is what was asked for"
    assert "round each update" not in more_gpus(optimizer_states="fp32")


def test_a_sample_as_long_as_the_model_has_positions_is_not_called_too_long() -> None:
    """GPT-2 has 1024 positions: nothing longer exists, whether or not there is memory for it."""
    found = dsconf.recommend(model="gpt2", gpus=1, gpu="h100-80gb", seq_len=1024)
    (told,) = (note for note in found.notes if note.startswith("--seq-len 1024 "))
    assert told.endswith("with these settings all of the model's 1024 positions fit.")
    assert found.headroom is not None
    assert found.headroom.longest_seq_len == found.headroom.positions == 1024
    words = {"model": "gpt2", "gpu": "h100-80gb", "seq_len": 896, "micro_batch_size": 16, "stage": 0}
    words |= {"offload": "none", "activation_checkpointing": False, "optimizer_states": "fp32"}
    room = dsconf.recommend(**words).recommended
    assert room is not None
    full = dsconf.recommend(**words, gpu_memory=room.estimate.process_bytes)
    assert full.headroom is not None
    assert full.headroom.longest_seq_len == 896
    (told,) = (note for note in full.notes if note.startswith("--seq-len 896 "))
    assert told.endswith(": 128 tokens more do not fit with these settings.")


def test_a_host_that_nobody_sells_is_not_taken_to_be_there() -> None:
    """18 bytes a parameter of 404 billion are 6.6 TiB on one node, 3.3 on each of two; a node has 4 at most."""
    words = {"params": "405B", "gpu": "h200", "stage": 3}
    found = dsconf.recommend(**words, gpus=8)
    assert found.recommended is None
    assert not any(candidate.fits != "no" for candidate in found.candidates)
    taken = "too much on each host (4.00 TiB taken as the most a node has: state yours with --host-memory)."
    assert found.why[0].endswith(taken)
    assert any(reason.startswith("Host memory: 7.40 TiB in each node would fit it") for reason in found.why)
    assert "More GPUs: 16 would fit it" in "\n".join(found.why)
    stated = dsconf.recommend(**words, gpus=8, host_memory="7.5TiB")
    assert stated.recommended is not None, "what is stated is believed"
    assert stated.recommended.estimate.host_bytes_per_node > 7 * TIB


def test_the_limit_of_an_unstated_host_is_in_the_row() -> None:
    """A model of 16 TiB of offloaded states, 8 GPUs to a node."""
    found = ask(fake_model(16384, 384), fake_cluster(8), Wish(offload="optimizer"), alternatives=False)
    assert found.recommended is None
    short = next(short_of(c, None) for c in found.candidates if c.host_short_bytes)
    assert short.endswith(" TiB too much on each host (of 4.00 TiB, --host-memory)")
    stated = ask(fake_model(16384, 384), fake_cluster(8, host=4 * TIB), Wish(offload="optimizer"), alternatives=False)
    assert next(short_of(c, None) for c in stated.candidates if c.host_short_bytes).endswith("on each host")


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
