"""The answer of the memory model: named bytes at the winning moment."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from dsconf.errors import InputError
from dsconf.job import Job
from dsconf.memory import zero12
from dsconf.memory.allocator import CONTEXT_BYTES
from dsconf.memory.hooks import rivals
from dsconf.memory.host import host_terms, nvme_bytes
from dsconf.memory.init import init_peak
from dsconf.memory.loading import loading_bytes_per_node
from dsconf.memory.moments import Alive, Step, prepare
from dsconf.memory.states import Resident, Terms, compact, reduces_in_hooks, resident
from dsconf.memory.terms import TERMS
from dsconf.memory.timeline import moments, named, staying
from dsconf.memory.verdict import nccl_bytes, reserved


class Term(NamedTuple):
    """One allocation somebody can point to."""

    name: str
    num_bytes: int
    formula: str
    """In words and figures, e.g. ``2 bytes × 1 235 814 400 parameters``."""
    source: str
    """Where it is allocated: DeepSpeed file:line, or the module's operation."""


class Moment(NamedTuple):
    """All that is allocated at one instant of the step."""

    phase: str
    """``init``, ``forward``, ``backward`` or ``step``."""
    name: str
    """``start of backward``, ``gradient norm`` …"""
    terms: tuple[Term, ...]

    @property
    def num_bytes(self) -> int:
        """Sum of the terms."""
        return sum(term.num_bytes for term in self.terms)


@dataclass(frozen=True)
class Estimate:
    """Bytes of one rank (GPU side) and of one node (host side)."""

    rank: int
    peak: Moment
    moments: tuple[Moment, ...]
    """The largest moment of each phase, ``init`` included."""
    init_peak_bytes: int
    reserved_bytes: int
    process_bytes: int
    host_bytes_per_node: int
    nvme_bytes_per_node: int
    host_terms: Terms = ()
    stays: Terms = ()
    """What is allocated between two steps, from the second on."""
    loading_host_bytes_per_node: int = 0
    """Of a node where each process loads the whole model into its own memory; an upper bound."""

    @property
    def between_steps_bytes(self) -> int:
        """Predicts ``torch.cuda.memory_allocated`` after a step, from the second on."""
        return sum(size for _, size in self.stays)

    @property
    def peak_bytes(self) -> int:
        """Predicts ``torch.cuda.max_memory_allocated`` over the first training steps, after initialisation."""
        return self.peak.num_bytes

    @property
    def peak_phase(self) -> str:
        """``forward``, ``backward`` or ``step``."""
        return self.peak.phase


def estimate(job: Job, rank: int | None = None) -> Estimate:
    """Memory of ``job`` on ``rank``, by default on the fullest rank.

    Raises:
        InputError: no such rank.
    """
    if rank is not None and not 0 <= rank < job.cluster.world_size:
        raise InputError(f"--rank: {rank} is not one of 0 to {job.cluster.world_size - 1}")
    step = prepare(job)
    found = _of_rank(step, rank) if rank is not None else _fullest(step)
    winners, stays = _winners(found), staying(found.stays)
    moments = _named(step, stays, [alive for _, alive in winners])
    highest = [size for size, _ in winners]
    peak, beside = max(highest), sum([size for _, size in stays])
    at_start, host = init_peak(job, found.rank, found.stays), host_terms(job, found.rank)
    held = reserved(job, max(peak + beside, at_start))
    per_node = min(job.cluster.gpus_per_node, job.cluster.world_size)
    return Estimate(
        rank=found.rank,
        peak=moments[highest.index(peak)],
        moments=moments,
        init_peak_bytes=at_start,
        reserved_bytes=held,
        process_bytes=held + CONTEXT_BYTES + nccl_bytes(job.cluster),
        host_bytes_per_node=per_node * sum([size for _, size in host]),
        nvme_bytes_per_node=per_node * nvme_bytes(job),
        host_terms=host,
        stays=stays,
        loading_host_bytes_per_node=loading_bytes_per_node(job),
    )


class _Found(NamedTuple):
    """What one rank holds: all the time, and at each moment besides."""

    rank: int
    stays: Resident
    moments: list[Alive]
    sizes: list[int]
    """Of each moment."""


def _of_rank(step: Step, rank: int, stays: Resident | None = None) -> _Found:
    alive = moments(step, rank)
    stays = resident(step.job, rank) if stays is None else stays
    return _Found(rank, stays, alive, [sum(sizes) for _, sizes in alive])


def _fullest(step: Step) -> _Found:
    """The first of the ranks with the highest peak."""
    if step.wrapper != "zero12":
        return _of_rank(step, 0)
    settings = step.settings
    buffered = settings.offload_optimizer == "none" or compact(settings)
    ranks = rivals(step.model, step.world_size, reduces_in_hooks(settings), buffered)
    if len(ranks) == 1 or not zero12.alike(settings):
        return max([_of_rank(step, rank) for rank in ranks], key=_peak)
    # From the rank that could hold most downwards, until no other can hold more than the highest so far. Of several
    # that hold the same the first counts, so numbers are negative.
    tries = sorted([(ceiling, -i) for i, ceiling in enumerate(zero12.ceilings(step, ranks))], reverse=True)
    best = _of_rank(step, ranks[-tries[0][1]])
    highest = (max(best.sizes), tries[0][1])
    for ceiling, number in tries[1:]:
        if (ceiling, number) < highest:
            break
        found = _of_rank(step, ranks[-number], best.stays)
        if (max(found.sizes), number) > highest:
            best, highest = found, (max(found.sizes), number)
    return best


def _peak(found: _Found) -> int:
    return max(found.sizes) + sum([size for _, size in found.stays.terms])


def _winners(found: _Found) -> list[tuple[int, Alive]]:
    """The largest moment of each phase with its size, what stays left out; the first of several that are as large."""
    highest: dict[str, tuple[int, Alive]] = {}
    for size, alive in zip(found.sizes, found.moments, strict=True):
        phase = alive[0].phase
        if phase not in highest or size > highest[phase][0]:
            highest[phase] = size, alive
    return list(highest.values())


def _named(step: Step, stays: Terms, winners: list[Alive]) -> tuple[Moment, ...]:
    known = _known(step.wrapper)
    always = _terms(stays, known)
    return tuple([Moment(kind.phase, kind.name, always + _terms(named(kind, alive), known)) for kind, alive in winners])


def _terms(sizes: Terms, known: dict[str, tuple[str, str]]) -> tuple[Term, ...]:
    return tuple([Term(name, size, *known[name]) for name, size in sizes if size])


@lru_cache(maxsize=16)
def _known(wrapper: str) -> dict[str, tuple[str, str]]:
    """Formula and place of every term under one wrapper."""
    return {name: (one.formula, one.place(wrapper)) for name, one in TERMS.items()}
