"""What one change would buy, and what would make it fit: every claim is tried, none is guessed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple

from dsconf.cluster.spec import Cluster
from dsconf.errors import InputError
from dsconf.job import Job
from dsconf.model.spec import Model
from dsconf.search.candidates import Candidate, Tools, evaluate, examine, with_batch
from dsconf.search.rank import name, offload_name, ranked
from dsconf.search.reasons import missing
from dsconf.search.space import Combination, Wish, combinations
from dsconf.units import format_bytes

MOST_GPUS = 2**14
LORA_RANK = 16
SHORTEST = 128
ACCUMULATION = 8


class Question(NamedTuple):
    """What was asked, so that it can be asked again with one thing changed."""

    model: Model
    cluster: Cluster
    wish: Wish
    node_size: int
    """GPUs that a full node has; ``cluster.gpus_per_node`` is no more than there are GPUs."""
    tools: Tools
    with_lora: Callable[[int], Model]
    """Reads the same model again with LoRA adapters of that rank."""


def first_that_fits(question: Question) -> Candidate | None:
    """The best of the smallest micro-batches, or None: cheaper than a full search, and the same yes or no."""
    try:
        space = combinations(question.model, question.cluster, question.wish)
    except InputError:
        return None
    smallest = [
        Combination(settings, (workloads[0], *workloads[-1:]) if len(workloads) > 1 else workloads)
        for settings, workloads in space
        if settings.engine == "deepspeed"
    ]
    best = ranked(examine(question.model, question.cluster, smallest, question.tools).candidates)
    return best[0] if best and best[0].fits != "no" else None


def improvements(winner: Candidate, question: Question) -> Iterator[str]:
    """What one change would buy the winner: fewer bytes off the GPU, more accumulation, or more GPUs."""
    if winner.offloads:
        larger = more_gpus(question._replace(wish=question.wish._replace(offload="none", global_batch=None)))
        if larger is not None:
            yield f"Without offload it fits from {larger.job.cluster.world_size} GPUs on ({name(larger)})."
    if question.wish.global_batch is None:
        accumulated = _accumulated(winner, question.tools)
        gain = accumulated.tokens_per_second / winner.tokens_per_second - 1
        if accumulated.fits != "no" and gain >= 0.01:
            batch = f"--global-batch-size {accumulated.global_batch}"
            yield f"{batch} (accumulation {ACCUMULATION}) would give {gain:.0%} more tokens/s.".replace("%", " %")
    if not winner.offloads:
        yield from _doubled(winner, question)


def shortfall(best: Candidate, question: Question) -> Iterator[str]:
    """By how much the nearest candidate misses, and the changes that would make the job fit."""
    yield f"Nothing fits. The nearest, {name(best)}, takes {' and '.join(missing(best))}."
    tried = list(_remedies(question))
    yield from tried
    if not tried:
        yield f"No single change fits it: not {MOST_GPUS} GPUs, offload, LoRA or a sequence of {SHORTEST} tokens."
        yield from _two_changes(question)


def _remedies(question: Question) -> Iterator[str]:
    wish = question.wish
    yield from _unrestricted(question)
    yield from _more_host_memory(question)
    larger = more_gpus(question._replace(wish=wish._replace(global_batch=None)))
    if larger is not None:
        yield f"More GPUs: {larger.job.cluster.world_size} would fit it ({name(larger)})."
    if not question.model.lora_rank:
        found = first_that_fits(question._replace(model=question.with_lora(LORA_RANK)))
        if found is not None:
            yield f"LoRA: --lora-rank {LORA_RANK} would fit ({name(found)})."
    yield from _shorter(question)


def _unrestricted(question: Question) -> Iterator[str]:
    """Drops one restriction of the person's at a time."""
    wish = question.wish
    restrictions = (
        (wish.offload, wish._replace(offload=None), "Offload: without --offload {} it would fit"),
        (wish.checkpointing, wish._replace(checkpointing=None), "Activation checkpointing: with it, it would fit"),
        (wish.stage, wish._replace(stage=None), "Stage: without --stage {} it would fit"),
        (
            wish.micro_batch,
            wish._replace(micro_batch=None),
            "Micro-batch: without --micro-batch-size {} it would fit",
        ),
    )
    for value, freed, sentence in restrictions:
        if value is None:
            continue
        found = first_that_fits(question._replace(wish=freed))
        if found is not None:
            yield f"{sentence.format(value)} ({name(found)}{_host_need(found)})."


