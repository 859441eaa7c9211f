"""What a term of an estimate is made of, in figures: its products, or a list of recorded operations."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from dsconf.job import Job
from dsconf.memory.estimate import Term
from dsconf.memory.layers.activations import recorded
from dsconf.memory.terms import amounts_of
from dsconf.memory.timeline.common import explaining, frame_of, prepare, shape
from dsconf.memory.timeline.host import host_terms
from dsconf.units import format_bytes


def explain(job: Job, term: Term) -> tuple[str, ...]:
    """Return lines of arithmetic that end in ``term.num_bytes``.

    A term of whole elements is a sum of products, one a line. A term that was recorded operation by operation is a sum
    over the model, then what each operation of one layer keeps.
    """
    amounts = tuple(products(term.num_bytes))
    return amounts or tuple(_RECORDED[term.name](job, term))


def products(num_bytes: int) -> Iterator[str]:
    """Yield a line for each amount that ``num_bytes`` is made of."""
    for number, amount in enumerate(amounts_of(num_bytes)):
        yield f"{'+ ' if number else ''}{amount}"


def explain_host(job: Job, rank: int) -> dict[str, int]:
    """Return the host's terms of one process of ``rank``, which know what they are made of."""
    frame, workload = explaining(frame_of(job)), job.workload
    return dict(host_terms(frame, rank, workload.accumulation > 1))


def _saved_activations(job: Job, term: Term) -> Iterator[str]:
    act = prepare(job).act
    bottom, each = act.bottom, act.layer
    layers, rest = divmod(max(0, term.num_bytes - bottom), each) if each else (0, term.num_bytes - bottom)
    yield f"before the layers {bottom:,} + {layers} layers × {each:,} + {rest:,} = {term.num_bytes:,} bytes"
    if job.workload.checkpointing:
        yield "checkpointed: a layer keeps its input, and this when it runs again:"
    else:
        yield "what one layer keeps:"
    yield from _operations(recorded(job.model, shape(job)).layer)


def _layer_in_progress(job: Job, term: Term) -> Iterator[str]:
    yield "what the layer keeps for its backward, and beside it the gradients of the operation that runs:"
    yield from _operations(recorded(job.model, shape(job)).layer)


def _logits_and_loss(job: Job, term: Term) -> Iterator[str]:
    sizes = shape(job)
    tokens = -(-sizes.tokens // sizes.loss_shards) if sizes.loss_shards else sizes.tokens
    shards = f" in each of {sizes.loss_shards} shards" if sizes.loss_shards else ""
    yield (
        f"{tokens:,} tokens{shards} × {job.model.vocab:,} vocabulary: {tokens * job.model.vocab * sizes.width:,} "
        f"bytes of logits, {4 * tokens * job.model.vocab:,} bytes for each copy in fp32"
    )
    yield "what final norm, output projection and loss keep:"
    yield from _operations(recorded(job.model, sizes).head)


def _operations(kept: tuple[tuple[str, int], ...]) -> Iterator[str]:
    for name, size in kept:
        yield f"  {size:>15,}  {format_bytes(size):>10}  {name}"


_RECORDED: dict[str, Callable[[Job, Term], Iterator[str]]] = {
    "saved activations": _saved_activations,
    "layer in progress": _layer_in_progress,
    "logits and loss": _logits_and_loss,
}
