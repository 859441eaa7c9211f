"""Nothing fits: by how much, and what would change that. Every claim is tried, none is guessed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from dsconf.errors import InputError
from dsconf.search.candidates import Candidate, examine
from dsconf.search.headroom import longest_sequence
from dsconf.search.question import MOST_GPUS, Question, first_that_fits, more_gpus
from dsconf.search.rank import name, offload_name
from dsconf.search.reasons import largest_term, missing
from dsconf.search.space import combinations
from dsconf.search.wish import Wish
from dsconf.units import format_bytes

LORA_RANK = 16
SHORTEST = 128


def shortfall(best: Candidate, question: Question, remedies: bool = True) -> Iterator[str]:
    """By how much the nearest candidate misses, and with ``remedies`` the changes that would make the job fit."""
    yield f"Nothing fits. The nearest, {name(best)}, takes {' and '.join(missing(best))}{_filled(best)}."
    if not remedies:
        return
    tried = list(_remedies(question))
    yield from tried
    if tried and not any(remedy.startswith("More GPUs") for remedy in tried):
        yield f"More GPUs do not help, not even {MOST_GPUS}: what each holds for itself is too much."
    if not tried:
        yield f"No single change fits it: not {MOST_GPUS} GPUs, offload, LoRA or a sequence of {SHORTEST} tokens."
        yield from _two_changes(question)


def _filled(best: Candidate) -> str:
    """What takes the room on the GPU, where it is the GPU that is too small."""
    found = best.estimate
    if not best.gpu_short_bytes:
        return ""
    if found.init_peak_bytes > found.peak_bytes:
        return f"; initialisation alone takes {format_bytes(found.init_peak_bytes)}"
    return f"; most of its peak of {format_bytes(found.peak_bytes)} is {largest_term(best)}"


def _remedies(question: Question) -> Iterator[str]:
    wish = question.wish
    yield from _unrestricted(question)
    yield from _more_host_memory(question)
    larger = more_gpus(question._replace(wish=wish._replace(global_batch=None)))
    if larger is not None:
        yield f"More GPUs: {larger.job.cluster.world_size} would fit it ({name(larger)})."
    adapted = None if question.model.lora_rank else _with_lora(question)
    if adapted is not None:
        yield f"LoRA: --lora-rank {LORA_RANK} would fit ({name(adapted)})."
    yield from _shorter(question)


def _with_lora(question: Question) -> Candidate | None:
    try:
        return first_that_fits(question._replace(model=question.with_lora(LORA_RANK)))
    except InputError:  # adapters that the memory model does not know
        return None


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


def _shorter(question: Question) -> Iterator[str]:
    seq_len = question.wish.seq_len // 2
    while seq_len >= SHORTEST:
        found = first_that_fits(question._replace(wish=question.wish._replace(seq_len=seq_len)))
        if found is not None:
            longest = longest_sequence(found, question.tools, below=2 * seq_len)
            yield f"Shorter sequences: --seq-len {longest} would fit ({name(found)})."
            return
        seq_len //= 2


def _two_changes(question: Question) -> Iterator[str]:
    """All restrictions lifted and more GPUs, or the longest sequence that fits together with one of them."""
    wish = question.wish
    free = Wish(wish.seq_len, precision=wish.precision, optimizer=wish.optimizer, attention=wish.attention)
    free = free._replace(quantize=wish.quantize)
    larger = more_gpus(question._replace(wish=free))
    if larger is not None and free != wish:
        gpus = larger.job.cluster.world_size
        yield f"Two changes: no restrictions on {gpus} GPUs would fit ({name(larger)}{_host_need(larger)})."
    seq_len = wish.seq_len // 2
    while seq_len >= SHORTEST:
        found = first_that_fits(question._replace(wish=free._replace(seq_len=seq_len)))
        if found is not None:
            yield f"Two changes: --seq-len {seq_len} and no restrictions would fit ({name(found)}{_host_need(found)})."
        larger = more_gpus(question._replace(wish=wish._replace(seq_len=seq_len, global_batch=None)))
        if larger is not None:
            gpus = larger.job.cluster.world_size
            yield f"Two changes: --seq-len {seq_len} on {gpus} GPUs would fit ({name(larger)})."
        if found is not None or larger is not None:
            return
        seq_len //= 2
