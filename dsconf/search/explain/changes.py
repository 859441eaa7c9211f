"""What one change would buy the winner, in figures: every change is tried, none is guessed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from dsconf.cluster.spec import MOST_HOST_BYTES
from dsconf.job import Job
from dsconf.search.candidates import Candidate, Tools, evaluate, with_batch
from dsconf.search.explain.limits import Limit, gain, with_nvlink
from dsconf.search.explain.reasons import compared, missing, told
from dsconf.search.explain.scaling import Scale
from dsconf.search.question import Question, best_like, more_gpus, rounding
from dsconf.search.rank import EQUAL, combination, name, same_states
from dsconf.units import format_bytes, format_rate

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
    text: str
    fits: str
    tokens_per_second: float
    gain: float
    gpus: int
    short_bytes: int = 0
    """By how much it misses, or how much more memory it takes."""


def improvements(
    winner: Candidate,
    candidates: Sequence[Candidate],
    found: Sequence[Scale],
    slowest: Sequence[Limit],
    question: Question,
) -> Iterator[Change]:
    """What other numbers of GPUs, more accumulation, other switches, more memory and faster links would do."""
    yield from (_scaled(scale, winner) for scale in found if scale.gpus > winner.job.cluster.world_size)
    yield from _without_offload(winner, candidates, question)
    yield from _accumulated(winner, question)
    yield from _checkpointing(winner, candidates, question.tools)
    yield from _bf16_states(winner, candidates)
    yield from _more_memory(winner, candidates)
    yield from _faster(winner, slowest, question.tools)


def _change(kind: str, text: str, candidate: Candidate, winner: Candidate, short_bytes: int = 0) -> Change:
    rate = candidate.tokens_per_second
    gained = rate / winner.tokens_per_second - 1
    return Change(kind, text, candidate.fits, rate, gained, candidate.job.cluster.world_size, short_bytes)


def _scaled(scale: Scale, winner: Candidate) -> Change:
    """More GPUs, and what a GPU among them is worth against one of the winner's."""
    now = winner.job.cluster.world_size
    worth = scale.efficiency(winner)
    each = f"; {compared(worth - 1)} from each" if abs(worth - 1) > EQUAL else ""
    rounds = rounding(scale.candidate, winner.settings.bf16_optimizer_states)
    text = f"{scale.gpus} GPUs in place of {now}: {compared(scale.gain)} ({told(scale.candidate)}){each}{rounds}."
    return _change("gpus", text, scale.candidate, winner)


def _without_offload(winner: Candidate, candidates: Sequence[Candidate], question: Question) -> Iterator[Change]:
    """The best without offload that fits as well, or how many GPUs it would take."""
    if not winner.offloads:
        return
    wish = question.wish._replace(offload="none", low_states=question.wish.low_states or False)
    if question.wish.offload is None:
        ours = (c for c in candidates if c.settings.engine == "deepspeed" and same_states(c, winner))
        here = next((c for c in ours if c.fits == winner.fits and not c.offloads), None)
    else:
        here = best_like(winner, question._replace(wish=wish))
    if here is not None:
        text = f"Without offload: {compared(here.tokens_per_second / winner.tokens_per_second - 1)} ({told(here)})."
        yield _change("offload", text, here, winner)
        return
    larger = more_gpus(question._replace(wish=wish._replace(global_batch=None)))
    if larger is not None:
        gpus = larger.job.cluster.world_size
        # Of whole nodes the fewest were looked for; within a node only twice as many, and twice as many again.
        where = f"from {gpus} GPUs on" if gpus > question.node_size else f"on {gpus} GPUs"
        yield _change("offload", f"Without offload it fits {where} ({told(larger)}).", larger, winner)


def _accumulated(winner: Candidate, question: Question) -> Iterator[Change]:
    """More micro-batches a step, where nobody fixed the global batch."""
    if question.wish.global_batch is not None:
        return
    workload = replace(winner.workload, accumulation=winner.workload.accumulation * ACCUMULATION)
    cluster = winner.job.cluster
    job = Job(winner.job.model, cluster, with_batch(winner.settings, workload, cluster), workload)
    same = evaluate(job, question.tools)
    more, how = same, f"accumulation {ACCUMULATION}"
    if same.fits != winner.fits:
        wish = question.wish._replace(global_batch=same.global_batch, micro_batch=None)
        found = best_like(winner, question._replace(wish=wish))
        if found is None:
            return
        more, how = found, f"{told(found)}, accumulation {found.workload.accumulation}"
    gained = more.tokens_per_second / winner.tokens_per_second - 1
    if gained >= 0.01:
        text = f"--global-batch-size {more.global_batch} ({how}) would give {compared(gained)}."
        yield _change("accumulation", text, more, winner)


