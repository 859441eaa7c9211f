"""What moments are made of, and the activations of each: forward, loss, layers, hooks of gradients, embedding."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

from dsconf.cluster.spec import Cluster
from dsconf.config.settings import Settings
from dsconf.job import Job
from dsconf.memory.autograd.figures import Activations, Shape
from dsconf.memory.layers.activations import activations
from dsconf.memory.layers.tiled_loss import automatic_shards
from dsconf.memory.terms import Counting, Explaining
from dsconf.memory.zero.gradient_order import Hooks, hooks
from dsconf.memory.zero.wrapper import Widths, widths, wrapper
from dsconf.model.spec import Model
from dsconf.workload import Workload

COUNTING, EXPLAINING = Counting(), Explaining()


@dataclass(frozen=True, eq=False)
class Frame:
    """A job without batch, sequence length and checkpointing: what a search asks about again and again.

    Two are the same only when they are one object, which what depends on nothing else is kept under.
    """

    job: Job
    """With these words, and a workload that says nothing besides."""
    model: Model
    settings: Settings
    wrapper: str
    """Optimizer wrapper (memory/zero/wrapper.py)."""
    width: Widths
    hooks: Hooks
    world_size: int
    """Ranks of the ZeRO group."""
    bytes: Counting = COUNTING
    """How the functions of terms add up: for a number, or for one that is explained."""


class Step(NamedTuple):
    """What the moments are computed from, whatever the rank."""

    frame: Frame
    shape: Shape
    act: Activations
    accumulating: bool
    """The last of several micro-batches: earlier ones have left gradients."""
    checkpointing_kind: str
    """Empty, ``reentrant`` or ``nonreentrant``."""


class Label(NamedTuple):
    """Which moment it is."""

    phase: str
    """``forward``, ``backward`` or ``step``."""
    name: str


class Place(NamedTuple):
    """Where in the model a moment is, which says what activations are alive then: what ``level`` layers keep, and
    ``heights(step)[part][event]``."""

    part: int
    """One of the following."""
    level: int
    event: int = 0


LAYER_HOOK, HEAD_HOOK, EMBEDDING_HOOK, NOWHERE, FORWARD, LOSS, LOSS_SHARD, LOSS_GRADIENT, LAYER, EMBEDDING = range(10)
"""The hook of a gradient in a layer, in the head (final norm, output projection) or in the embedding, where ``event``
is its number; the optimizer step, without activations; inside a layer of forward, loss, a later shard of a tiled loss,
the loss's gradient; inside a layer of backward; the embedding's gradient."""
FREED, KEPT = 0, 1
"""``event`` of ``LAYER``: each gradient of a parameter is gone once its hook has run, or all of the layer's stay."""


class Rise(NamedTuple):
    """A moment, but for its activations: those come with a batch."""

    place: Place
    num_bytes: int
    """Of ``sizes`` together."""
    label: Label
    sizes: NamedTuple
    """Bytes by name, each field called as its term is (memory/terms.py: term_of). Activations are 0 here."""


def rise(label: Label, place: Place, sizes: NamedTuple) -> Rise:
    """Return the moment ``label`` with what is alive beside activations."""
    return Rise(place, sum(sizes), label, sizes)


def frame_of(job: Job) -> Frame:
    """Return the frame of ``job``."""
    workload = job.workload
    words = (workload.quantize, workload.zero_init, workload.load_dtype)
    return _frame(job.model, job.cluster, job.settings.without_batch, *words)


@lru_cache(maxsize=4096)
def _frame(
    model: Model,
    cluster: Cluster,
    settings: Settings,
    quantize: str | None,
    zero_init: bool | None,
    load_dtype: str | None,
) -> Frame:
    job = Job(model, cluster, settings, Workload(quantize=quantize, zero_init=zero_init, load_dtype=load_dtype))
    return Frame(
        job=job,
        model=model,
        settings=settings,
        wrapper=wrapper(settings),
        width=widths(settings),
        hooks=hooks(model),
        world_size=cluster.world_size,
    )


@lru_cache(maxsize=64)
def explaining(frame: Frame) -> Frame:
    """Return the same frame, whose terms know what they are made of."""
    return replace(frame, bytes=EXPLAINING)


def prepare(job: Job) -> Step:
    """Return everything that the moments of all ranks share."""
    frame, workload = frame_of(job), job.workload
    sizes, kind = _shape(job, frame.width.model), _checkpointing_kind(workload)
    return Step(frame, sizes, activations(job.model, sizes, kind), workload.accumulation > 1, kind)


def _checkpointing_kind(workload: Workload) -> str:
    if not workload.checkpointing:
        return ""
    return "reentrant" if workload.reentrant else "nonreentrant"


def shape(job: Job) -> Shape:
    """Return the sizes of one micro-batch."""
    return _shape(job, widths(job.settings).model)


def _shape(job: Job, width: int) -> Shape:
    settings, workload = job.settings, job.workload
    seq, shards = workload.seq_len // settings.sequence_parallel, 0
    if workload.loss_shards is not None:
        tokens = workload.micro_batch * seq
        # torch.chunk makes no more shards than there are tokens (ulysses_sp.py:1174).
        shards = min(workload.loss_shards or automatic_shards(tokens, job.model.vocab), tokens)
    return Shape(
        batch=workload.micro_batch,
        seq=seq,
        width=width,
        half=settings.precision == "fp16",
        attention=workload.attention,
        autocast=settings.precision == "autocast",
        ranks=settings.sequence_parallel,
        loss_shards=shards,
    )


def place_of_hook(layer: int, event: int, layers: int) -> Place:
    """Return where the hook ``event`` of ``layer`` is: ``layers`` for the head, -1 for the embedding."""
    if layer < 0:
        return Place(EMBEDDING_HOOK, 0, event)
    return Place(HEAD_HOOK if layer == layers else LAYER_HOOK, layer, event)


