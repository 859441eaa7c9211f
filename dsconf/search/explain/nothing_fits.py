"""Nothing fits: by how much, and what would change that. Every claim is tried, none is guessed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from dsconf.errors import InputError
from dsconf.search.candidates import Candidate, examine
from dsconf.search.explain.headroom import longest_sequence
from dsconf.search.explain.reasons import largest_term, marked, missing, told
from dsconf.search.question import MOST_GPUS, Question, first_that_fits, fits_somehow, more_gpus, rounding
from dsconf.search.rank import name
from dsconf.search.space import combinations
from dsconf.search.wish import Wish
from dsconf.units import format_bytes

LORA_RANK = 16
SHORTEST = 128
DRIVE = "--nvme PATH"
UNLIMITED = 2**60
"""Bytes of host memory that nothing is too large for."""


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
        drive = ", NVMe" if _drive_is_open(question) else ""
        offload = f"offload{drive}, LoRA or a sequence of {SHORTEST} tokens"
        yield f"No single change fits it: not {MOST_GPUS} GPUs, {offload}."
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
    yield from _nvme(question)
    larger = more_gpus(question._replace(wish=wish._replace(global_batch=None)))
    if larger is not None:
        gpus = larger.job.cluster.world_size
        yield f"More GPUs: {gpus} would fit it ({told(larger)}){rounding(larger, wish.low_states)}."
    adapted = None if question.model.lora_rank else _with_lora(question)
    if adapted is not None:
        rounds = rounding(adapted, wish.low_states)
        yield f"LoRA: --lora-rank {LORA_RANK} would fit ({told(adapted)}){rounds}."
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
            yield f"{sentence.format(value)} ({told(found)}){rounding(found, wish.low_states)}."


def _more_host_memory(question: Question) -> Iterator[str]:
    unlimited = replace(question.cluster, host_memory_bytes=UNLIMITED)
    if not fits_somehow(question._replace(cluster=unlimited)):
        return
    space = combinations(question.model, unlimited, question.wish)
    fitting = [c for c in examine(question.model, unlimited, space, question.tools).candidates if c.fits != "no"]
    if fitting:
        least = min(fitting, key=lambda candidate: candidate.estimate.host_bytes_per_node)
        needed = format_bytes(least.estimate.host_bytes_per_node)
        rounds = rounding(least, question.wish.low_states)
        yield f"Host memory: {needed} in each node would fit it ({marked(least)}){rounds}."


def _nvme(question: Question) -> Iterator[str]:
    found = _driven(question)
    if found is not None:
        yield f"NVMe: {DRIVE} would fit it ({marked(found)}), {_disk_need(found)}."


def _driven(question: Question) -> Candidate | None:
    """What fits with a drive in each node, where nothing does without; None, too, where a drive is not open."""
    if not _drive_is_open(question):
        return None
    return first_that_fits(question._replace(cluster=replace(question.cluster, nvme_path="PATH")))


def _drive_is_open(question: Question) -> bool:
    """Whether nobody gave a path, and ``--offload`` leaves NVMe to the search."""
    return question.cluster.nvme_path is None and question.wish.offload in (None, "nvme")


def _disk_need(candidate: Candidate) -> str:
    found = candidate.estimate
    disk, host = format_bytes(found.nvme_bytes_per_node), format_bytes(found.host_bytes_per_node)
    return f"{disk} on the disk of each node and {host} of host memory"


def _shorter(question: Question) -> Iterator[str]:
    seq_len = question.wish.seq_len // 2
    while seq_len >= SHORTEST:
        found = first_that_fits(question._replace(wish=question.wish._replace(seq_len=seq_len)))
        if found is not None:
            longest = longest_sequence(found, question.tools, below=2 * seq_len)
            rounds = rounding(found, question.wish.low_states)
            yield f"Shorter sequences: --seq-len {longest} would fit ({told(found)}){rounds}."
            return
        seq_len //= 2


def _two_changes(question: Question) -> Iterator[str]:
    """All restrictions lifted, alone or with more GPUs or a drive, and the longest sequence that fits with one of them.

    More GPUs and a drive are not tried together: both take away the same states.
    """
    wish = question.wish
    free = Wish(wish.seq_len, precision=wish.precision, optimizer=wish.optimizer, attention=wish.attention)
    free = free._replace(quantize=wish.quantize)
    if free != wish:
        lifted = question._replace(wish=free)
        alone = [*_said("All restrictions lifted: it", first_that_fits(lifted), wish)]
        yield from alone
        if alone:
            return
        yield from _said("Two changes: no restrictions on {} GPUs", more_gpus(lifted), wish)
        yield from _said(f"Two changes: {DRIVE} and no restrictions", _driven(lifted), wish)
    seq_len = wish.seq_len // 2
    while seq_len >= SHORTEST:
        shorter, lead = question._replace(wish=wish._replace(seq_len=seq_len)), f"Two changes: --seq-len {seq_len}"
        lifted = question._replace(wish=free._replace(seq_len=seq_len))
        larger = question._replace(wish=shorter.wish._replace(global_batch=None))
        tried = [
            *_said(f"{lead} and no restrictions", first_that_fits(lifted), wish),
            *_said(f"{lead} and {DRIVE}", _driven(shorter), wish),
            *_said(f"{lead} on {{}} GPUs", more_gpus(larger), wish),
        ]
        yield from tried
        if tried:
            return
        seq_len //= 2


def _said(changes: str, found: Candidate | None, wish: Wish) -> Iterator[str]:
    if found is None:
        return
    on_disk = f"{marked(found)}), {_disk_need(found)}"
    what = on_disk if found.estimate.nvme_bytes_per_node else f"{told(found)})"
    yield f"{changes.format(found.job.cluster.world_size)} would fit ({what}{rounding(found, wish.low_states)}."
