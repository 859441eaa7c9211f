"""Activations of one micro-batch: what each part of the model keeps, and how high it gets on the way."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

from dsconf.memory.autograd.backward import Height, highest
from dsconf.memory.autograd.batch_scaling import Growth, growth
from dsconf.memory.autograd.figures import Activations, Shape
from dsconf.memory.autograd.tape import Heights, Played, Tape
from dsconf.memory.layers.embedding_and_head import TIED, record_embedding, record_head, shared_bytes
from dsconf.memory.layers.families import record_layer
from dsconf.memory.layers.recorder import Recorder
from dsconf.memory.layers.tiled_loss import added_up, tiled_head, tiled_keeps
from dsconf.model.attention import windowed_layers
from dsconf.model.spec import Model


@lru_cache(maxsize=4096)
def activations(model: Model, shape: Shape, replay: str) -> Activations:
    """Activations of ``model``; ``replay``: checkpointing, empty, ``reentrant`` or ``nonreentrant``."""
    if model.family == "module":
        from dsconf.memory.trace.module import traced_activations

        return traced_activations(model, shape, replay)
    if shape.batch > 1 and not shape.loss_shards:
        any_batch = Shape(0, *shape[1:])
        asked = _asked(model, any_batch, replay)
        asked.add(shape.batch)
        # What any batch takes is told by two recordings; whoever asks for one batch alone pays for one.
        grown = _grown(model, any_batch, replay) if len(asked) > 1 else None
        if grown:
            return _assembled(grown.growth.at(shape.batch), grown.parts)
    peaks, parts, _ = _course(model, shape, replay)
    return _assembled([highest(heights) for heights in peaks], parts)


class _Parts(NamedTuple):
    """What says which peaks are which."""

    layers: int
    layer_hooks: int
    head_hooks: int


class _Course(NamedTuple):
    """The points of which the highest make ``Activations``, peak by peak."""

    peaks: list[list[Height]]
    parts: _Parts
    even: bool
    """Whether the layers' bytes divide by their number."""


class _Grown(NamedTuple):
    growth: Growth
    parts: _Parts


@lru_cache(maxsize=1024)
def _asked(model: Model, shape: Shape, replay: str) -> set[int]:
    """Return the batches that ``activations`` has been asked for, which it adds to."""
    del model, shape, replay
    return set()


@lru_cache(maxsize=1024)
def _grown(model: Model, shape: Shape, replay: str) -> _Grown | None:
    """Activations of any batch of several sequences; None where a mean over layers leaves a rest."""
    two, three = (_course(model, shape._replace(batch=batch), replay) for batch in (2, 3))
    return _Grown(growth(two.peaks, three.peaks), two.parts) if two.even and three.even else None


def _assembled(found: list[int], parts: _Parts) -> Activations:
    bottom, forward_only, layer, head, logits, layer_forward, head_forward = found[:7]
    reduced, hoarded, head_reduced, head_hoarded, tied, shards_gradient, before_backward = found[7:14]
    layers, layer_hooks, head_hooks = parts
    first_of_head, first_of_embedding = 14 + layer_hooks, 14 + layer_hooks + head_hooks
    return Activations(
        bottom,
        forward_only,
        layer,
        layers,
        head,
        logits,
        layer_forward,
        head_forward,
        Heights(reduced, hoarded),
        Heights(head_reduced, head_hoarded),
        tuple(found[14:first_of_head]),
        tuple(found[first_of_head:first_of_embedding]),
        tuple(found[first_of_embedding:]),
        tied,
        shards_gradient,
        before_backward,
    )


@lru_cache(maxsize=16)
def _course(model: Model, shape: Shape, replay: str) -> _Course:
    """In the order that ``_assembled`` reads."""
    layer, (head, embedding) = _layer(model, shape, replay), _ends(model, shape)
    kept, forward_only = shared_bytes(model, shape)
    width = shape.tokens * model.hidden * shape.width
    variables = embedding.held + (width if embedding.output_held and not (replay or layer.saves_input) else 0)
    twice = {g.param.removeprefix(TIED): g.num_bytes for g in head.grads if g.param.startswith(TIED)}
    tied = sum(twice.values())
    shared = kept + (forward_only if replay else 0)
    # What layers share goes with the first one's backward; the tied gradient stays until the embedding's own arrives.
    # A re-entrant checkpoint's node lives as long as the loss, and with it what its function was given by name.
    named = replay == "reentrant" and model.family != "gpt2"
    gone = embedding.saved + (0 if named else shared)
    sizes = (
        shared + embedding.saved + layer.saved % model.layers,
        variables + (0 if replay else forward_only),
        layer.saved // model.layers,
        head.saved,
        0 if shape.loss_shards else shape.tokens * model.vocab * shape.low,
    )
    of_embedding = embedding.heights(replayed=False, hoarded=False)
    head_live = _head_live(head, tied)
    peaks = [
        *([Height(size)] for size in sizes),
        layer.forward,
        [Height(size) for size in head.forward],
        *layer.backward,
        *(head.heights(replayed=False, hoarded=hoarded) for hoarded in (False, True)),
        [Height(tied)],
        [Height(added_up(head, shape))],
        [Height(0), *_raised([*of_embedding, Height(2 * tied)], -gone)],
        *layer.live,
        *([Height(live)] for live in head_live),
        *([Height(0), Height(g.live - gone + (0 if g.param in twice else tied))] for g in embedding.grads),
    ]
    return _Course(peaks, _Parts(model.layers, len(layer.live), len(head_live)), layer.saved % model.layers == 0)


