"""Activations of one micro-batch: what each part of the model keeps, and how high it gets on the way."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

from dsconf.memory.autograd.backward import Height, highest
from dsconf.memory.autograd.batch_scaling import BatchScaling, batch_scaling
from dsconf.memory.autograd.figures import Activations, Shape
from dsconf.memory.autograd.tape import Peaks, Played, Tape
from dsconf.memory.layers.embedding_and_head import TIED, record_embedding, record_head, shared_bytes
from dsconf.memory.layers.families import record_layer
from dsconf.memory.layers.recorder import LayerRecorder
from dsconf.memory.layers.tiled_loss import added_up, tiled_head, tiled_keeps
from dsconf.model.attention import windowed_layers
from dsconf.model.spec import Model


@lru_cache(maxsize=4096)
def activations(model: Model, shape: Shape, replay: str) -> Activations:
    """Return the activations of ``model``; ``replay``: checkpointing, empty, ``reentrant`` or ``nonreentrant``."""
    if model.family == "module":
        from dsconf.memory.trace.module import traced_activations

        return traced_activations(model, shape, replay)
    if shape.batch > 1 and not shape.loss_shards:
        any_batch = Shape(0, *shape[1:])
        asked = _batches_asked_for(model, any_batch, replay)
        asked.add(shape.batch)
        # What any batch takes is told by two recordings; whoever asks for one batch alone pays for one.
        grown = _scaled_activations(model, any_batch, replay) if len(asked) > 1 else None
        if grown:
            return _activations_from_peaks(grown.growth.at(shape.batch), grown.parts)
    peaks, parts, _ = _peak_points(model, shape, replay)
    return _activations_from_peaks([highest(heights) for heights in peaks], parts)


class _Parts(NamedTuple):
    """What says which peaks are which."""

    layers: int
    names: tuple[str, ...]
    """Of those that come first; the peaks in the hooks of layers, head and embedding follow."""
    layer_hooks: int
    head_hooks: int


class _Points(NamedTuple):
    """The points of which the highest make ``Activations``, peak by peak."""

    peaks: list[list[Height]]
    parts: _Parts
    even: bool
    """Whether the layers' bytes divide by their number."""


class _Scaled(NamedTuple):
    growth: BatchScaling
    parts: _Parts


@lru_cache(maxsize=1024)
def _batches_asked_for(model: Model, shape: Shape, replay: str) -> set[int]:
    """Return the batches that ``activations`` has been asked for, which it adds to."""
    del model, shape, replay
    return set()


@lru_cache(maxsize=1024)
def _scaled_activations(model: Model, shape: Shape, replay: str) -> _Scaled | None:
    """Return the activations of any batch of several sequences; None where a mean over layers leaves a rest."""
    two, three = (_peak_points(model, shape._replace(batch=batch), replay) for batch in (2, 3))
    return _Scaled(batch_scaling(two.peaks, three.peaks), two.parts) if two.even and three.even else None


def _activations_from_peaks(peaks: list[int], parts: _Parts) -> Activations:
    """Return the figures that ``peaks`` are."""
    layers, names, layer_hooks, head_hooks = parts
    plain, hooks = dict(zip(names, peaks, strict=False)), peaks[len(names) :]
    return Activations(
        bottom=plain["bottom"],
        forward_only=plain["forward_only"],
        layer=plain["layer"],
        layers=layers,
        head=plain["head"],
        logits=plain["logits"],
        layer_forward=plain["layer_forward"],
        head_forward=plain["head_forward"],
        layer_backward=Peaks(plain["layer_grads_freed"], plain["layer_grads_kept"]),
        head_backward=Peaks(plain["head_grads_freed"], plain["head_grads_kept"]),
        layer_live=tuple(hooks[:layer_hooks]),
        head_live=tuple(hooks[layer_hooks : layer_hooks + head_hooks]),
        embedding_live=tuple(hooks[layer_hooks + head_hooks :]),
        tied=plain["tied"],
        shards_gradient=plain["shards_gradient"],
        before_backward=plain["before_backward"],
    )


