"""The numbers behind one term of an estimate: a product of elements, or a list of recorded operations."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from dsconf.job import Job
from dsconf.memory.allocator import CUBLAS_WORKSPACE
from dsconf.memory.estimate import Term
from dsconf.memory.layers.activations import recorded
from dsconf.memory.timeline.common import prepare, shape
from dsconf.memory.zero.gradient_order import hooks
from dsconf.memory.zero.wrapper import compact, widths, wrapper
from dsconf.units import format_bytes


def explain(job: Job, rank: int, term: Term) -> tuple[str, ...]:
    """Lines of arithmetic that end in ``term.num_bytes``.

    A term of whole elements is a product, with the numbers of the job that its elements come from. A term that was
    recorded operation by operation is a sum over the model, then what each operation of one layer keeps.
    """
    if term.name in _RECORDED:
        return tuple(_RECORDED[term.name](job, rank, term))
    return tuple(_product(job, term))


def _product(job: Job, term: Term) -> Iterator[str]:
    if term.name == "cuBLAS workspaces":
        yield f"{term.num_bytes // CUBLAS_WORKSPACE} × {CUBLAS_WORKSPACE:,} bytes"
        return
    width = _width(job, term.name)
    elements, rest = divmod(term.num_bytes, width)
    yield (
        f"{width} bytes × {elements:,} elements{f' + {rest} bytes' if rest else ''} = {term.num_bytes:,} bytes, "
        "padding and the allocator's rounding included"
    )
    known = hooks(job.model)
    yield f"of {known.total:,} trained parameters ({known.largest:,} in the largest), {job.cluster.world_size} ranks"
    for key in _KEYS.get(term.name, ()):
        value = getattr(job.settings, key.removeprefix("stage3_"))
        yield f"{key} {str(value).lower() if isinstance(value, bool) else f'{value:,}'}"


_KEYS = {
    "reduce bucket": ("reduce_bucket_size", "overlap_comm"),
    "reduce copy": ("reduce_bucket_size",),
    "newest gradient": ("reduce_bucket_size",),
    "gathered weights": (
        "stage3_prefetch_bucket_size",
        "stage3_max_live_parameters",
        "stage3_max_reuse_distance",
        "stage3_param_persistence_threshold",
    ),
    "flat gradient": ("sub_group_size",),
    "fp32 gradient": ("sub_group_size",),
    "optimizer temporaries": ("sub_group_size",),
}


def _width(job: Job, name: str) -> int:
    width, kind = widths(job.settings), wrapper(job.settings)
    return {
        "master weights": width.master,
        "optimizer states": width.state,
        "gradients": width.model if kind == "zero12" and not compact(job.settings) else width.accumulate,
        "fp64 gradient for the norm": 8,
        "fp32 gradient": width.master,
        "optimizer temporaries": width.master,
        "overflow masks": width.accumulate + 1,
    }.get(name, width.model)


def _saved(job: Job, rank: int, term: Term) -> Iterator[str]:
    del rank
    act = prepare(job).act
    layers, rest = divmod(max(0, term.num_bytes - act.bottom), act.layer) if act.layer else (0, term.num_bytes)
    yield f"before the layers {act.bottom:,} + {layers} layers × {act.layer:,} + {rest:,} = {term.num_bytes:,} bytes"
    if job.workload.checkpointing:
        yield "checkpointed: a layer keeps its input, and this when it runs again:"
    else:
        yield "what one layer keeps:"
    yield from _operations(job)


def _layer(job: Job, rank: int, term: Term) -> Iterator[str]:
    del rank, term
    yield "what the layer keeps for its backward, and beside it the gradients of the operation that runs:"
    yield from _operations(job)


def _operations(job: Job) -> Iterator[str]:
    for name, size in recorded(job.model, shape(job)).layer:
        yield f"  {size:>15,}  {format_bytes(size):>10}  {name}"


def _logits(job: Job, rank: int, term: Term) -> Iterator[str]:
    del rank, term
    sizes = shape(job)
    tokens = -(-sizes.tokens // sizes.loss_shards) if sizes.loss_shards else sizes.tokens
    shards = f" in each of {sizes.loss_shards} shards" if sizes.loss_shards else ""
    yield (
        f"{tokens:,} tokens{shards} × {job.model.vocab:,} vocabulary: {tokens * job.model.vocab * sizes.width:,} "
        f"bytes of logits, {4 * tokens * job.model.vocab:,} bytes for each copy in fp32"
    )
    yield "what final norm, output projection and loss keep:"
    for name, size in recorded(job.model, sizes).head:
        yield f"  {size:>15,}  {format_bytes(size):>10}  {name}"


_RECORDED: dict[str, Callable[[Job, int, Term], Iterator[str]]] = {
    "saved activations": _saved,
    "layer in progress": _layer,
    "logits and loss": _logits,
}
