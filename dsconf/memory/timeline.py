"""The moments of a training step at which one rank's memory can peak, each as named bytes.

Every moment is what stays (memory/states.py) plus what is alive only then. Only the steady state is looked at, from the
second step on, besides the first optimizer step, which makes the states.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from dsconf.config.settings import Settings
from dsconf.job import Job
from dsconf.memory.activations import Activations, activations
from dsconf.memory.allocator import CUBLAS_WORKSPACE
from dsconf.memory.recorder import Shape
from dsconf.memory.states import Resident, Terms, Widths, resident, widths, wrapper
from dsconf.memory.tiled_loss import automatic_shards
from dsconf.model.spec import Model

Tops = tuple[tuple[int, int], ...]


class Sketch(NamedTuple):
    """A moment: the terms that are alive beside those that stay."""

    phase: str
    name: str
    terms: Terms

    @property
    def num_bytes(self) -> int:
        """Sum of the terms."""
        total = 0
        for _, size in self.terms:
            total += size
        return total


class Step(NamedTuple):
    """What the moments are computed from."""

    job: Job
    rank: int
    model: Model
    settings: Settings
    width: Widths
    act: Activations
    resident: Resident
    accumulating: bool
    """The last of several micro-batches: earlier ones have left gradients."""

    @property
    def world_size(self) -> int:
        """Ranks of the ZeRO group."""
        return self.job.cluster.world_size


def replay(job: Job) -> str:
    """Kind of activation checkpointing: empty, ``reentrant`` or ``nonreentrant``."""
    if not job.workload.checkpointing:
        return ""
    return "reentrant" if job.workload.reentrant else "nonreentrant"


def shape(job: Job) -> Shape:
    """Sizes of one micro-batch."""
    settings, workload = job.settings, job.workload
    half = settings.precision == "fp16"
    autocast = settings.precision == "autocast"
    ranks = settings.sequence_parallel
    seq = workload.seq_len // ranks
    shards = 0
    if workload.loss_shards is not None:
        shards = workload.loss_shards or automatic_shards(workload.micro_batch * seq, job.model.vocab)
    width = widths(settings).model
    return Shape(workload.micro_batch, seq, width, half, workload.attention, autocast, True, ranks, shards)


def prepare(job: Job, rank: int) -> Step:
    """Everything the moments share."""
    act = activations(job.model, shape(job), replay(job))
    accumulating = job.workload.accumulation > 1
    return Step(job, rank, job.model, job.settings, widths(job.settings), act, resident(job, rank), accumulating)


def timeline(job: Job, rank: int) -> tuple[Terms, list[Sketch]]:
    """The terms that stay, and every moment worth looking at.

    Stage by stage: forward and loss, start of backward, each full bucket, its end, gradient norm, optimizer step.
    """
    from dsconf.memory import unsharded, zero3, zero12

    step = prepare(job, rank)
    kind = wrapper(job.settings)
    moments = {"zero12": zero12.moments, "zero3": zero3.moments}.get(kind, unsharded.moments)
    stays = (*step.resident.terms, ("cuBLAS workspaces", 2 * CUBLAS_WORKSPACE))
    return stays, list(moments(step))


def forward(step: Step, held: Terms, gathered: Tops = (), at_loss: int = 0) -> Iterator[Sketch]:
    """The highest points of forward: in the last layer, and in the loss.

    ``held`` lives through forward; ``gathered`` are (layer, bytes of gathered weights) of the layers
    that can be the highest, ``at_loss`` those in the loss.
    """
    act = step.act
    if gathered:
        best, weights = max(gathered, key=lambda top: top[0] * act.layer + top[1])
        extra: Terms = (("gathered weights", weights),)
    else:
        best, extra = act.layers - 1, ()
    kept = act.bottom + act.forward_only + best * act.layer
    yield Sketch("forward", "inside a layer", (*held, *extra, *_saved(kept), ("layer in progress", act.layer_forward)))
    extra = (("gathered weights", at_loss),) if at_loss else ()
    yield Sketch("forward", "loss", (*held, *extra, *_saved(act.kept), ("logits and loss", act.head_forward)))


def tiled_loss(step: Step, held: Terms) -> Iterator[Sketch]:
    """A later shard of a tiled loss, inside forward; ``held`` is alive once the projection's first gradient came.

    Stages 0 and 1 have that gradient among those that earlier micro-batches left.
    """
    act = step.act
    if act.shards_gradient:
        added = 0 if step.accumulating and step.settings.stage < 2 else act.shards_gradient
        terms = (("logits and loss", act.head_forward), ("newest gradient", added))
        yield Sketch("forward", "a shard of the loss", (*held, *_saved(act.kept), *terms))


def start_of_backward(step: Step, held: Terms) -> Sketch:
    """Gradient of the loss: log-softmax, its gradient and that of the logits are alive together."""
    terms = (*held, *_saved(step.act.kept), ("logits and loss", step.act.head_backward.reduced))
    return Sketch("backward", "gradient of the loss", terms)


def in_layer(step: Step, layer: int, held: Terms, *, hoarded: bool = False) -> Sketch:
    """The highest point of one layer's backward, the layers below it still kept."""
    act = step.act
    inside = act.layer_backward.hoarded if hoarded else act.layer_backward.reduced
    name = "in the last layer" if layer == act.layers - 1 else f"in layer {layer}"
    terms = (*held, *_saved(act.bottom + layer * act.layer), ("layer in progress", inside), *_tied(step))
    return Sketch("backward", name, terms)


def live_at_hook(step: Step, layer: int, event: int) -> int:
    """Bytes of activations alive when the hook of one parameter runs, the tied gradient included."""
    act = step.act
    if layer < 0:
        return act.bottom + (act.embedding_live[event] if event >= 0 else 0)
    if layer == act.layers:
        return act.kept + act.head_live[event] + act.tied
    return act.bottom + layer * act.layer + act.layer_live[event] + act.tied


def at_hook(step: Step, layer: int, event: int) -> Terms:
    """What is alive when the hook of one parameter runs, by name."""
    live = live_at_hook(step, layer, event)
    if layer < 0 or not step.act.tied:
        return _saved(live)
    return (*_saved(live - step.act.tied), *_tied(step))


def embedding_gradient(step: Step, held: Terms, numel: int) -> Sketch:
    """A tied embedding's two gradients and their sum, which autograd makes in new memory."""
    size = step.width.model * numel
    terms = (
        *held,
        *_saved(step.act.bottom),
        ("embedding gradient", max(2 * size if step.act.tied else size, step.act.before_backward)),
        *_tied(step),
    )
    return Sketch("backward", "gradient of the embedding", terms)


def _saved(size: int) -> Terms:
    return (("saved activations", size),)


def _tied(step: Step) -> Terms:
    return (("tied embedding gradient", step.act.tied),) if step.act.tied else ()