@lru_cache(maxsize=16)
def _peak_points(model: Model, shape: Shape, replay: str) -> _Points:
    """Return all points of ``model``, peak by peak."""
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
    plain = {
        "bottom": [Height(shared + embedding.saved + layer.saved % model.layers)],
        "forward_only": [Height(variables + (0 if replay else forward_only))],
        "layer": [Height(layer.saved // model.layers)],
        "head": [Height(head.saved)],
        "logits": [Height(0 if shape.loss_shards else shape.tokens * model.vocab * shape.low)],
        "layer_forward": layer.forward,
        "head_forward": [Height(size) for size in head.forward],
        "layer_grads_freed": layer.grads_freed,
        "layer_grads_kept": layer.grads_kept,
        "head_grads_freed": head.heights(replayed=False, grads_kept=False),
        "head_grads_kept": head.heights(replayed=False, grads_kept=True),
        "tied": [Height(tied)],
        "shards_gradient": [Height(added_up(head, shape))],
        "before_backward": [
            Height(0),
            *_raised([*embedding.heights(replayed=False, grads_kept=False), Height(2 * tied)], -gone),
        ],
    }
    head_live = _head_live(head, tied)
    at_hooks = [
        *layer.live,
        *([Height(live)] for live in head_live),
        *([Height(0), Height(g.live - gone + (0 if g.param in twice else tied))] for g in embedding.grads),
    ]
    parts = _Parts(model.layers, tuple(plain), len(layer.live), len(head_live))
    return _Points([*plain.values(), *at_hooks], parts, layer.saved % model.layers == 0)


def _raised(heights: Iterable[Height], by: int) -> list[Height]:
    return [Height(size + by, column_sum) for size, column_sum in heights]


def _head_live(head: Played, tied: int) -> tuple[int, ...]:
    """Leave out the tied gradient, which a bias's hook of the same operation finds beside it."""
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
    grads_freed: list[Height]
    """Of backward; these two as in ``Peaks``."""
    grads_kept: list[Height]
    live: list[list[Height]]


def _layer(model: Model, shape: Shape, replay: str) -> _Layer:
    windows, width = windowed_layers(model), shape.tokens * model.hidden * shape.width
    nested = replay == "reentrant"
    kinds = {windowed: _play(model, shape._replace(windowed=windowed), nested) for windowed in set(windows)}
    saved = {windowed: width if replay else one.saved for windowed, one in kinds.items()}
    total = sum(saved[windowed] for windowed in windows)
    layers: list[_Layer] = []
    for windowed, played in kinds.items():
        last = max(i for i, other in enumerate(windows) if other == windowed)
        over = sum(saved[other] for other in windows[:last]) - (model.layers - 1) * (total // model.layers)
        forward = [Height(size) for size in (played.no_grad_forward if replay else played.forward)]
        held = over + (width - played.saved_input if replay else 0) + (width if replay == "reentrant" else 0)
        layers.append(
            _Layer(
                saved=total,
                saves_input=played.saved_input > 0,
                forward=_raised(forward, over),
                grads_freed=_raised(_inside(played, width, replay, grads_kept=False), over),
                grads_kept=_raised(_inside(played, width, replay, grads_kept=True), over),
                live=[[Height(held + g.live)] for g in played.grads],
            )
        )
    return layers[0] if len(layers) == 1 else _higher(*layers)


def _higher(layer: _Layer, other: _Layer) -> _Layer:
    return _Layer(
        saved=layer.saved,
        saves_input=layer.saves_input and other.saves_input,
        forward=layer.forward + other.forward,
        grads_freed=layer.grads_freed + other.grads_freed,
        grads_kept=layer.grads_kept + other.grads_kept,
        live=[points + others for points, others in zip(layer.live, other.live, strict=True)],
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
    """Record a layer and the tensor it is given."""
    r = LayerRecorder(model, shape, model.parameters.layer)
    record_layer(r, x := r.tape.tensor(shape.tokens * model.hidden * shape.width))
    return r.tape, x


def _record_ends(model: Model, shape: Shape) -> tuple[tuple[Tape, int], tuple[Tape, int]]:
    """Head and embedding, each with the tensor it is given."""
    ends = (*model.parameters.before, *model.parameters.after)
    head = LayerRecorder(model, shape, ends)
    record_head(head, y := head.tape.tensor(shape.tokens * model.hidden * shape.width))
    embedding = LayerRecorder(model, shape, ends)
    record_embedding(embedding, ids := embedding.tape.tensor(8 * shape.tokens, differentiable=False))
    return (head.tape, y), (embedding.tape, ids)


class Recorded(NamedTuple):
    """What each operation is the first to keep for backward, in bytes, in the order of forward."""

    layer: tuple[tuple[str, int], ...]
    head: tuple[tuple[str, int], ...]


def recorded(model: Model, shape: Shape) -> Recorded:
    """Return the operations of one layer, and of final norm, output projection and loss."""
    layer, _ = _record_layer(model, shape._replace(windowed=any(windowed_layers(model))))
    if shape.loss_shards:
        return Recorded(layer.keeps(), tiled_keeps(model, shape))
    (head, _), _ = _record_ends(model, shape)
    return Recorded(layer.keeps(), head.keeps())


def _inside(layer: Played, width: int, replay: str, *, grads_kept: bool) -> list[Height]:
    """Play one layer's backward; checkpointed, its second forward too, beside its input and the incoming gradient.

    The re-entrant kind also holds the second output.
    """
    if not replay:
        return layer.heights(replayed=False, grads_kept=grads_kept)
    own = width - layer.saved_input
    if replay == "reentrant":
        again, found = layer.forward, _raised(layer.heights(replayed=False, grads_kept=grads_kept), own + width)
    else:
        again, found = (
            layer.forward[: layer.until_saved],
            _raised(layer.heights(replayed=True, grads_kept=grads_kept), own),
        )
    return [*found, *(Height(width + size) for size in again)]
