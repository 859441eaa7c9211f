"""An estimate as a person reads it: the winning moment, every term of it, and what surrounds it."""

from __future__ import annotations

from collections.abc import Iterator

from dsconf.errors import InputError, nearest
from dsconf.job import Job
from dsconf.memory.estimate import Estimate, Term
from dsconf.memory.explain import explain
from dsconf.memory.verdict import nccl_bytes
from dsconf.report.table import as_gib, table
from dsconf.units import format_bytes

_ALLOCATORS = {
    "expandable": "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True",
    "default": "its default allocator (expandable_segments:True needs less)",
}
BAR = 24
"""Characters of the longest bar."""


def estimate_text(found: Estimate, fits: str | None, job: Job) -> str:
    """The peak, its terms from the largest down, the other moments, and the host."""
    return "\n".join(_lines(found, fits, job))


def _lines(found: Estimate, fits: str | None, job: Job) -> Iterator[str]:
    yield f"Peak of rank {found.rank}: {format_bytes(found.peak_bytes)}, in {found.peak_phase}: {found.peak.name}"
    if fits is not None:
        yield f"Fits {job.cluster.gpu.name}: {fits}"
    yield ""
    yield table(("term", "GiB", "share", "", "allocated in"), list(_rows(found)), (0, 3, 4))
    yield ""
    rows = [[m.phase, m.name, as_gib(m.num_bytes, 2)] for m in found.moments]
    yield table(("phase", "highest moment", "GiB"), rows, (0, 1))
    yield ""
    yield f"Initialisation peaks at {format_bytes(found.init_peak_bytes)}."
    of_nccl = format_bytes(nccl_bytes(job.cluster, job.settings))
    yield (
        f"torch reserves about {format_bytes(found.reserved_bytes)} with {_ALLOCATORS[job.workload.allocator]}; "
        f"nvidia-smi shows about {format_bytes(found.process_bytes)}, {of_nccl} of it NCCL's."
    )
    yield _logged(found)
    parts = ", ".join(f"{name} {format_bytes(size)}" for name, size in found.host_terms if size)
    yield f"Host memory of each node: {format_bytes(found.host_bytes_per_node)} (each process: {parts})."
    yield from _loading(found, job)
    if found.nvme_bytes_per_node:
        yield f"NVMe of each node: {format_bytes(found.nvme_bytes_per_node)}."


def _logged(found: Estimate) -> str:
    """The same figures by DeepSpeed's names, whose GB are GiB (runtime/utils.py:839, utils/timer.py:266)."""
    return (
        f"In DeepSpeed's log: MA (MemAllocated) {as_gib(found.between_steps_bytes, 2)} GB between two steps, "
        f"Max_MA (MaxMemAllocated) {as_gib(found.peak_bytes, 2)} GB in a step, "
        f"Max_CA up to {as_gib(found.reserved_bytes, 2)} GB."
    )


def _loading(found: Estimate, job: Job) -> Iterator[str]:
    """What the host needs before training begins, where that is more."""
    if found.loading_host_bytes_per_node <= found.host_bytes_per_node:
        return
    processes = min(job.cluster.gpus_per_node, job.cluster.world_size)
    loads = f"each of {processes} processes loads" if processes > 1 else "the process loads"
    yield (
        f"While it is loaded: up to {format_bytes(found.loading_host_bytes_per_node)} of host memory of each node, "
        f"where {loads} the whole model for itself (docs/memory.md)."
    )


def _rows(found: Estimate) -> Iterator[list[str]]:
    terms = sorted(found.peak.terms, key=lambda term: -term.num_bytes)
    largest = max(term.num_bytes for term in terms)
    for term in terms:
        bar = "█" * max(1, round(BAR * term.num_bytes / largest))
        share = f"{100 * term.num_bytes / found.peak_bytes:.1f} %"
        yield [term.name, as_gib(term.num_bytes, 2), share, bar, term.source]


def explain_text(found: Estimate, name: str, job: Job) -> str:
    """One term of the peak: its bytes, its formula, the numbers in it and where it is allocated.

    Raises:
        InputError: the peak has no such term.
    """
    terms: dict[str, Term] = {term.name: term for term in found.peak.terms}
    if name not in terms:
        hint = nearest(name, tuple(terms))
        raise InputError(f"--explain: the peak has no term {name!r}{hint or '; it has ' + ', '.join(terms)}")
    term = terms[name]
    numbers = explain(job, found.rank, term)
    return "\n  ".join(
        (
            f"{term.name}: {term.num_bytes:,} bytes = {format_bytes(term.num_bytes)}",
            term.formula,
            *numbers,
            f"allocated in {term.source}",
        )
    )
