"""Activations of one micro-batch: what each part of the model keeps, and how high it gets on the way."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from dsconf.memory.ends import TIED, record_embedding, record_head, shared_bytes
from dsconf.memory.layers import record_layer
from dsconf.memory.recorder import Recorder, Shape
from dsconf.memory.tape import Heights, Played, Tape
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
    played = _play(model, shape, replay == "reentrant")
    layer, head, embedding = played.layer, played.head, played.embedding
    kept, forward_only = shared_bytes(model, shape)
    width = shape.tokens * model.hidden * shape.width
    saved, inside = (width, _replayed(layer, width, replay)) if replay else (layer.saved, layer.backward)
    own = width - layer.saved_input if replay else 0
    held = own + (width if replay == "reentrant" else 0)
    variables = embedding.held + (width if embedding.output_held and not (replay or layer.saved_input) else 0)
    twice = {g.param.removeprefix(TIED): g.num_bytes for g in head.grads if g.param.startswith(TIED)}
    tied = sum(twice.values())
    gone = kept + (forward_only if replay else 0)  # what layers share goes with the first one's backward
    return Activations(
        bottom=embedding.saved + kept + (forward_only if replay else 0),
        forward_only=variables + (0 if replay else forward_only),
        layer=saved,
        layers=model.layers,
        head=head.saved,
        logits=shape.tokens * model.vocab * shape.width,
        layer_forward=layer.dry_peak if replay else layer.forward_peak,
        head_forward=head.forward_peak,
        layer_backward=inside,
        head_backward=head.backward,
        layer_live=tuple(g.live + held for g in layer.grads),
        head_live=_head_live(head, tied),
        embedding_live=tuple(
            max(0, g.live + tied - gone) if g.param not in twice else max(0, g.live - gone) for g in embedding.grads
        ),
        tied=tied,
        before_backward=max(embedding.backward.reduced - gone, 2 * tied),
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


class _Parts(NamedTuple):
    layer: Played
    head: Played
    embedding: Played


@lru_cache(maxsize=4096)
def _play(model: Model, shape: Shape, reentrant: bool) -> _Parts:
    (layer, x), (head, y), (embedding, ids) = _record(model, shape)
    return _Parts(layer.play([x], held=True, nested=reentrant), head.play([y]), embedding.play([ids]))


def _record(model: Model, shape: Shape) -> tuple[tuple[Tape, int], ...]:
    """Layer, head and embedding, each with the tensor it is given."""
    ends = (*model.parameters.before, *model.parameters.after)
    width = shape.tokens * model.hidden * shape.width
    layer = Recorder(model, shape, model.parameters.layer)
    record_layer(layer, x := layer.tape.tensor(width))
    head = Recorder(model, shape, ends)
    record_head(head, y := head.tape.tensor(width))
    embedding = Recorder(model, shape, ends)
    record_embedding(embedding, ids := embedding.tape.tensor(8 * shape.tokens, differentiable=False))
    return (layer.tape, x), (head.tape, y), (embedding.tape, ids)


class Recorded(NamedTuple):
    """What each operation is the first to keep for backward, in bytes, in the order of forward."""

    layer: tuple[tuple[str, int], ...]
    head: tuple[tuple[str, int], ...]


def recorded(model: Model, shape: Shape) -> Recorded:
    """The operations of one layer, and of final norm, output projection and loss."""
    (layer, _), (head, _), _ = _record(model, shape)
    return Recorded(layer.keeps(), head.keeps())


def _replayed(layer: Played, width: int, replay: str) -> Heights:
    """Backward of a checkpointed layer: its input stays, and the re-entrant kind also holds the second output."""
    own = width - layer.saved_input
    if replay == "reentrant":
        return Heights(layer.backward.reduced + own + width, layer.backward.hoarded + own + width)
    return Heights(layer.replay.reduced + own, layer.replay.hoarded + own)
