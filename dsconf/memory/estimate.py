"""The answer of the memory model: named bytes at the winning moment."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial
from typing import NamedTuple

from dsconf.errors import InputError
from dsconf.job import Job
from dsconf.memory.allocator import CONTEXT_BYTES, CUBLAS_WORKSPACE
from dsconf.memory.terms import TERMS, term_of
from dsconf.memory.timeline import stage_0, stage_1_and_2, stage_3
from dsconf.memory.timeline.common import Frame, Rise, Step, alive_at, explaining, frame_of, height_of, prepare
from dsconf.memory.timeline.fullest import fullest
from dsconf.memory.timeline.host import host_terms, loading_bytes_per_node, nvme_bytes
from dsconf.memory.timeline.initialization import init_peak
from dsconf.memory.timeline.reserved import nccl_bytes, reserved
from dsconf.memory.timeline.resident import Terms, resident


class Term(NamedTuple):
    """One allocation somebody can point to."""

    name: str
    num_bytes: int
    """Where it was not recorded operation by operation a ``Bytes``, which knows its products (memory/terms.py)."""
    formula: str
    """In words and figures: ``2 bytes × 1,235,814,400: trained parameters``."""
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
        """Return the largest moment, the first of several that are as large."""
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
    """Return the memory of ``job`` on ``rank``, by default on the fullest rank.

    Raises:
        InputError: no such rank.
    """
    if rank is not None and not 0 <= rank < job.cluster.world_size:
        raise InputError(f"--rank: {rank} is not one of 0 to {job.cluster.world_size - 1}")
    step = prepare(job)
    highest, rank = _fullest(step) if rank is None else (height_of(step, rises(step, rank)), rank)
    persistent = _persistent_memory(step, rank)
    peak = highest + persistent.stays_bytes
    kept = reserved(job, max(peak, persistent.at_start))
    return Estimate(
        rank=rank,
        peak_bytes=peak,
        init_peak_bytes=persistent.at_start,
        reserved_bytes=kept,
        process_bytes=kept + persistent.outside,
        host_bytes_per_node=persistent.host_per_node,
        nvme_bytes_per_node=persistent.nvme_per_node,
        name_moments=partial(_largest, step, rank),
        host_terms=persistent.host,
        stays=persistent.stays,
        loading_host_bytes_per_node=persistent.loading_per_node,
    )


def rises(step: Step, rank: int) -> tuple[Rise, ...]:
    """Return the moments of ``rank`` but for their activations; only slices of a flat buffer make ranks differ."""
    frame, sharded_loss = step.frame, step.act.shards_gradient > 0
    if frame.wrapper == "zero12":
        return stage_1_and_2.rises(frame, step.accumulating, sharded_loss, rank)
    if frame.wrapper == "zero3":
        return stage_3.rises(frame, step.checkpointing_kind, step.shape.loss_shards, sharded_loss)
    return stage_0.rises(frame, step.accumulating, sharded_loss)


def _fullest(step: Step) -> tuple[int, int]:
    """Return the highest moment of all ranks, beside what stays, and the first rank that has it."""
    if step.frame.wrapper == "zero12":
        return fullest(step)
    return height_of(step, rises(step, 0)), 0


def _largest(step: Step, rank: int) -> tuple[Moment, ...]:
    """Return the largest moment of each phase, the first of several that are as large."""
    step = step._replace(frame=explaining(step.frame))
    highest: dict[str, tuple[int, Rise]] = {}
    for rise in rises(step, rank):
        size = height_of(step, (rise,))
        if rise.label.phase not in highest or size > highest[rise.label.phase][0]:
            highest[rise.label.phase] = size, rise
    return tuple([named(step, rank, rise) for _, rise in highest.values()])


def named(step: Step, rank: int, rise: Rise) -> Moment:
    """Return a moment of ``rank`` with all of its terms; those of an explaining frame know what they are made of."""
    parts: dict[str, list[int]] = {}
    for field_name, size in alive_at(step, rise).items():
        parts.setdefault(term_of(field_name), []).append(size)
    sizes = {name: sizes[0] if len(sizes) == 1 else step.frame.bytes.together(*sizes) for name, sizes in parts.items()}
    terms = [*_persistent_memory(step, rank).stays, *sizes.items()]
    return Moment(*rise.label, tuple([_term(step.frame, name, size) for name, size in terms if size]))


def _term(frame: Frame, name: str, num_bytes: int) -> Term:
    text = TERMS[name]
    return Term(name, num_bytes, text.formula(num_bytes), text.place(frame.wrapper))


class PersistentMemory(NamedTuple):
    """Bytes of one rank and of its node that are the same for any batch and sequence length."""

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


def _persistent_memory(step: Step, rank: int) -> PersistentMemory:
    # Earlier micro-batches leave nothing on the host but at stage 2 (memory/timeline/host.py).
    return _persistent_memory_of(step.frame, rank, step.accumulating and step.frame.settings.stage == 2)


def never_fits(job: Job) -> bool:
    """Tell whether the fullest rank of ``job``, or its node, lacks memory for what it holds whatever the batch.

    Yes is certain, and found long before the moments of a step are. Muon's ranks differ in what they hold: of those it
    says no.
    """
    frame = frame_of(job)
    if frame.wrapper == "zero12" and frame.settings.optimizer == "muon":
        return False
    # Earlier micro-batches only add to this.
    persistent = _persistent_memory_of(frame, 0, False)
    on_gpu = max(persistent.stays_bytes, persistent.at_start) + persistent.outside
    return on_gpu > job.cluster.gpu.memory_bytes or persistent.host_per_node > job.cluster.host_limit_bytes


@lru_cache(maxsize=4096)
def _persistent_memory_of(frame: Frame, rank: int, accumulating: bool) -> PersistentMemory:
    cluster = frame.job.cluster
    between = resident(frame, rank)
    stays, host = (
        (*between.terms, ("cuBLAS workspaces", cublas_workspaces(frame))),
        host_terms(frame, rank, accumulating),
    )
    per_node = min(cluster.gpus_per_node, cluster.world_size)
    return PersistentMemory(
        stays=stays,
        stays_bytes=sum([size for _, size in stays]),
        at_start=init_peak(frame, between),
        outside=CONTEXT_BYTES + nccl_bytes(cluster, frame.settings),
        host=host,
        host_per_node=per_node * sum([size for _, size in host]),
        nvme_per_node=per_node * nvme_bytes(frame),
        loading_per_node=loading_bytes_per_node(frame),
    )


def cublas_workspaces(frame: Frame) -> int:
    """Return the workspaces of matrix products: of forward's thread and of backward's."""
    return frame.bytes.product(CUBLAS_WORKSPACE, 2, "threads, forward's and backward's")
