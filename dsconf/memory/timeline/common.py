"""What moments are made of, and those that every wrapper has: forward, the layers' backward, loss and embedding."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from dsconf.cluster.spec import Cluster
from dsconf.config.settings import Settings
from dsconf.job import Job
from dsconf.memory.autograd.figures import Activations, Shape
from dsconf.memory.layers.activations import activations
from dsconf.memory.layers.tiled_loss import automatic_shards
from dsconf.memory.zero.gradient_order import Hooks, hooks
from dsconf.memory.zero.wrapper import Widths, widths, wrapper
from dsconf.model.spec import Model
from dsconf.workload import Workload

Tops = tuple[tuple[int, int], ...]


class Kind(NamedTuple):
    """A moment without its sizes: the names of what can be alive then, beside what stays."""

    phase: str
    """``forward``, ``backward`` or ``step``."""
    name: str
    terms: tuple[str, ...]
    """In the order of the sizes; a name that comes twice is one term."""


Bytes = tuple[int, ...]
Alive = tuple[Kind, Bytes]
"""A moment, and bytes for each of its terms. 0 is what a term has that is not there; sizes are added up far more often
than they are named, so names wait until a moment has won."""


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
    """Optimizer wrapper (memory/timeline/resident.py)."""
    width: Widths
    known: Hooks
    world_size: int
    """Ranks of the ZeRO group."""


class Step(NamedTuple):
    """What the moments are computed from, whatever the rank; the middle fields are those of the frame."""

    frame: Frame
    model: Model
    settings: Settings
    wrapper: str
    width: Widths
    known: Hooks
    world_size: int
    shape: Shape
    act: Activations
    accumulating: bool
    """The last of several micro-batches: earlier ones have left gradients."""
    replay: str
    """Kind of activation checkpointing."""


def replay(job: Job) -> str:
    """Kind of activation checkpointing: empty, ``reentrant`` or ``nonreentrant``."""
    if not job.workload.checkpointing:
        return ""
    return "reentrant" if job.workload.reentrant else "nonreentrant"


def shape(job: Job) -> Shape:
    """Sizes of one micro-batch."""
    return _shape(job, widths(job.settings).model)


def _shape(job: Job, width: int) -> Shape:
    settings, workload = job.settings, job.workload
    half, autocast = settings.precision == "fp16", settings.precision == "autocast"
    ranks, shards = settings.sequence_parallel, 0
    seq = workload.seq_len // ranks
    if workload.loss_shards is not None:
        shards = workload.loss_shards or automatic_shards(workload.micro_batch * seq, job.model.vocab)
    return Shape(workload.micro_batch, seq, width, half, workload.attention, autocast, True, ranks, shards)


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
    return Frame(job, model, settings, wrapper(settings), widths(settings), hooks(model), cluster.world_size)


def prepare(job: Job) -> Step:
    """Everything the moments of all ranks share."""
    model, workload = job.model, job.workload
    words = (workload.quantize, workload.zero_init, workload.load_dtype)
    frame = _frame(model, job.cluster, job.settings.without_batch, *words)
    sizes, kind = _shape(job, frame.width.model), replay(job)
    return Step(
        frame,
        model,
        frame.settings,
        frame.wrapper,
        frame.width,
        frame.known,
        frame.world_size,
        sizes,
        activations(model, sizes, kind),
        workload.accumulation > 1,
        kind,
    )


class Common(NamedTuple):
    """The moments that every wrapper has, with the names of what it holds meanwhile in front."""

    held: tuple[str, ...]
    inside: Kind
    loss: Kind
    shard: Kind
    loss_gradient: Kind
    embedding: Kind


def common(*held: str) -> Common:
    """The moments of a wrapper that holds ``held``."""
    saved = (*held, "saved activations")
    return Common(
        held,
        Kind("forward", "inside a layer", (*held, "gathered weights", "saved activations", "layer in progress")),
        Kind("forward", "loss", (*held, "gathered weights", "saved activations", "logits and loss")),
        Kind("forward", "a shard of the loss", (*saved, "logits and loss", "newest gradient")),
        Kind("backward", "gradient of the loss", (*saved, "logits and loss", "newest gradient")),
        Kind("backward", "gradient of the embedding", (*saved, "embedding gradient", "tied embedding gradient")),
    )


@lru_cache(maxsize=1024)
def _layer_kind(held: tuple[str, ...], layer: int, last: bool) -> Kind:
    name = "in the last layer" if last else f"in layer {layer}"
    return Kind("backward", name, (*held, "saved activations", "layer in progress", "tied embedding gradient"))


def forward(step: Step, kinds: Common, held: Bytes, gathered: Tops = (), at_loss: int = 0) -> list[Alive]:
    """The highest points of forward: in the last layer, and in the loss.

    ``held`` lives through forward; ``gathered`` are (layer, bytes of gathered weights) of the layers
    that can be the highest, ``at_loss`` those in the loss.
    """
    act = step.act
    best, weights = act.layers - 1, 0
    if gathered:
        best, weights = max(gathered, key=lambda top: top[0] * act.layer + top[1])
    kept = act.bottom + act.forward_only + best * act.layer
    return [
        (kinds.inside, (*held, weights, kept, act.layer_forward)),
        (kinds.loss, (*held, at_loss, act.kept, act.head_forward)),
    ]


def tiled_loss(step: Step, kinds: Common, held: Bytes) -> list[Alive]:
    """A later shard of a tiled loss, inside forward; ``held`` is alive once the projection's first gradient came.

    Stages 0 and 1 have that gradient among those that earlier micro-batches left.
    """
    act = step.act
    if not act.shards_gradient:
        return []
    added = act.shards_gradient if step.settings.stage > 1 else _left_by_the_loss(step)
    return [(kinds.shard, (*held, act.kept, act.head_forward, added))]


def _left_by_the_loss(step: Step) -> int:
    """Gradient of the output projection that a tiled loss is the first to leave, at stages 0 and 1."""
    return 0 if step.accumulating or step.settings.stage > 1 else step.act.shards_gradient


def loss_gradient(step: Step, kinds: Common, held: Bytes) -> Alive:
    """Gradient of the loss: log-softmax, its gradient and that of the logits are alive together."""
    act = step.act
    return kinds.loss_gradient, (*held, act.kept, act.head_backward.reduced, _left_by_the_loss(step))


def in_layer(step: Step, kinds: Common, layer: int, held: Bytes, *, hoarded: bool = False) -> Alive:
    """The highest point of one layer's backward, the layers below it still kept."""
    act = step.act
    inside = act.layer_backward.hoarded if hoarded else act.layer_backward.reduced
    kind = _layer_kind(kinds.held, layer, layer == act.layers - 1)
    return kind, (*held, act.bottom + layer * act.layer, inside, act.tied)


