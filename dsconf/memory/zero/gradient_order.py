"""The order in which gradients arrive."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from dsconf.memory.autograd.figures import Shape
from dsconf.memory.layers.embedding_and_head import TIED, record_embedding, record_head
from dsconf.memory.layers.families import record_layer
from dsconf.memory.layers.recorder import LayerRecorder
from dsconf.model.spec import Model, Param


class Hook(NamedTuple):
    """One trained parameter, in the order backward makes the gradients."""

    numel: int
    offset: int
    """First element in the flat buffer of trained parameters (registration order)."""
    layer: int
    """Layer it belongs to; the number of layers for the head, -1 for the embedding."""
    event: int
    """Position among the hooks of that part."""
    name: str = ""
    """Of the parameter, its layer in front: ``3 mlp.up_proj.weight``."""


class Hooks(NamedTuple):
    """All trained parameters."""

    order: tuple[Hook, ...]
    """In the order of backward."""
    registered: tuple[tuple[int, int], ...]
    """(elements, offset) in registration order."""
    offsets: tuple[int, ...]
    """The offsets alone."""
    total: int
    largest: int
    """Elements of the largest trained parameter."""
    embedding: int
    """Elements of the token embedding, 0 where it is frozen."""
    layer: int
    """Elements of one layer's trained parameters."""
    head: int
    """Elements of the final norm and an untied output projection."""
    head_hooks: tuple[Hook, ...]
    """Hooks of those: the first ones of backward."""


@lru_cache(maxsize=128)
def hooks(model: Model) -> Hooks:
    """Return the order of ``model``'s gradients; it does not depend on the batch."""
    params = model.parameters
    offsets, registered, total = _offsets(model)
    order = _traced(model, offsets) if model.family == "module" else _recorded(model, offsets)
    return Hooks(
        order=tuple(order),
        registered=registered,
        offsets=tuple(offset for _, offset in registered),
        total=total,
        largest=max((numel for numel, _ in registered), default=0),
        embedding=max((h.numel for h in order if h.layer == -1), default=0),
        layer=sum(p.numel for p in params.layer if p.trainable),
        head=sum(h.numel for h in order if h.layer == params.layers),
        head_hooks=tuple(h for h in order if h.layer == params.layers),
    )


def _traced(model: Model, offsets: dict[str, tuple[int, int]]) -> list[Hook]:
    from dsconf.memory.trace.module import arrivals

    inside = range(model.layers)
    order: list[Hook] = []
    for place, part, event in arrivals(model):
        name = f"{place.part} {place.name}" if place.part in inside else place.name
        numel, offset = offsets[name]
        order.append(Hook(numel, offset, part, event, name))
    return order


def _recorded(model: Model, offsets: dict[str, tuple[int, int]]) -> list[Hook]:
    params = model.parameters
    ends = (*params.before, *params.after)
    shape = Shape(1, 16, 2, False, "sdpa")
    order: list[Hook] = []

    def add(names: list[str], layer: int, prefix: str) -> None:
        for event, name in enumerate(names):
            numel, offset = offsets[prefix + name]
            order.append(Hook(numel, offset, layer, event, prefix + name))

    head = LayerRecorder(model, shape, ends)
    record_head(head, x := head.tape.tensor(0))
    add([g.param for g in head.tape.play([x]).grads if not g.param.startswith(TIED)], params.layers, "")
    r = LayerRecorder(model, shape, params.layer)
    record_layer(r, x := r.tape.tensor(0))
    names = [g.param for g in r.tape.play([x]).grads]
    for layer in reversed(range(params.layers)):
        add(names, layer, f"{layer} ")
    embedding = LayerRecorder(model, shape, ends)
    record_embedding(embedding, x := embedding.tape.tensor(0, differentiable=False))
    add([g.param for g in embedding.tape.play([x]).grads], -1, "")
    return order


def _offsets(model: Model) -> tuple[dict[str, tuple[int, int]], tuple[tuple[int, int], ...], int]:
    params = model.parameters
    places: dict[str, tuple[int, int]] = {}
    offset = 0

    def add(prefix: str, block: tuple[Param, ...]) -> None:
        nonlocal offset
        for p in block:
            if p.trainable:
                places[prefix + p.name] = (p.numel, offset)
                offset += p.numel

    add("", params.before)
    for layer in range(params.layers):
        add(f"{layer} ", params.layer)
    add("", params.after)
    return places, tuple(places.values()), offset
