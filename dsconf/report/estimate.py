"""An estimate as a person reads it: the winning moment, every term of it, and what surrounds it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from dsconf.errors import InputError, nearest
from dsconf.job import Job
from dsconf.memory.estimate import Estimate, Term, estimate
from dsconf.memory.explain import explain, explain_host, products
from dsconf.memory.terms import HOST_TERMS, PINNED, TERMS, amounts_of
from dsconf.memory.timeline.reserved import nccl_bytes
from dsconf.memory.zero.subgroups import on_gpu, shards
from dsconf.memory.zero.wrapper import wrapper
from dsconf.report.table import as_gib, table
from dsconf.units import format_bytes

_ALLOCATORS = {
    "expandable": "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True",
    "default": "its default allocator (expandable_segments:True needs less)",
}
BAR = 24
"""Characters of the longest bar."""
_STATES = (
    "parameters",
    "frozen parameters",
    "gradients",
    "master weights",
    "optimizer states",
    "optimizer of the sub-groups on the GPU",
)
_STAYS_LARGE = 0.9
"""A term that keeps more of itself on twice the GPUs is not divided by them; padding and rounding are far less."""


def estimate_text(found: Estimate, fits: str | None, job: Job) -> str:
    """Write the peak, its terms from the largest down, the other moments, and the host."""
    return "\n".join(_lines(found, fits, job))


def _lines(found: Estimate, fits: str | None, job: Job) -> Iterator[str]:
    yield from _filled_by_initialisation(found, job)
    yield f"Peak of rank {found.rank}: {format_bytes(found.peak_bytes)}, in {found.peak_phase}: {found.peak.name}"
    if fits is not None:
        yield f"Fits {job.cluster.gpu.name}: {fits}"
    yield ""
    yield table(("term", "GiB", "share", "", "allocated in"), list(_rows(found)), (0, 3, 4))
    yield from _divided(found, job)
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
    yield from _of_offload(found, job)
    yield from _sub_groups(job)
    yield from _loading(found, job)
    if found.nvme_bytes_per_node:
        yield f"NVMe of each node: {format_bytes(found.nvme_bytes_per_node)}."


def _filled_by_initialisation(found: Estimate, job: Job) -> Iterator[str]:
    """Said first where no step is as full, with what avoids it."""
    if found.init_peak_bytes <= found.peak_bytes:
        return
    full = f"Initialisation fills the card, not a step: it peaks at {format_bytes(found.init_peak_bytes)}"
    if job.workload.quantize is not None:
        yield f"{full}, with all quantized weights loaded; zero.Init does not cut those."
        return
    if job.settings.stage == 3 and job.workload.zero_init is not False:
        yield f"{full}."
        return
    settings = replace(job.settings, stage=3)
    built = estimate(replace(job, settings=settings, workload=replace(job.workload, zero_init=True)))
    words = "--zero-init" if job.settings.stage == 3 else "--stage 3 --zero-init"
    less = f" Built under deepspeed.zero.Init ({words}) it peaks at {format_bytes(built.init_peak_bytes)}."
    lower = built.init_peak_bytes < found.init_peak_bytes
    yield f"{full}, with the whole model on it, however many GPUs there are.{less if lower else ''}"


def _divided(found: Estimate, job: Job) -> Iterator[str]:
    """Stage 3: the states over all GPUs, and the terms that more GPUs leave as they are."""
    ranks = job.cluster.world_size
    if job.settings.stage != 3 or ranks == 1:
        return
    states = sum(size for name, size in found.stays if name in _STATES)
    yield ""
    if states:
        everywhere = format_bytes(ranks * states)
        yield f"Parameters, gradients and optimizer: {format_bytes(states)}, {everywhere} on all GPUs."
    wider = estimate(replace(job, cluster=replace(job.cluster, world_size=2 * ranks)))
    alike = [moment for moment in wider.moments if (moment.phase, moment.name) == (found.peak_phase, found.peak.name)]
    then = {term.name: term.num_bytes for moment in alike for term in moment.terms}
    terms = sorted(found.peak.terms, key=lambda term: -term.num_bytes)
    same = [term.name for term in terms if then.get(term.name, 0) > _STAYS_LARGE * term.num_bytes]
    if same:
        yield f"More GPUs do not make these smaller: {', '.join(same)}."


def _sub_groups(job: Job) -> Iterator[str]:
    """Say that a ratio moves whole sub-groups (stage3.py:1100-1108), so the host's memory goes in steps."""
    settings = job.settings
    if settings.stage != 3 or settings.offload_optimizer != "cpu" or settings.offload_optimizer_ratio >= 1:
        return
    shard = shards(job.model, job.cluster.world_size, settings.sub_group_size, settings.optimizer)
    here, groups = len(on_gpu(settings, shard)), len(shard.groups)
    yield (
        f"Ratio {settings.offload_optimizer_ratio:g} moves whole sub-groups: {here} of {groups} "
        f"{'stay' if here != 1 else 'stays'} on the GPU; other steps need a smaller sub_group_size "
        f"({settings.sub_group_size:,})."
    )


