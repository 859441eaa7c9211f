"""Activations of one micro-batch: what each part of the model keeps, and how high it gets on the way."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from dsconf.memory.ends import TIED, record_embedding, record_head, shared_bytes
from dsconf.memory.layers import record_layer, windowed_layers
from dsconf.memory.recorder import Recorder, Shape
from dsconf.memory.tape import Heights, Played, Tape
from dsconf.memory.tiled_loss import added_up, tiled_head
from dsconf.model.spec import Model


class Activations(NamedTuple):
    """Bytes; a height counts from what was alive before the part began."""

    bottom: int
    """Kept by the embedding, and by all layers together: cos, sin, masks."""
    forward_only: int
    """Alive besides until the last layer is through: masks and the embedding's variables, if nobody keeps them."""
    layer: int
    """Kept by one layer from forward to backward: all it saved, or its input where it is checkpointed."""
    layers: int
    head: int
    """Kept by final norm, output projection and loss."""
    logits: int
    """Logits that the model's output holds until the loss is taken from it."""
    layer_forward: int
    head_forward: int
    layer_backward: Heights
    """One layer's backward, its own kept bytes included; under checkpointing its second forward as well."""
    head_backward: Heights
    layer_live: tuple[int, ...]
    """Alive in the layer at the hook of each of its parameters, in the order of the hooks."""
    head_live: tuple[int, ...]
    embedding_live: tuple[int, ...]
    tied: int
    """Gradient the output projection made for the tied embedding, held until the embedding's own arrives."""
    shards_gradient: int = 0
    """Gradient of the output projection that the shards of a tiled loss add up."""
    before_backward: int = 0
    """Backward of what runs before the layers, where it is more than an embedding (a traced module)."""

    @property
    def kept(self) -> int:
        """Everything between forward and backward, the loss's part left out."""
        return self.bottom + self.layers * self.layer


@lru_cache(maxsize=4096)
def activations(model: Model, shape: Shape, replay: str) -> Activations:
    """Activations of ``model``; ``replay``: checkpointing, empty, ``reentrant`` or ``nonreentrant``."""
    if model.family == "module":
        from dsconf.memory.traced import traced_activations

        return traced_activations(model, shape, replay)
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
    live = (g.live - gone + (0 if g.param in twice else tied) for g in embedding.grads)
    return Activations(
        bottom=shared + embedding.saved + layer.saved % model.layers,
        forward_only=variables + (0 if replay else forward_only),
        layer=layer.saved // model.layers,
        layers=model.layers,
        head=head.saved,
        logits=0 if shape.loss_shards else shape.tokens * model.vocab * shape.low,
        layer_forward=layer.forward,
        head_forward=head.forward_peak,
        layer_backward=layer.backward,
        head_backward=head.backward,
        layer_live=layer.live,
        head_live=_head_live(head, tied),
        embedding_live=tuple(max(0, one) for one in live),
        tied=tied,
        shards_gradient=added_up(head, shape),
        before_backward=max(0, max(embedding.backward.reduced, 2 * tied) - gone),
    )


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
    the last layer of its kind, over what as many layers of the mean keep."""

    saved: int
    """By all layers together."""
    saves_input: bool
    forward: int
    backward: Heights
    live: tuple[int, ...]


def _layer(model: Model, shape: Shape, replay: str) -> _Layer:
    windows, width = windowed_layers(model), shape.tokens * model.hidden * shape.width
    kinds = {windowed: _play(model, shape._replace(windowed=windowed), replay) for windowed in set(windows)}
    saved = {windowed: width if replay else one.saved for windowed, one in kinds.items()}
    total = sum(saved[windowed] for windowed in windows)
    found: list[_Layer] = []
    for windowed, one in kinds.items():
        last = max(i for i, other in enumerate(windows) if other == windowed)
        over = sum(saved[other] for other in windows[:last]) - (model.layers - 1) * (total // model.layers)
        inside = _replayed(one, width, replay) if replay else one.backward
        held = over + (width - one.saved_input if replay else 0) + (width if replay == "reentrant" else 0)
        found.append(
            _Layer(
                total,
                one.saved_input > 0,
                over + (one.dry_peak if replay else one.forward_peak),
                Heights(over + inside.reduced, over + inside.hoarded),
                tuple(held + g.live for g in one.grads),
            )
        )
    return found[0] if len(found) == 1 else _higher(*found)


def _higher(one: _Layer, other: _Layer) -> _Layer:
    backward = (max(pair) for pair in zip(one.backward, other.backward, strict=True))
    return _Layer(
        one.saved,
        one.saves_input and other.saves_input,
        max(one.forward, other.forward),
        Heights(*backward),
        tuple(map(max, one.live, other.live)),
    )


def _play(model: Model, shape: Shape, replay: str) -> Played:
    tape, x = _record_layer(model, shape)
    return tape.play([x], held=True, nested=replay == "reentrant")


@lru_cache(maxsize=4096)
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
    (head, _), _ = _record_ends(model, shape)
    return Recorded(layer.keeps(), head.keeps())


def _replayed(layer: Played, width: int, replay: str) -> Heights:
    """Second forward and backward of a checkpointed layer, beside its input and the incoming gradient.

    The re-entrant kind also holds the second output.
    """
    own = width - layer.saved_input
    again = width + (layer.forward_peak if replay == "reentrant" else layer.until_saved)
    if replay == "reentrant":
        found = Heights(layer.backward.reduced + own + width, layer.backward.hoarded + own + width)
    else:
        found = Heights(layer.replay.reduced + own, layer.replay.hoarded + own)
    return Heights(max(found.reduced, again), max(found.hoarded, again))
