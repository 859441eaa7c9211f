"""The answer of the memory model: named bytes at the winning moment."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from dsconf.errors import InputError
from dsconf.job import Job
from dsconf.memory.allocator import CONTEXT_BYTES
from dsconf.memory.hooks import rivals
from dsconf.memory.host import host_terms, nvme_bytes
from dsconf.memory.init import init_peak
from dsconf.memory.loading import loading_bytes_per_node
from dsconf.memory.states import Terms, compact, reduces_in_hooks, wrapper
from dsconf.memory.terms import TERMS
from dsconf.memory.timeline import Sketch, timeline
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
    ranks = (rank,) if rank is not None else _candidates(job)
    found = max((_highest(job, r) for r in ranks), key=lambda highest: highest.num_bytes)
    chosen = found.rank
    kind = wrapper(job.settings)
    winners = tuple([_moment(sketch, found.stays, kind) for _, sketch in found.phases.values()])
    sizes = [size for size, _ in found.phases.values()]
    peak = winners[sizes.index(max(sizes))]
    host = host_terms(job, chosen)
    at_start = init_peak(job, chosen)
    held = reserved(job, max(found.num_bytes, at_start))
    per_node = min(job.cluster.gpus_per_node, job.cluster.world_size)
    return Estimate(
        rank=chosen,
        peak=peak,
        moments=winners,
        init_peak_bytes=at_start,
        reserved_bytes=held,
        process_bytes=held + CONTEXT_BYTES + nccl_bytes(job.cluster),
        host_bytes_per_node=per_node * sum(size for _, size in host),
        nvme_bytes_per_node=per_node * nvme_bytes(job),
        host_terms=host,
        stays=found.stays,
        loading_host_bytes_per_node=loading_bytes_per_node(job),
    )


class _Highest(NamedTuple):
    """The largest moment of each phase of one rank."""

    rank: int
    stays: Terms
    phases: dict[str, tuple[int, Sketch]]
    num_bytes: int


def _highest(job: Job, rank: int) -> _Highest:
    stays, moments = timeline(job, rank)
    phases: dict[str, tuple[int, Sketch]] = {}
    for sketch in moments:
        size = sketch.num_bytes
        if sketch.phase not in phases or size > phases[sketch.phase][0]:
            phases[sketch.phase] = (size, sketch)
    most = max(size for size, _ in phases.values())
    return _Highest(rank, stays, phases, most + sum(size for _, size in stays))


def _candidates(job: Job) -> tuple[int, ...]:
    """Rank 0, and where slices differ those that may hold more."""
    if wrapper(job.settings) != "zero12":
        return (0,)
    settings = job.settings
    buffered = settings.offload_optimizer == "none" or compact(settings)
    return rivals(job.model, job.cluster.world_size, reduces_in_hooks(settings), buffered)


def _moment(sketch: Sketch, stays: Terms, kind: str) -> Moment:
    sizes: dict[str, int] = {}
    for name, size in (*stays, *sketch.terms):
        if size:
            sizes[name] = sizes.get(name, 0) + size
    known = _known(kind)
    return Moment(sketch.phase, sketch.name, tuple([Term(name, size, *known[name]) for name, size in sizes.items()]))


@lru_cache(maxsize=16)
def _known(kind: str) -> dict[str, tuple[str, str]]:
    """Formula and place of every term under one wrapper."""
    return {name: (one.formula, one.place(kind)) for name, one in TERMS.items()}