def _logged(found: Estimate) -> str:
    """Write the same figures by DeepSpeed's names, whose GB are GiB (runtime/utils.py:839, utils/timer.py:266)."""
    return (
        f"In DeepSpeed's log: MA (MemAllocated) {as_gib(found.between_steps_bytes, 2)} GB between two steps, "
        f"Max_MA (MaxMemAllocated) {as_gib(found.peak_bytes, 2)} GB in a step, "
        f"Max_CA up to {as_gib(found.reserved_bytes, 2)} GB."
    )


def _loading(found: Estimate, job: Job) -> Iterator[str]:
    """Say what the host needs before training begins, where that is more."""
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
    """Return one term: its bytes, the numbers in them and where it is allocated; on the card and on the host.

    Raises:
        InputError: neither the peak nor the host has such a term.
    """
    terms: dict[str, Term] = {term.name: term for term in found.peak.terms}
    on_host = tuple(_explained_on_host(found, name, job))
    if name not in terms and not on_host:
        known = (*terms, *(host for host, size in found.host_terms if size and host not in terms))
        hint = nearest(name, known)
        raise InputError(f"--explain: the peak has no term {name!r}{hint or '; it has ' + ', '.join(known)}")
    return "\n".join([*(_explained(terms[name], job) if name in terms else ()), *on_host])


def _explained(term: Term, job: Job) -> Iterator[str]:
    yield f"{term.name}: {term.num_bytes:,} bytes = {format_bytes(term.num_bytes)}"
    yield f"  {TERMS[term.name].meaning}"
    for line in explain(job, term):
        yield f"  {line}"
    yield f"  allocated in {term.source}"


def _of_offload(found: Estimate, job: Job) -> Iterator[str]:
    """Say what offload keeps on all nodes, in bytes of each parameter of the model; nothing without offload."""
    terms = [(name, size) for name, size in found.host_terms if size and name != "process"]
    if not terms:
        return
    each = ", ".join(f"{name} {_each(size, job):.1f}" for name, size in terms)
    pinned = any(_is_rounded(size) for size in explain_host(job, found.rank).values())
    rounded = "; pinned blocks are rounded up to powers of two" if pinned else ""
    yield f"Offload keeps {_each(sum(size for _, size in terms), job):.1f} bytes a parameter: {each}{rounded}."


def _is_rounded(num_bytes: int) -> bool:
    return any(amount.why == PINNED for amount in amounts_of(num_bytes))


def _explained_on_host(found: Estimate, name: str, job: Job) -> Iterator[str]:
    """Write lines on the host's term ``name``, none where there is no such term."""
    size = explain_host(job, found.rank).get(name, 0)
    if not size:
        return
    yield f"{name}, host memory of each process: {size:,} bytes = {format_bytes(size)}"
    yield f"  {HOST_TERMS[name].meaning}"
    for line in products(size):
        yield f"  {line}"
    if name == "process":
        return
    elements, ranks = job.model.parameters.total(), job.cluster.world_size
    yield f"  {_each(size, job):.1f} bytes a parameter: {size:,} bytes × {ranks} processes ÷ {elements:,} parameters"
    yield f"  allocated in {HOST_TERMS[name].place(wrapper(job.settings))}"


def _each(size: int, job: Job) -> float:
    return size * job.cluster.world_size / job.model.parameters.total()