def _more_host_memory(question: Question) -> Iterator[str]:
    if question.cluster.host_memory_bytes is None:
        return
    unlimited = replace(question.cluster, host_memory_bytes=None)
    space = combinations(question.model, unlimited, question.wish)
    fitting = [c for c in examine(question.model, unlimited, space, question.tools).candidates if c.fits != "no"]
    if fitting:
        least = min(fitting, key=lambda candidate: candidate.estimate.host_bytes_per_node)
        needed = format_bytes(least.estimate.host_bytes_per_node)
        yield f"Host memory: {needed} in each node would fit it ({name(least)})."


def _host_need(candidate: Candidate) -> str:
    if offload_name(candidate) == "none":
        return ""
    return f", {format_bytes(candidate.estimate.host_bytes_per_node)} of host memory in each node"


def more_gpus(question: Question) -> Candidate | None:
    """The fewest GPUs on which it fits: twice as many within a node, then whole nodes; None up to ``MOST_GPUS``."""
    node = question.node_size
    within = question.cluster.world_size * 2
    while within < node:
        found = _on(question, within)
        if found is not None:
            return found
        within *= 2
    low = question.cluster.world_size // node
    high = max(1, 2 * low)
    while (found := _on(question, high * node)) is None:
        low, high = high, high * 2
        if high * node > MOST_GPUS:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        better = _on(question, middle * node)
        low, high, found = (middle, high, found) if better is None else (low, middle, better)
    return found


def _on(question: Question, gpus: int) -> Candidate | None:
    return first_that_fits(question._replace(cluster=_larger(question, gpus)))


def _larger(question: Question, gpus: int) -> Cluster:
    """The same kind of node, ``gpus`` GPUs in all."""
    return replace(question.cluster, world_size=gpus, gpus_per_node=min(gpus, question.node_size))


def _shorter(question: Question) -> Iterator[str]:
    seq_len = question.wish.seq_len // 2
    while seq_len >= SHORTEST:
        found = first_that_fits(question._replace(wish=question.wish._replace(seq_len=seq_len)))
        if found is not None:
            yield f"Shorter sequences: --seq-len {seq_len} would fit ({name(found)})."
            return
        seq_len //= 2


def _two_changes(question: Question) -> Iterator[str]:
    """The longest sequence that fits together with one other change, all other restrictions lifted or more GPUs."""
    free = Wish(precision=question.wish.precision, optimizer=question.wish.optimizer, attention=question.wish.attention)
    seq_len = question.wish.seq_len // 2
    while seq_len >= SHORTEST:
        freed = question._replace(wish=free._replace(seq_len=seq_len, quantize=question.wish.quantize))
        found = first_that_fits(freed)
        if found is not None:
            yield f"Two changes: --seq-len {seq_len} and no restrictions would fit ({name(found)}{_host_need(found)})."
        wish = question.wish._replace(seq_len=seq_len, global_batch=None)
        larger = more_gpus(question._replace(wish=wish))
        if larger is not None:
            gpus = larger.job.cluster.world_size
            yield f"Two changes: --seq-len {seq_len} on {gpus} GPUs would fit ({name(larger)})."
        if found is not None or larger is not None:
            return
        seq_len //= 2


def _accumulated(winner: Candidate, tools: Tools) -> Candidate:
    workload = replace(winner.workload, accumulation=winner.workload.accumulation * ACCUMULATION)
    cluster = winner.job.cluster
    return evaluate(Job(winner.job.model, cluster, with_batch(winner.settings, workload, cluster), workload), tools)


def _doubled(winner: Candidate, question: Question) -> Iterator[str]:
    """Twice the GPUs at the same micro-batch."""
    larger = _larger(question, 2 * question.cluster.world_size)
    settings = with_batch(winner.settings, winner.workload, larger)
    doubled = evaluate(Job(question.model, larger, settings, winner.workload), question.tools)
    times = doubled.tokens_per_second / winner.tokens_per_second
    yield f"{larger.world_size} GPUs with the same settings would give {times:.2f} × the tokens/s."
