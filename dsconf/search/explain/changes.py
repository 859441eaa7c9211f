"""What one change would buy the winner, in figures: every change is tried, none is guessed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from dsconf.cluster.spec import MOST_HOST_BYTES
from dsconf.job import Job
from dsconf.search.candidates import Candidate, CostModels, evaluate, with_batch
from dsconf.search.explain.limits import Limit, gain, with_nvlink
from dsconf.search.explain.reason import Reason, facts, gained, reason, shortage
from dsconf.search.explain.scaling import Scale
from dsconf.search.question import Question, best_like, more_gpus, rounds_unasked
from dsconf.search.rank import EQUAL, combination, same_states

ACCUMULATION = 8
WORTH = 0.05
"""More tokens a second below which a larger card, more host memory or a faster link is not brought up."""

LARGER = 0.25
"""Of a GPU's memory: by how much more a faster config may miss to be brought up."""


class Change(NamedTuple):
    """One change to what was asked. ``gain`` 0.61 is 61 % more tokens a second than the winner gives."""

    kind: str
    """``gpus``, ``accumulation``, ``checkpointing``, ``offload``, ``bf16_states``, ``gpu_memory``, ``host_memory``,
    ``nvlink``, or the name of a resource of :mod:`dsconf.search.explain.limits` twice as fast."""
    reason: Reason
    fits: str
    tokens_per_second: float
    gain: float
    gpus: int
    short_bytes: int = 0
    """By how much it misses, or how much more memory it takes."""


def improvements(
    winner: Candidate,
    candidates: Sequence[Candidate],
    scales: Sequence[Scale],
    slowest: Sequence[Limit],
    question: Question,
) -> Iterator[Change]:
    """Try other numbers of GPUs, more accumulation, other switches, more memory and faster links."""
    yield from (_scaled(scale, winner) for scale in scales if scale.gpus > winner.job.cluster.world_size)
    yield from _without_offload(winner, candidates, question)
    yield from _accumulated(winner, question)
    yield from _checkpointing(winner, candidates, question.tools)
    yield from _bf16_states(winner, candidates)
    yield from _more_memory(winner, candidates)
    yield from _faster(winner, slowest, question.tools)


def _change(kind: str, why: Reason, candidate: Candidate, winner: Candidate, short_bytes: int = 0) -> Change:
    return Change(
        kind=kind,
        reason=why,
        fits=candidate.fits,
        tokens_per_second=candidate.tokens_per_second,
        gain=gained(candidate, winner),
        gpus=candidate.job.cluster.world_size,
        short_bytes=short_bytes,
    )


def _scaled(scale: Scale, winner: Candidate) -> Change:
    """Say what more GPUs give, and where one among them is worth another than one of the winner's, how much."""
    each = scale.efficiency(winner) - 1
    why = reason(
        "more_gpus",
        config=facts(scale.candidate),
        now=winner.job.cluster.world_size,
        gain=scale.gain,
        gain_of_each=each if abs(each) > EQUAL else None,
        rounds=rounds_unasked(scale.candidate, winner.settings.bf16_optimizer_states),
    )
    return _change("gpus", why, scale.candidate, winner)


def _without_offload(winner: Candidate, candidates: Sequence[Candidate], question: Question) -> Iterator[Change]:
    """Find the best without offload that fits as well, or how many GPUs it would take."""
    if not winner.offloads:
        return
    fixed = question.fixed._replace(offload="none", low_states=question.fixed.low_states or False)
    if question.fixed.offload is None:
        ours = (c for c in candidates if c.settings.engine == "deepspeed" and same_states(c, winner))
        here = next((c for c in ours if c.fits == winner.fits and not c.offloads), None)
    else:
        here = best_like(winner, question._replace(fixed=fixed))
    if here is not None:
        why = reason("without_offload", config=facts(here), gain=gained(here, winner))
        yield _change("offload", why, here, winner)
        return
    larger = more_gpus(question._replace(fixed=fixed._replace(global_batch=None)))
    if larger is not None:
        # Of whole nodes the fewest were looked for; within a node only twice as many, and twice as many again.
        fewest = larger.job.cluster.world_size > question.node_size
        yield _change("offload", reason("without_offload_fits_on", config=facts(larger), fewest=fewest), larger, winner)


def _accumulated(winner: Candidate, question: Question) -> Iterator[Change]:
    """Try more micro-batches a step, where nobody fixed the global batch."""
    if question.fixed.global_batch is not None:
        return
    workload = replace(winner.workload, accumulation=winner.workload.accumulation * ACCUMULATION)
    cluster = winner.job.cluster
    job = Job(winner.job.model, cluster, with_batch(winner.settings, workload, cluster), workload)
    same = evaluate(job, question.tools)
    more, other = same, None
    if same.fits != winner.fits:
        fixed = question.fixed._replace(global_batch=same.global_batch, micro_batch=None)
        other = best_like(winner, question._replace(fixed=fixed))
        if other is None:
            return
        more = other
    if gained(more, winner) >= 0.01:
        why = reason(
            "more_accumulation",
            global_batch=more.global_batch,
            accumulation=ACCUMULATION if other is None else more.workload.accumulation,
            config=None if other is None else facts(more),
            gain=gained(more, winner),
        )
        yield _change("accumulation", why, more, winner)


