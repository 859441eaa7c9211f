"""Weights that ZeRO stage 3 holds gathered, module by module: fetch, prefetch, reuse, release.

Follows runtime/zero/partitioned_param_coordinator.py of DeepSpeed 0.19.8 in its steady state, from the second forward
on, when the trace of modules is complete. Sizes are elements; a launch of several parameters gathers into one flat
buffer that lives beside their copies until the last of them has been waited for (partition_parameters.py:757-805).
"""

from __future__ import annotations

from bisect import bisect_left
from functools import lru_cache
from typing import NamedTuple

from dsconf.memory.autograd.figures import Call, ModuleOrder
from dsconf.memory.zero.module_order import modules
from dsconf.model.spec import Model


class Gathered(NamedTuple):
    """Elements of gathered weights alive, flat launch buffers included."""

    loss: int
    """While the loss is computed, at the end of forward; of a loss in shards the most."""
    forward: tuple[int, ...]
    """Most in each layer on the way forward."""
    backward: tuple[int, ...]
    """Most in each layer on the way back."""
    head: int
    """Most while the output projection and final norm run backward."""
    end: int
    """When backward ends, in the embedding."""
    persistent: int
    """Small parameters that stay gathered from step to step."""


class AtHooks(NamedTuple):
    """Elements of gathered weights alive, flat launch buffers included, when a parameter's gradient arrives."""

    layers: tuple[tuple[int, ...], ...]
    """By layer, then by parameter in registration order."""
    embedding: int
    """The token embedding's: its input needs no gradient, so nothing releases it before its own arrives
    (parameter_offload.py:63-90)."""


class PeakLayers(NamedTuple):
    """The layers that can be the highest, whatever one layer keeps: (layer, elements), none with fewer elements than a
    later one."""

    forward: tuple[tuple[int, int], ...]
    backward: tuple[tuple[int, int], ...]


class Limits(NamedTuple):
    """The stage-3 settings that decide what is gathered, in elements."""

    prefetch: int
    max_live: int
    reuse: int
    persistence: int
    model_persistence: int
    sequential: bool
    loss_shards: int = 0
    """Shards whose loss runs backward within forward; 0: the loss of all tokens does not."""


def gathered(model: Model, limits: Limits, replay: str, first: bool) -> Gathered:
    """Return what is gathered through one micro-batch of ``model``.

    Args:
        model: the model.
        limits: the stage-3 settings.
        replay: activation checkpointing: empty, ``reentrant`` or ``nonreentrant``.
        first: the trace is still being recorded: no prefetch, no reuse.
    """
    return _through_a_micro_batch(model, limits, replay, first)[0]


def gathered_at_hooks(model: Model, limits: Limits, replay: str) -> AtHooks:
    """Return what is gathered in the steady state when the gradient of each parameter arrives."""
    return _through_a_micro_batch(model, limits, replay, False)[1]


@lru_cache(maxsize=512)
def _through_a_micro_batch(model: Model, limits: Limits, replay: str, first: bool) -> tuple[Gathered, AtHooks]:
    count = _simulated(model, limits)
    most, at_hooks = _Coordinator(modules(model, count), limits, replay, first).run()
    each = len(model.parameters.layer)
    start = len(model.parameters.before)
    by_layer = tuple([tuple(at_hooks[start + each * layer : start + each * (layer + 1)]) for layer in range(count)])
    embedding = max(at_hooks[:start], default=most.end)
    if count == model.layers:
        return most, AtHooks(by_layer, embedding)
    missing = model.layers - count
    small = missing * sum(p.numel for p in model.parameters.layer if p.numel <= limits.persistence)
    half = count // 2
    layers = (*by_layer[:half], *(by_layer[half],) * missing, *by_layer[half:])
    layers = tuple([tuple([small + elements for elements in layer]) for layer in layers])
    return _extend_to_all_layers(most, model, limits), AtHooks(layers, small + embedding)


@lru_cache(maxsize=512)
def peak_layers(model: Model, limits: Limits, replay: str) -> PeakLayers:
    """Return, of what is gathered in each layer in the steady state, those worth a look."""
    steady = gathered(model, limits, replay, False)
    return PeakLayers(_peak_layers(steady.forward), _peak_layers(steady.backward))


