"""How much room a config leaves on each GPU, and what it is worth in longer samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from dsconf.job import Job
from dsconf.search.candidates import Candidate, CostModels, evaluate

STEP = 128
"""Sequence lengths are tried in multiples of this many tokens."""
LONGEST = 2**22
"""Tokens beyond which nobody looks for a longer sample."""


class Headroom(NamedTuple):
    """Bytes of one GPU of the fullest rank, and tokens of one sample."""

    free_bytes: int
    """What is left of the card beside the process; negative where a fit is tight."""
    fragmentation_bytes: int
    """Kept above the peak for the allocator (memory/fit.py); part of the process's bytes."""
    outside_bytes: int
    """The driver's context and the communicators, which torch does not count; part of the process's bytes, too."""
    longest_seq_len: int
    """The longest sample that still fits with headroom, everything else unchanged."""
    positions: int
    """Longest sample the model was made for."""


def headroom(winner: Candidate, tools: CostModels) -> Headroom:
    """Measure the room around ``winner``; samples are lengthened up to the model's positions, where it has any and the
    sample asked for is within them."""
    estimate, job = winner.estimate, winner.job
    peak = max(estimate.peak_bytes, estimate.init_peak_bytes)
    bounded = job.workload.seq_len <= job.model.positions and not job.model.alibi
    return Headroom(
        free_bytes=job.cluster.gpu.memory_bytes - estimate.process_bytes,
        fragmentation_bytes=estimate.reserved_bytes - peak,
        outside_bytes=estimate.process_bytes - estimate.reserved_bytes,
        longest_seq_len=longest_sequence(winner, tools, below=job.model.positions + 1 if bounded else LONGEST),
        positions=job.model.positions,
    )


def longest_sequence(candidate: Candidate, tools: CostModels, below: int = LONGEST) -> int:
    """Find the longest sample, a multiple of ``STEP`` less than ``below``, that fits no worse than ``candidate`` does.

    At least the one that it has: memory never falls as samples grow.
    """
    start, verdicts = candidate.workload.seq_len, ("yes",) if candidate.fits == "yes" else ("yes", "tight")

    def fits(steps: int) -> bool:
        workload = replace(candidate.workload, seq_len=steps * STEP)
        job = Job(candidate.job.model, candidate.job.cluster, candidate.settings, workload)
        return evaluate(job, tools).fits in verdicts

    most = (min(below, LONGEST) - 1) // STEP
    return max(start, STEP * _last(fits, start // STEP, most))


def _last(holds: Callable[[int], bool], known: int, most: int) -> int:
    """Find the largest number up to ``most`` that ``holds`` says yes to, which it does from ``known`` up to there."""
    step = 1
    while known + step <= most and holds(known + step):
        known, step = known + step, step * 2
    while step > 1:
        step //= 2
        if known + step <= most and holds(known + step):
            known += step
    return known