def _raised(heights: Iterable[Height], by: int) -> list[Height]:
    return [Height(size + by, column_sum) for size, column_sum in heights]


def _head_live(head: Played, tied: int) -> tuple[int, ...]:
    """The tied gradient left out, which a bias's hook of the same operation finds beside it."""
    found: list[int] = []
    beside = tied
    for g in head.grads:
        if g.param.startswith(TIED):
            beside = 0
        else:
            found.append(g.live - beside)
    return tuple(found)


class _Layer(NamedTuple):
    """The layers of a model. Of two kinds, with a sliding window and without, each figure is the higher one: that of
    the last layer of its kind, over what as many layers of the mean keep. A figure is all points that can be it."""

    saved: int
    """By all layers together."""
    saves_input: bool
    forward: list[Height]
    backward: tuple[list[Height], list[Height]]
    """As ``Heights``."""
    live: list[list[Height]]


def _layer(model: Model, shape: Shape, replay: str) -> _Layer:
    windows, width = windowed_layers(model), shape.tokens * model.hidden * shape.width
    nested = replay == "reentrant"
    kinds = {windowed: _play(model, shape._replace(windowed=windowed), nested) for windowed in set(windows)}
    saved = {windowed: width if replay else one.saved for windowed, one in kinds.items()}
    total = sum(saved[windowed] for windowed in windows)
    found: list[_Layer] = []
    for windowed, one in kinds.items():
        last = max(i for i, other in enumerate(windows) if other == windowed)
        over = sum(saved[other] for other in windows[:last]) - (model.layers - 1) * (total // model.layers)
        forward = [Height(size) for size in (one.dry if replay else one.forward)]
        reduced, hoarded = (_inside(one, width, replay, hoarded) for hoarded in (False, True))
        held = over + (width - one.saved_input if replay else 0) + (width if replay == "reentrant" else 0)
        found.append(
            _Layer(
                total,
                one.saved_input > 0,
                _raised(forward, over),
                (_raised(reduced, over), _raised(hoarded, over)),
                [[Height(held + g.live)] for g in one.grads],
            )
        )
    return found[0] if len(found) == 1 else _higher(*found)


def _higher(one: _Layer, other: _Layer) -> _Layer:
    return _Layer(
        one.saved,
        one.saves_input and other.saves_input,
        one.forward + other.forward,
        (one.backward[0] + other.backward[0], one.backward[1] + other.backward[1]),
        [mine + its for mine, its in zip(one.live, other.live, strict=True)],
    )


@lru_cache(maxsize=16)
def _play(model: Model, shape: Shape, nested: bool) -> Played:
    """Play a layer, for activation checkpointing and without; ``nested`` as ``Tape.play`` has it."""
    tape, x = _record_layer(model, shape)
    return tape.play([x], held=True, nested=nested)


@lru_cache(maxsize=16)
def _ends(model: Model, shape: Shape) -> tuple[Played, Played]:
    (head, y), (embedding, ids) = _record_ends(model, shape)
    return tiled_head(model, shape) if shape.loss_shards else head.play([y]), embedding.play([ids])


def _record_layer(model: Model, shape: Shape) -> tuple[Tape, int]:
    """A layer and the tensor it is given."""
    r = Recorder(model, shape, model.parameters.layer)
    record_layer(r, x := r.tape.tensor(shape.tokens * model.hidden * shape.width))
    return r.tape, x


def _record_ends(model: Model, shape: Shape) -> tuple[tuple[Tape, int], tuple[Tape, int]]:
    """Head and embedding, each with the tensor it is given."""
    ends = (*model.parameters.before, *model.parameters.after)
    head = Recorder(model, shape, ends)
    record_head(head, y := head.tape.tensor(shape.tokens * model.hidden * shape.width))
    embedding = Recorder(model, shape, ends)
    record_embedding(embedding, ids := embedding.tape.tensor(8 * shape.tokens, differentiable=False))
    return (head.tape, y), (embedding.tape, ids)


class Recorded(NamedTuple):
    """What each operation is the first to keep for backward, in bytes, in the order of forward."""

    layer: tuple[tuple[str, int], ...]
    head: tuple[tuple[str, int], ...]


def recorded(model: Model, shape: Shape) -> Recorded:
    """The operations of one layer, and of final norm, output projection and loss."""
    layer, _ = _record_layer(model, shape._replace(windowed=any(windowed_layers(model))))
    if shape.loss_shards:
        return Recorded(layer.keeps(), tiled_keeps(model, shape))
    (head, _), _ = _record_ends(model, shape)
    return Recorded(layer.keeps(), head.keeps())


def _inside(layer: Played, width: int, replay: str, hoarded: bool) -> list[Height]:
    """One layer's backward; checkpointed, its second forward too, beside its input and the incoming gradient.

    The re-entrant kind also holds the second output.
    """
    if not replay:
        return layer.heights(replayed=False, hoarded=hoarded)
    own = width - layer.saved_input
    if replay == "reentrant":
        again, found = layer.forward, _raised(layer.heights(replayed=False, hoarded=hoarded), own + width)
    else:
        again, found = layer.forward[: layer.until_saved], _raised(layer.heights(replayed=True, hoarded=hoarded), own)
    return [*found, *(Height(width + size) for size in again)]