INSIDE_A_LAYER = Label("forward", "inside a layer")
AT_THE_LOSS = Label("forward", "loss")
AT_A_SHARD = Label("forward", "a shard of the loss")
AT_THE_GRADIENT_OF_THE_LOSS = Label("backward", "gradient of the loss")
AT_THE_EMBEDDING = Label("backward", "gradient of the embedding")


@lru_cache(maxsize=1024)
def in_layer(layer: int, layers: int) -> Label:
    """Return the label of the backward of ``layer``."""
    return Label("backward", "in the last layer" if layer == layers - 1 else f"in layer {layer}")


def height_of(step: Step, rises: Iterable[Rise]) -> int:
    """Return the bytes of the highest of ``rises``, activations included."""
    each, heights = step.act.layer, heights_of(step)
    return max([heights[part][event] + level * each + size for (part, level, event), size, _, _ in rises])


def heights_of(step: Step) -> tuple[tuple[int, ...], ...]:
    """Return the bytes of activations at each place, by part and event, without what ``level`` layers below it keep.

    They are the sums of ``activations_at``, which says what each number is; an estimate spends its time here.
    """
    act, (in_a_shard, in_backward) = step.act, _gradients_of_the_loss(step)
    bottom, at_loss, hook, layer = act.bottom, act.bottom + act.head_forward, act.bottom + act.tied, act.layer_backward
    return (
        tuple([live + hook for live in act.layer_live]),
        tuple([live + hook for live in act.head_live]),
        (*[live + bottom for live in act.embedding_live], bottom),
        (0,),
        (bottom + act.forward_only + act.layer_forward,),
        (at_loss,),
        (at_loss + in_a_shard,),
        (bottom + act.head_backward.grads_freed + in_backward,),
        (hook + layer.grads_freed, hook + layer.grads_kept),
        (hook + _gradients_of_the_embedding(step),),
    )


def alive_at(step: Step, rise: Rise) -> dict[str, int]:
    """Return all that is alive in a moment beside what stays, by the names of its fields."""
    sizes = rise.sizes._asdict()
    for name, size in activations_at(step, rise.place).items():
        sizes[name] = sizes[name] + size if sizes[name] else size
    return sizes


def activations_at(step: Step, place: Place) -> dict[str, int]:
    """Return the activations at ``place`` by the names of fields; together they are as high as ``heights_of`` says.

    What was recorded operation by operation is a plain number.
    """
    act, (part, level, event) = step.act, place
    if part == NOWHERE:
        return {}
    saved, tied = act.bottom + level * act.layer, {"tied_embedding_gradient": act.tied}
    in_a_shard, in_backward = _gradients_of_the_loss(step)
    if part == LAYER_HOOK:
        sizes = {"saved_activations": saved + act.layer_live[event], **tied}
    elif part == HEAD_HOOK:
        sizes = {"saved_activations": saved + act.head_live[event], **tied}
    elif part == EMBEDDING_HOOK:
        # The tied gradient is among them already.
        sizes = {"saved_activations": saved + (*act.embedding_live, 0)[event]}
    elif part == FORWARD:
        sizes = {"saved_activations": saved + act.forward_only, "layer_in_progress": act.layer_forward}
    elif part == LOSS:
        sizes = {"saved_activations": saved, "logits_and_loss": act.head_forward}
    elif part == LOSS_SHARD:
        sizes = {"saved_activations": saved, "logits_and_loss": act.head_forward, "newest_gradient": in_a_shard}
    elif part == LOSS_GRADIENT:
        # Log-softmax, its gradient and that of the logits are alive together.
        at_loss = act.head_backward.grads_freed
        sizes = {"saved_activations": saved, "logits_and_loss": at_loss, "newest_gradient": in_backward}
    elif part == LAYER:
        sizes = {"saved_activations": saved, "layer_in_progress": act.layer_backward[event], **tied}
    else:
        sizes = {"saved_activations": saved, "embedding_gradient": _gradients_of_the_embedding(step), **tied}
    return {name: _explained(step, name, size) for name, size in sizes.items()}


def _explained(step: Step, name: str, size: int) -> int:
    frame = step.frame
    if name == "embedding_gradient":
        copies, rest = (2, "its sum with the tied one") if step.act.tied else (1, "")
        why = "elements of the embedding's gradient" + (f", and of {rest} in new memory" if rest else "")
        elements = copies * frame.hooks.embedding
        beside = size - frame.width.model * elements
        return frame.bytes.total((frame.width.model, elements, why), (1, beside, "of what is alive beside it"))
    return frame.bytes.of_width(size, frame.width.model, _WHY[name]) if name in _WHY else size


_WHY = {
    "newest_gradient": "elements of the output projection, whose gradient the loss's shards add up",
    "tied_embedding_gradient": "elements of the embedding, whose gradient the output projection made",
}
"""Of the gradients that lie beside activations."""


def _gradients_of_the_embedding(step: Step) -> int:
    """Return the embedding's gradient, and of a tied one the sum of both, which autograd makes in new memory; of a
    traced module the backward of all that runs before the layers, where that is more."""
    size = step.frame.width.model * step.frame.hooks.embedding
    return max(2 * size if step.act.tied else size, step.act.before_backward)


def _gradients_of_the_loss(step: Step) -> tuple[int, int]:
    """Return the output projection's gradient that a tiled loss made: beside a later shard, and when backward begins.

    Stages 0 and 1 have it among those that earlier micro-batches left, and keep it.
    """
    made = step.act.shards_gradient
    if step.frame.settings.stage > 1:
        return made, 0
    return (0, 0) if step.accumulating else (made, made)