def _checkpointing(winner: Candidate, candidates: Sequence[Candidate], tools: Tools) -> Iterator[Change]:
    """The same strategy with the other answer to recomputing."""
    recomputes, switched = winner.workload.checkpointing, _switched(winner)
    other = next((c for c in candidates if combination(c) == combination(winner._replace(job=switched))), None)
    if other is None:
        return
    gained = compared(other.tokens_per_second / winner.tokens_per_second - 1)
    alike = other.settings.without_batch == winner.settings.without_batch
    micro_batch = f"micro-batch {other.workload.micro_batch}"
    tight = ", tight" if other.fits == "tight" else ""
    named = f"{micro_batch}{tight}" if alike else told(other)
    if not recomputes:
        effect = _recomputing(winner, evaluate(switched, tools))
        text = f"Activation checkpointing would {effect} and give {gained} at its best ({named})."
    elif other.fits == "no":
        where = f"at {micro_batch}" if alike else f"with {name(other)}"
        text = f"Activation checkpointing off does not fit: {' and '.join(missing(other))} {where}."
    else:
        text = f"Activation checkpointing off: {gained} ({named})."
    yield _change("checkpointing", text, other, winner, other.gpu_short_bytes)


def _recomputing(winner: Candidate, switched: Candidate) -> str:
    """What it does to the memory of each GPU, everything else the same; nothing where another moment is the fullest."""
    found = winner.estimate
    saved = found.process_bytes - switched.estimate.process_bytes
    if saved > 0:
        return f"take {format_bytes(saved)} off each GPU at the same micro-batch"
    fullest = (
        "initialisation" if found.init_peak_bytes > found.peak_bytes else f"{found.peak.phase} ({found.peak.name})"
    )
    return f"take nothing off each GPU at the same micro-batch, where memory is fullest in {fullest},"


def _bf16_states(winner: Candidate, candidates: Sequence[Candidate]) -> Iterator[Change]:
    """Master weights and moments in bf16, which train differently and so are never taken unasked."""
    if winner.settings.bf16_optimizer_states:
        return
    low = next((c for c in candidates if c.fits == "yes" and c.settings.bf16_optimizer_states), None)
    gained = low.tokens_per_second / winner.tokens_per_second - 1 if low is not None else 0.0
    if low is not None and gained >= WORTH:
        text = f"Optimizer states in bf16, which round each update: {compared(gained)} ({name(low)})."
        yield _change("bf16_states", text, low, winner)


def _switched(winner: Candidate) -> Job:
    """The same job with the other answer to recomputing."""
    workload = replace(winner.workload, checkpointing=not winner.workload.checkpointing)
    return replace(winner.job, workload=workload)


def _more_memory(winner: Candidate, candidates: Sequence[Candidate]) -> Iterator[Change]:
    """What is faster and misses by the memory of the GPU, or of the host, alone: the nearest of each."""
    faster = [
        candidate
        for candidate in candidates
        if candidate.settings.engine == "deepspeed"
        and same_states(candidate, winner)
        and candidate.tokens_per_second >= (1 + WORTH) * winner.tokens_per_second
    ]
    most = int(LARGER * winner.job.cluster.gpu.memory_bytes)
    on_gpu = [c for c in faster if 0 < c.gpu_short_bytes <= most and not c.host_short_bytes]
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
        yield _fitted("gpu_memory", "on each GPU", near, near.gpu_short_bytes, winner)
    if on_host:
        near = min(on_host, key=lambda candidate: candidate.host_short_bytes)
        yield _fitted("host_memory", "in each node", near, near.host_short_bytes, winner)


def _fitted(kind: str, where: str, near: Candidate, short: int, winner: Candidate) -> Change:
    gained = compared(near.tokens_per_second / winner.tokens_per_second - 1)
    text = f"{format_bytes(short)} more memory {where} would fit {name(near)}: {gained}."
    return _change(kind, text, near, winner, short)


SENTENCES = {
    "link_in_node": "Links in a node twice as fast ({} a GPU)",
    "network_between_nodes": "A network between nodes twice as fast ({} a GPU)",
    "link_to_host": "A link to the host twice as fast ({} a GPU)",
    "host_cpu": "Twice the host's cores and memory bandwidth",
    "nvme": "An NVMe disk twice as fast (reads {}, writes {})",
}
"""What a person can buy; a card that computes faster is another card."""


def _faster(winner: Candidate, slowest: Sequence[Limit], tools: Tools) -> Iterator[Change]:
    cluster = winner.job.cluster
    rates: dict[str, tuple[float, ...]] = {
        "link_in_node": (cluster.gpu.link_bandwidth,),
        "network_between_nodes": (cluster.network_rate,),
        "link_to_host": (cluster.gpu.host_bandwidth,),
        "nvme": (cluster.nvme_read_bandwidth, cluster.nvme_write_bandwidth),
    }
    for resource, gained in slowest:
        if resource in SENTENCES and gained >= WORTH:
            unit = "bit" if resource == "network_between_nodes" else "B"
            text = SENTENCES[resource].format(*(format_rate(2 * rate, unit) for rate in rates.get(resource, ())))
            yield _sped_up(resource, f"{text} would give {compared(gained)}.", gained, winner)
    linked = with_nvlink(cluster) if cluster.gpus_per_node > 1 else None
    if linked is not None:
        gained = gain(winner, linked, tools)
        if gained >= WORTH:
            text = f"NVLink ({format_rate(linked.gpu.link_bandwidth)} a GPU) would give {compared(gained)}."
            yield _sped_up("nvlink", text, gained, winner)


def _sped_up(kind: str, text: str, gained: float, winner: Candidate) -> Change:
    rate = (1 + gained) * winner.tokens_per_second
    return Change(kind, text, winner.fits, rate, gained, winner.job.cluster.world_size)