def embedding_gradient(step: Step, kinds: Common, held: Bytes) -> Alive:
    """A tied embedding's two gradients and their sum, which autograd makes in new memory."""
    act, size = step.act, step.width.model * step.known.embedding
    made = max(2 * size if act.tied else size, act.before_backward)
    return kinds.embedding, (*held, act.bottom, made, act.tied)


Live = tuple[tuple[int, ...], ...]


class Place(NamedTuple):
    """The hook of one parameter: what is alive then is what ``level`` layers keep, and ``live[part][event]``."""

    part: int
    """0 for the layers, 1 for the head, 2 for the embedding and the end of backward."""
    level: int
    event: int


def place(layer: int, event: int, layers: int) -> Place:
    """Where the hook ``event`` of ``layer`` is; both as ``Flush`` and ``Reduction`` have them."""
    if layer < 0:
        return Place(2, 0, event)
    return Place(int(layer == layers), layer, event)


def live_at_hooks(act: Activations) -> Live:
    """Bytes alive in each hook of each part, what the layers below keep left out; the end of backward comes last.

    In layers and head the tied embedding's first gradient is among them; ``embedding_live`` has it already.
    """
    inside, head, tied = act.layer_live, act.head_live, act.tied
    if tied:
        inside, head = tuple([live + tied for live in inside]), tuple([live + tied for live in head])
    return inside, head, (*act.embedding_live, 0)


def at_hook(act: Activations, where: Place, live: Live) -> Bytes:
    """Saved activations and tied gradient in one hook; ``live`` as ``live_at_hooks`` has it."""
    part, level, event = where
    tied = act.tied if part < 2 else 0
    return act.bottom + level * act.layer + live[part][event] - tied, tied
