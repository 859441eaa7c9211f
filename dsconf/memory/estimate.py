"""The answer of the memory model: named bytes at the winning moment."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache, partial
from typing import NamedTuple

from dsconf.errors import InputError
from dsconf.job import Job
from dsconf.memory.allocator import CONTEXT_BYTES, CUBLAS_WORKSPACE
from dsconf.memory.terms import TERMS
from dsconf.memory.timeline import stage_0, stage_1_and_2, stage_3
from dsconf.memory.timeline.common import Alive, Bytes, Frame, Kind, Step, prepare
from dsconf.memory.timeline.host import host_terms, loading_bytes_per_node, nvme_bytes
from dsconf.memory.timeline.initialization import init_peak
from dsconf.memory.timeline.reserved import nccl_bytes, reserved
from dsconf.memory.timeline.resident import Resident, Terms, resident


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
    peak_bytes: int
    """Predicts ``torch.cuda.max_memory_allocated`` over the first training steps, after initialisation."""
    init_peak_bytes: int
    reserved_bytes: int
    process_bytes: int
    host_bytes_per_node: int
    nvme_bytes_per_node: int
    name_moments: Callable[[], tuple[Moment, ...]] = field(repr=False, compare=False)
    """Makes ``moments``: their terms are named when somebody asks, which a search does for few of its candidates."""
    host_terms: Terms = ()
    stays: Terms = ()
    """What is allocated between two steps, from the second on."""
    loading_host_bytes_per_node: int = 0
    """Of a node where each process loads the whole model into its own memory; an upper bound."""

    @cached_property
    def moments(self) -> tuple[Moment, ...]:
        """The largest moment of each phase, from ``forward`` on."""
        return self.name_moments()

    @property
    def peak(self) -> Moment:
        """The largest moment, the first of several that are as large."""
        return max(self.moments, key=lambda moment: moment.num_bytes)

    @property
    def between_steps_bytes(self) -> int:
        """Predicts ``torch.cuda.memory_allocated`` after a step, from the second on."""
        return sum(size for _, size in self.stays)

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
    highest, rank = _fullest(step) if rank is None else (_highest(step, rank), rank)
    held = standing(step, rank)
    peak = highest + held.stays_bytes
    kept = reserved(job, max(peak, held.at_start))
    return Estimate(
        rank,
        peak,
        held.at_start,
        kept,
        kept + held.outside,
        held.host_per_node,
        held.nvme_per_node,
        partial(_largest, step, rank),
        held.host,
        held.stays,
        held.loading_per_node,
    )


def _highest(step: Step, rank: int) -> int:
    """Bytes of the highest moment of ``rank`` beside what stays."""
    return max([sum(sizes) for _, sizes in moments(step, rank)])


def _fullest(step: Step) -> tuple[int, int]:
    """The highest peak of all ranks, beside what stays, and the first rank that has it."""
    if step.wrapper != "zero12":
        return _highest(step, 0), 0
    if stage_1_and_2.alike(step.settings):
        return stage_1_and_2.fullest(step)
    found = [(_highest(step, rank), rank) for rank in stage_1_and_2.full_ranks(step.frame)]
    return max(found, key=lambda one: one[0] + standing(step, one[1]).stays_bytes)


def _largest(step: Step, rank: int) -> tuple[Moment, ...]:
    """The largest moment of each phase, the first of several that are as large."""
    highest: dict[str, tuple[int, Alive]] = {}
    for kind, sizes in moments(step, rank):
        size = sum(sizes)
        if kind.phase not in highest or size > highest[kind.phase][0]:
            highest[kind.phase] = size, (kind, sizes)
    known = _known(step.wrapper)
    always = _terms(standing(step, rank).stays, known)
    winners = [alive for _, alive in highest.values()]
    return tuple([Moment(kind.phase, kind.name, always + _terms(named(kind, alive), known)) for kind, alive in winners])


def _terms(sizes: Terms, known: dict[str, tuple[str, str]]) -> tuple[Term, ...]:
    return tuple([Term(name, size, *known[name]) for name, size in sizes if size])


@lru_cache(maxsize=16)
def _known(wrapper: str) -> dict[str, tuple[str, str]]:
    """Formula and place of every term under one wrapper."""
    return {name: (one.formula, one.place(wrapper)) for name, one in TERMS.items()}


class Standing(NamedTuple):
    """Bytes of one rank and of its node."""

    stays: Terms
    """On the card from step to step, from the second on."""
    stays_bytes: int
    at_start: int
    """The highest point of initialisation."""
    outside: int
    """On the card outside torch's allocator: the context, and NCCL."""
    host: Terms
    """Of one process."""
    host_per_node: int
    nvme_per_node: int
    loading_per_node: int
    """Host memory while the model is loaded."""


def standing(step: Step, rank: int) -> Standing:
    """What ``rank`` holds in the job of ``step``; it is the same for any batch and sequence length."""
    # Earlier micro-batches leave nothing on the host but at stage 2 (memory/timeline/host.py).
    return _standing(step.frame, rank, step.accumulating and step.settings.stage == 2)


@lru_cache(maxsize=4096)
def _standing(frame: Frame, rank: int, accumulating: bool) -> Standing:
    job, cluster = frame.job, frame.job.cluster
    if accumulating:
        job = replace(job, workload=replace(job.workload, accumulation=2))
    between = resident(job, rank)
    stays, host = staying(between), host_terms(job, rank)
    per_node = min(cluster.gpus_per_node, cluster.world_size)
    return Standing(
        stays,
        sum([size for _, size in stays]),
        init_peak(job, rank, between),
        CONTEXT_BYTES + nccl_bytes(cluster, job.settings),
        host,
        per_node * sum([size for _, size in host]),
        per_node * nvme_bytes(job),
        loading_bytes_per_node(job),
    )


def staying(between: Resident) -> Terms:
    """What is alive at every moment: ``between`` two steps, and the workspaces of matrix products."""
    return (*between.terms, ("cuBLAS workspaces", 2 * CUBLAS_WORKSPACE))


class Sketch(NamedTuple):
    """A moment: the terms that are alive beside those that stay."""

    phase: str
    name: str
    terms: Terms

    @property
    def num_bytes(self) -> int:
        """Sum of the terms."""
        return sum(size for _, size in self.terms)


def timeline(job: Job, rank: int) -> tuple[Terms, list[Sketch]]:
    """The terms that stay on ``rank``, and every moment worth looking at.

    Stage by stage: forward and loss, start of backward, each full bucket, its end, gradient norm, optimizer step.
    """
    found = [Sketch(kind.phase, kind.name, named(kind, sizes)) for kind, sizes in moments(prepare(job), rank)]
    return staying(resident(job, rank)), found


def named(kind: Kind, sizes: Bytes) -> Terms:
    """The terms of one moment that are there."""
    found: dict[str, int] = {}
    for name, size in zip(kind.terms, sizes, strict=True):
        if size:
            found[name] = found.get(name, 0) + size
    return tuple(found.items())


def moments(step: Step, rank: int) -> list[Alive]:
    """The moments of ``rank``; only slices of a flat buffer make ranks differ."""
    if step.wrapper == "zero12":
        return stage_1_and_2.moments(step, rank)
    return stage_3.moments(step) if step.wrapper == "zero3" else stage_0.moments(step)
