"""Nothing fits: by how much, and what would change that. Every claim is tried, none is guessed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from dsconf.errors import InputError
from dsconf.search.candidates import Candidate, fitting
from dsconf.search.constraints import Constraints
from dsconf.search.explain.headroom import longest_sequence
from dsconf.search.explain.reason import Reason, facts, reason, shortage
from dsconf.search.explain.winner import largest_term
from dsconf.search.question import MOST_GPUS, Question, first_that_fits, fits_somehow, more_gpus, rounds_unasked
from dsconf.search.space import combinations

LORA_RANK = 16
SHORTEST = 128
UNLIMITED = 2**60
"""Bytes of host memory that nothing is too large for."""


def nothing_fits(nearest: Candidate, question: Question, remedies: bool = True) -> Iterator[Reason]:
    """Say by how much the nearest candidate misses, and with ``remedies`` which changes would make the job fit."""
    yield reason("nothing_fits", config=facts(nearest), short=shortage(nearest), fullest=_fullest(nearest))
    if not remedies:
        return
    tried = list(_remedies(question))
    yield from tried
    if tried and not any(remedy.code == "fits_on_more_gpus" for remedy in tried):
        yield reason("more_gpus_do_not_help", gpus=MOST_GPUS)
    if not tried:
        yield reason("no_single_change", gpus=MOST_GPUS, nvme=_drive_is_open(question), seq_len=SHORTEST)
        yield from _two_changes(question)


def _fullest(nearest: Candidate) -> dict[str, Any] | None:
    """State what takes the room on the GPU, where it is the GPU that is too small."""
    estimate = nearest.estimate
    if not nearest.gpu_short_bytes:
        return None
    if estimate.init_peak_bytes > estimate.peak_bytes:
        return {"start_bytes": estimate.init_peak_bytes}
    return {"peak_bytes": estimate.peak_bytes, "term": largest_term(nearest)}


def _fits(code: str, candidate: Candidate, fixed: Constraints, **figures: Any) -> Reason:
    """Name a change that makes the job fit, and what it would then be."""
    return reason(code, **figures, config=facts(candidate), rounds=rounds_unasked(candidate, fixed.low_states))


def _remedies(question: Question) -> Iterator[Reason]:
    fixed = question.fixed
    yield from _unrestricted(question)
    yield from _more_host_memory(question)
    driven = _driven(question)
    if driven is not None:
        yield reason("fits_with_nvme", config=facts(driven))
    larger = more_gpus(question._replace(fixed=fixed._replace(global_batch=None)))
    if larger is not None:
        yield _fits("fits_on_more_gpus", larger, fixed)
    adapted = None if question.model.lora_rank else _with_lora(question)
    if adapted is not None:
        yield _fits("fits_with_lora", adapted, fixed, rank=LORA_RANK)
    yield from _shorter(question)


def _with_lora(question: Question) -> Candidate | None:
    try:
        return first_that_fits(question._replace(model=question.with_lora(LORA_RANK)))
    except InputError:  # adapters that the memory model does not know
        return None


def _unrestricted(question: Question) -> Iterator[Reason]:
    """Drop one restriction of the person's at a time."""
    fixed = question.fixed
    restrictions = (
        ("offload", fixed.offload, fixed._replace(offload=None)),
        ("activation_checkpointing", fixed.checkpointing, fixed._replace(checkpointing=None)),
        ("stage", fixed.stage, fixed._replace(stage=None)),
        ("micro_batch_size", fixed.micro_batch, fixed._replace(micro_batch=None)),
    )
    for option, value, freed in restrictions:
        if value is None:
            continue
        candidate = first_that_fits(question._replace(fixed=freed))
        if candidate is not None:
            yield _fits("fits_without_option", candidate, fixed, option=option, value=value)


def _more_host_memory(question: Question) -> Iterator[Reason]:
    unlimited = replace(question.cluster, host_memory_bytes=UNLIMITED)
    if not fits_somehow(question._replace(cluster=unlimited)):
        return
    space = combinations(question.model, unlimited, question.fixed)
    candidates = fitting(question.model, unlimited, space, question.tools)
    if candidates:
        least = min(candidates, key=lambda candidate: candidate.estimate.host_bytes_per_node)
        yield _fits("fits_with_host_memory", least, question.fixed)


def _driven(question: Question) -> Candidate | None:
    """Find what fits with a drive in each node, where nothing does without; None, too, where a drive is not open."""
    if not _drive_is_open(question):
        return None
    return first_that_fits(question._replace(cluster=replace(question.cluster, nvme_path="PATH")))


def _drive_is_open(question: Question) -> bool:
    """Tell whether nobody gave a path, and ``--offload`` leaves NVMe to the search."""
    return question.cluster.nvme_path is None and question.fixed.offload in (None, "nvme")


def _shorter(question: Question) -> Iterator[Reason]:
    seq_len = question.fixed.seq_len // 2
    while seq_len >= SHORTEST:
        candidate = first_that_fits(question._replace(fixed=question.fixed._replace(seq_len=seq_len)))
        if candidate is not None:
            longest = longest_sequence(candidate, question.tools, below=2 * seq_len)
            yield _fits("fits_with_shorter_sequences", candidate, question.fixed, seq_len=longest)
            return
        seq_len //= 2


def _two_changes(question: Question) -> Iterator[Reason]:
    """Lift all restrictions, alone or with more GPUs or a drive, and find the longest sequence that fits with one of
    them.

    More GPUs and a drive are not tried together: both take away the same states.
    """
    fixed = question.fixed
    free = Constraints(
        fixed.seq_len,
        precision=fixed.precision,
        optimizer=fixed.optimizer,
        attention=fixed.attention,
    )
    free = free._replace(quantize=fixed.quantize)
    if free != fixed:
        lifted = question._replace(fixed=free)
        alone = first_that_fits(lifted)
        if alone is not None:
            yield _fits("fits_without_restrictions", alone, fixed)
            return
        yield from _two(more_gpus(lifted), fixed, unrestricted=True, larger=True)
        yield from _two(_driven(lifted), fixed, unrestricted=True, nvme=True)
    seq_len = fixed.seq_len // 2
    while seq_len >= SHORTEST:
        shorter = question._replace(fixed=fixed._replace(seq_len=seq_len))
        lifted = question._replace(fixed=free._replace(seq_len=seq_len))
        larger = question._replace(fixed=shorter.fixed._replace(global_batch=None))
        tried = [
            *_two(first_that_fits(lifted), fixed, seq_len, unrestricted=True),
            *_two(_driven(shorter), fixed, seq_len, nvme=True),
            *_two(more_gpus(larger), fixed, seq_len, larger=True),
        ]
        yield from tried
        if tried:
            return
        seq_len //= 2


def _two(
    candidate: Candidate | None,
    fixed: Constraints,
    seq_len: int | None = None,
    *,
    unrestricted: bool = False,
    nvme: bool = False,
    larger: bool = False,
) -> Iterator[Reason]:
    """Name the two changes under which ``candidate`` fits: a shorter sequence, no restrictions, a drive, more GPUs."""
    if candidate is not None:
        gpus = candidate.job.cluster.world_size if larger else None
        changes = {"seq_len": seq_len, "unrestricted": unrestricted, "nvme": nvme, "gpus": gpus}
        yield _fits("fits_with_two_changes", candidate, fixed, **changes)