def _peak_layers(values: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    found: list[tuple[int, int]] = []
    for layer in reversed(range(len(values))):
        if not found or values[layer] > found[-1][1]:
            found.append((layer, values[layer]))
    return tuple(found[::-1])


def _simulated(model: Model, limits: Limits) -> int:
    """Count the layers worth simulating: gathering reaches over so many, and between the two ends each is like the
    next."""
    layer = sum(p.numel for p in model.parameters.layer)
    reach = max(limits.max_live, limits.reuse, limits.prefetch) // layer + 3
    unlimited = limits.model_persistence >= model.num_params
    return min(model.layers, 2 * reach + 2) if unlimited else model.layers


def _extend_to_all_layers(fewer: Gathered, model: Model, limits: Limits) -> Gathered:
    """Return the figures of a model of ``fewer`` layers for all: the middle repeats, and small parameters stay
    gathered."""
    missing = model.layers - len(fewer.forward)
    small = missing * sum(p.numel for p in model.parameters.layer if p.numel <= limits.persistence)

    def extended(values: tuple[int, ...]) -> tuple[int, ...]:
        half = len(values) // 2
        return tuple(small + v for v in (*values[:half], *(values[half],) * missing, *values[half:]))

    return Gathered(
        loss=small + fewer.loss,
        forward=extended(fewer.forward),
        backward=extended(fewer.backward),
        head=small + fewer.head,
        end=small + fewer.end,
        persistent=small + fewer.persistent,
    )


class _FlatGather:
    """Parameters gathered together: how many are still to be waited for, and the elements of their flat buffer."""

    __slots__ = ("copied", "flat", "waiting")

    def __init__(self, waiting: int, flat: int) -> None:
        self.waiting, self.flat, self.copied = waiting, flat, False


class _Coordinator:
    def __init__(self, tree: ModuleOrder, limits: Limits, replay: str, first: bool) -> None:
        self.tree, self.limits, self.first = tree, limits, first
        self.persistent = _persistent(tree.sizes, limits)
        self.trace, self.loss, self.half = _trace(tree, replay, limits.loss_shards)
        self.kept: frozenset[int] = frozenset(self.trace[0].params)
        self.queue: list[tuple[int, int]] = []
        """(parameter, step) in the order of use: what DeepSpeed records and later prefetches from."""
        self.traversed = [0]
        self.uses: dict[int, list[int]] = {}
        self._record()
        self.head = self.step = self.num_available = 0
        self.available: set[int] = set(self.persistent)
        self.inflight: dict[int, _FlatGather] = {}
        self.active: dict[int, set[tuple[int, ...]]] = {}
        self.skipped: dict[int, int] = {}
        self.live = sum(tree.sizes[p] for p in self.persistent)

    def _record(self) -> None:
        sizes, total, step = self.tree.sizes, 0, 0
        for enter, _, params in self.trace:
            if not enter:
                continue
            for p in params:
                self.queue.append((p, step))
                self.uses.setdefault(p, []).append(step)
                total += sizes[p]
            self.traversed.append(total)
            step += 1

    def run(self) -> tuple[Gathered, list[int]]:
        """Play the trace; beside the figures return, by parameter, what is alive when its gradient arrives."""
        layers = len(self.tree.layers)
        forward, backward = [0] * (layers + 2), [0] * (layers + 2)
        loss = 0
        at_hooks = [0] * len(self.tree.sizes)
        where = forward
        for i, call in enumerate(self.trace):
            if i == self.half:
                loss, where = max(loss, self.live), backward
            peak = self.live
            if call.enter:
                peak = self._enter(call.params)
            elif call.params:
                for p in call.params:
                    at_hooks[p] = self.live  # a replayed forward leaves it too, but backward leaves it last
                self._leave(call.params)
            if peak > where[call.layer]:
                where[call.layer] = peak
            if self.loss <= i < self.half and peak > loss:
                loss = peak
        persistent = sum(self.tree.sizes[p] for p in self.persistent)
        most = Gathered(
            loss, tuple(forward[:layers]), tuple(backward[:layers]), backward[layers], self.live, persistent
        )
        return most, at_hooks

    def _enter(self, params: tuple[int, ...]) -> int:
        peak = 0
        if params:
            self._launch([p for p in params if p not in self.available and p not in self.inflight])
            for p in params:
                self.active.setdefault(p, set()).add(params)
                self._wait(p)
            peak = self.live
            if not self.first:
                self._pop(params)
        if not self.first and self.limits.prefetch > 0 and self.num_available < self.limits.max_live:
            self._prefetch()
        self.step += 1
        return max(peak, self.live)

    def _pop(self, params: tuple[int, ...]) -> None:
        """Take what this module needs off the queue, unless an earlier prefetch has."""
        wanted = {p for p in params if self.skipped.get(p, -1) < self.step}
        popped: set[int] = set()
        while len(popped) < len(wanted) and self.head < len(self.queue):
            p, used = self.queue[self.head]
            self.head += 1
            self.skipped[p] = used
            popped.add(p)

    def _prefetch(self) -> None:
        room = min(self.limits.max_live - self.num_available, self.limits.prefetch)
        chosen: list[int] = []
        numel = 0
        while self.head < len(self.queue) and numel < room:
            p, used = self.queue[self.head]
            self.head += 1
            self.skipped[p] = max(self.skipped.get(p, -1), used)
            if p not in self.available and p not in self.inflight and p not in chosen:
                chosen.append(p)
                numel += self.tree.sizes[p]
        self._launch(chosen)

    def _launch(self, params: list[int]) -> None:
        if not params:
            return
        total = sum(self.tree.sizes[p] for p in params)
        self.num_available += total
        self.live += total
        flat = total if len(params) > 1 and not self.limits.sequential else 0
        launch = _FlatGather(len(params), flat)
        for p in params:
            self.inflight[p] = launch

    def _wait(self, p: int) -> None:
        launch = self.inflight.pop(p, None)
        if launch is None:
            return
        self.available.add(p)
        if launch.flat and not launch.copied:
            launch.copied = True
            self.live += launch.flat
        launch.waiting -= 1
        if not launch.waiting:
            self.live -= launch.flat

    def _leave(self, params: tuple[int, ...]) -> None:
        for p in params:
            self.active[p].discard(params)
            if p in self.kept or self.active[p] or (p in self.persistent and not self.first) or p not in self.available:
                continue
            if not self.first and (self.skipped.get(p, -1) > self.step or self._reused(p)):
                continue
            self.available.discard(p)
            self.live -= self.tree.sizes[p]
            self.num_available -= self.tree.sizes[p]

    def _reused(self, p: int) -> bool:
        """Say whether the next use lies within ``max_reuse_distance`` traversed elements (coordinator.py:654-664)."""
        uses = self.uses[p]
        i = bisect_left(uses, self.step)
        return i < len(uses) and self.traversed[uses[i]] - self.traversed[self.step] < self.limits.reuse


def _persistent(sizes: tuple[int, ...], limits: Limits) -> frozenset[int]:
    """Pick those of at most ``param_persistence_threshold`` elements, up to the model's limit
    (parameter_offload.py:317)."""
    kept, total = [], 0
    for i, size in enumerate(sizes):
        if size + total > limits.model_persistence or size > limits.persistence:
            continue
        kept.append(i)
        total += size
    return frozenset(kept)


def _reverse(calls: tuple[Call, ...]) -> list[Call]:
    """Return the same modules on the way back: entered where they were left."""
    return [Call(not enter, layer, params) for enter, layer, params in reversed(calls)]


def _trace(tree: ModuleOrder, replay: str, loss_shards: int) -> tuple[list[Call], int, int]:
    """Forward and backward of one micro-batch, where the shards of the loss begin, and where backward does.

    Checkpointing runs each layer's forward again: the re-entrant kind before anything of the layer's backward, the
    other one when the first saved tensor is asked for.

    With ``loss_shards`` the output projection runs forward and backward for each within forward. Whoever names its
    weight there makes it a parameter of the outermost module too, which fetches it and, since no gradient of its inputs
    ends its backward, does not release it (parameter_offload.py:63-90, 466-485).
    """
    trace = list(tree.before)
    for layer in tree.layers:
        trace += layer
    if loss_shards:
        *norm, head, left, last = tree.after
        trace[0] = trace[0]._replace(params=head.params)
        trace += norm
        loss = len(trace)
        trace += [*([head, left, *_reverse((head, left))] * loss_shards), last]
        half = len(trace)
        trace += _reverse((*norm, last._replace(params=head.params)))
    else:
        trace += tree.after
        loss = half = len(trace)
        trace += _reverse(tree.after)
    for layer in reversed(tree.layers):
        back = _reverse(layer)
        if replay == "nonreentrant":
            inside, end = _saved_last(layer, back, tree.drops)
            trace += [*back[:inside], *layer[:end], *back[inside:]]
        else:
            trace += [*(layer if replay else ()), *back]
    return trace + _reverse(tree.before), loss, half


def _saved_last(layer: tuple[Call, ...], back: list[Call], drops: bool) -> tuple[int, int]:
    """Count the calls backward enters before it asks for a saved tensor, and those of the second forward until that
    is there.

    The last tensor to be saved is that of the last module with weights, or of the dropout after it (``drops``), which
    has a module of its own or belongs to the layer. Modules still open then are not left.
    """
    if drops:
        inside = next(i for i, call in enumerate(back) if not call.enter)
        if back[inside].params:
            return 1, len(layer) - 1
        return inside, len(layer) - inside
    inside = next(i for i, call in enumerate(back) if call.enter and call.params) + 1
    return inside, max(i for i, call in enumerate(layer) if not call.enter and call.params)