def _checkpointing(winner: Candidate, candidates: Sequence[Candidate], tools: CostModels) -> Iterator[Change]:
    """Compare the same strategy with the other answer to recomputing."""
    recomputes, switched = winner.workload.checkpointing, _switched(winner)
    other = next((c for c in candidates if combination(c) == combination(winner._replace(job=switched))), None)
    if other is None:
        return
    alike = other.settings.without_batch == winner.settings.without_batch
    config = facts(other) | {"micro_batch": other.workload.micro_batch}
    gain_then = gained(other, winner)
    if not recomputes:
        estimate = winner.estimate
        saved = estimate.process_bytes - evaluate(switched, tools).estimate.process_bytes
        at_start = estimate.init_peak_bytes > estimate.peak_bytes
        fullest = {
            "phase": "initialisation" if at_start else estimate.peak.phase,
            "moment": None if at_start else estimate.peak.name,
        }
        why = reason(
            "checkpointing_on", config=config, same_settings=alike, gain=gain_then, saved_bytes=saved, fullest=fullest
        )
    elif other.fits == "no":
        why = reason("checkpointing_off_does_not_fit", config=config, same_settings=alike, short=shortage(other))
    else:
        why = reason("checkpointing_off", config=config, same_settings=alike, gain=gain_then)
    yield _change("checkpointing", why, other, winner, other.gpu_short_bytes)


def _bf16_states(winner: Candidate, candidates: Sequence[Candidate]) -> Iterator[Change]:
    """Name master weights and moments in bf16, which train differently and so are never taken unasked."""
    if winner.settings.bf16_optimizer_states:
        return
    low = next((c for c in candidates if c.fits == "yes" and c.settings.bf16_optimizer_states), None)
    if low is not None and gained(low, winner) >= WORTH:
        yield _change("bf16_states", reason("states_in_bf16", config=facts(low), gain=gained(low, winner)), low, winner)


def _switched(winner: Candidate) -> Job:
    """Make the same job with the other answer to recomputing."""
    workload = replace(winner.workload, checkpointing=not winner.workload.checkpointing)
    return replace(winner.job, workload=workload)


def _more_memory(winner: Candidate, candidates: Sequence[Candidate]) -> Iterator[Change]:
    """Find what is faster and misses by the memory of the GPU, or of the host, alone: the nearest of each."""
    faster = [
        candidate
        for candidate in candidates
        if candidate.settings.engine == "deepspeed"
        and same_states(candidate, winner)
        and candidate.tokens_per_second >= (1 + WORTH) * winner.tokens_per_second
    ]
    most_bytes = int(LARGER * winner.job.cluster.gpu.memory_bytes)
    on_gpu = [c for c in faster if 0 < c.gpu_short_bytes <= most_bytes and not c.host_short_bytes]
    # Where nobody stated the host's memory, its limit is what no node exceeds: there is no more to buy.
    stated = winner.job.cluster.host_memory_bytes is not None
    on_host = [
        candidate
        for candidate in faster
        if stated
        and candidate.host_short_bytes
        and not candidate.gpu_short_bytes
        and candidate.estimate.host_bytes_per_node <= MOST_HOST_BYTES
    ]
    if on_gpu:
        near = min(on_gpu, key=lambda candidate: candidate.gpu_short_bytes)
        yield _fitted("gpu_memory", near, near.gpu_short_bytes, winner)
    if on_host:
        near = min(on_host, key=lambda candidate: candidate.host_short_bytes)
        yield _fitted("host_memory", near, near.host_short_bytes, winner)


def _fitted(kind: str, near: Candidate, short: int, winner: Candidate) -> Change:
    where = "gpu" if kind == "gpu_memory" else "host"
    why = reason("more_memory", where=where, more_bytes=short, config=facts(near), gain=gained(near, winner))
    return _change(kind, why, near, winner, short)


ON_SALE = ("link_in_node", "network_between_nodes", "link_to_host", "host_cpu", "nvme")
"""Resources that a person can buy twice as fast; a card that computes faster is another card."""


def _faster(winner: Candidate, slowest: Sequence[Limit], tools: CostModels) -> Iterator[Change]:
    cluster = winner.job.cluster
    rates: dict[str, tuple[float, ...]] = {
        "link_in_node": (cluster.gpu.link_bandwidth,),
        "network_between_nodes": (cluster.network_rate,),
        "link_to_host": (cluster.gpu.host_bandwidth,),
        "nvme": (cluster.nvme_read_bandwidth, cluster.nvme_write_bandwidth),
    }
    for resource, more in slowest:
        if resource in ON_SALE and more >= WORTH:
            doubled = [2 * rate for rate in rates.get(resource, ())]
            why = reason("twice_as_fast", resource=resource, bytes_per_second=doubled, gain=more)
            yield _sped_up(resource, why, more, winner)
    linked = with_nvlink(cluster) if cluster.gpus_per_node > 1 else None
    if linked is not None:
        more = gain(winner, linked, tools)
        if more >= WORTH:
            why = reason("nvlink", bytes_per_second=linked.gpu.link_bandwidth, gain=more)
            yield _sped_up("nvlink", why, more, winner)


def _sped_up(kind: str, why: Reason, more: float, winner: Candidate) -> Change:
    return Change(
        kind=kind,
        reason=why,
        fits=winner.fits,
        tokens_per_second=(1 + more) * winner.tokens_per_second,
        gain=more,
        gpus=winner.job.cluster.world_size,
    )
