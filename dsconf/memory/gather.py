"""Weights that ZeRO stage 3 holds gathered, module by module: fetch, prefetch, reuse, release.

Follows runtime/zero/partitioned_param_coordinator.py of DeepSpeed 0.19.8 in its steady state, from the second forward
on, when the trace of modules is complete. Sizes are elements; a launch of several parameters gathers into one flat
buffer that lives beside their copies until the last of them has been waited for (partition_parameters.py:757-805).
"""

from __future__ import annotations

from bisect import bisect_left
from functools import lru_cache
from typing import NamedTuple

from dsconf.memory.modules import Call, Modules, modules
from dsconf.model.spec import Model


class Gathered(NamedTuple):
    """Elements of gathered weights alive, flat launch buffers included."""

    loss: int
    """While the loss is computed, at the end of forward."""
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


class Limits(NamedTuple):
    """The stage-3 settings that decide what is gathered, in elements."""

    prefetch: int
    max_live: int
    reuse: int
    persistence: int
    model_persistence: int
    sequential: bool


@lru_cache(maxsize=512)
def gathered(model: Model, limits: Limits, replay: str, first: bool) -> Gathered:
    """What is gathered through one micro-batch of ``model``.

    Args:
        model: the model.
        limits: the stage-3 settings.
        replay: activation checkpointing: empty, ``reentrant`` or ``nonreentrant``.
        first: the trace is still being recorded: no prefetch, no reuse.
    """
    return _Coordinator(modules(model), limits, replay, first).run()


class _Coordinator:
    def __init__(self, tree: Modules, limits: Limits, replay: str, first: bool) -> None:
        self.tree, self.limits, self.first = tree, limits, first
        self.persistent = _persistent(tree.sizes, limits)
        self.trace = _trace(tree, replay)
        self.entries = [call for call in self.trace if call.enter]
        """What DeepSpeed records: the modules in the order they are entered."""
        self.queue = [(p, step) for step, call in enumerate(self.entries) for p in sorted(call.params)]
        total = 0
        self.traversed = [0]
        for call in self.entries:
            total += sum(tree.sizes[p] for p in call.params)
            self.traversed.append(total)
        self.uses: dict[int, list[int]] = {}
        for param, step in self.queue:
            self.uses.setdefault(param, []).append(step)
        self.head = 0
        self.step = 0
        self.available: set[int] = set(self.persistent)
        self.inflight: dict[int, int] = {}
        self.launches: list[list[int]] = []
        self.active: dict[int, set[tuple[int, ...]]] = {}
        self.skipped: dict[int, int] = {}
        self.num_available = 0
        self.live = sum(tree.sizes[p] for p in self.persistent)

    def run(self) -> Gathered:
        layers = len(self.tree.layers)
        forward, backward = [0] * (layers + 2), [0] * (layers + 2)
        half = next(
            i
            for i in range(len(self.trace))
            if self.trace[i].layer == layers and not self.trace[i].enter and _depth(self.trace[: i + 1]) == 0
        )
        loss = 0
        for i, call in enumerate(self.trace):
            if call.enter:
                peak = self._enter(call, forward=i <= half)
            else:
                peak = self.live
                self._leave(call)
            where = forward if i <= half else backward
            where[call.layer] = max(where[call.layer], peak, self.live)
            if i == half:
                loss = self.live
        persistent = sum(self.tree.sizes[p] for p in self.persistent)
        return Gathered(
            loss, tuple(forward[:layers]), tuple(backward[:layers]), backward[layers], self.live, persistent
        )

    def _enter(self, call: Call, forward: bool) -> int:
        sizes = self.tree.sizes
        self._launch([p for p in call.params if p not in self.available and p not in self.inflight])
        for p in call.params:
            self.active.setdefault(p, set()).add(call.params)
        for p in call.params:
            self._wait(p)
        peak = self.live
        if not self.first:
            wanted = {p for p in call.params if self.skipped.get(p, -1) < self.step}
            popped: set[int] = set()
            while len(popped) < len(wanted) and self.head < len(self.queue):
                p, used = self.queue[self.head]
                self.head += 1
                self.skipped[p] = used
                popped.add(p)
            self._prefetch()
        self.step += 1
        del sizes, forward
        return max(peak, self.live)

    def _prefetch(self) -> None:
        room = min(self.limits.max_live - self.num_available, self.limits.prefetch)
        chosen: list[int] = []
        numel = 0
        if self.limits.prefetch <= 0:
            return
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
        sizes = self.tree.sizes
        total = sum(sizes[p] for p in params)
        self.num_available += total
        self.live += total
        flat = len(params) > 1 and not self.limits.sequential
        # [parameters not yet waited for, elements of the flat buffer, whether copies were made]
        self.launches.append([len(params), total if flat else 0, 0])
        for p in params:
            self.inflight[p] = len(self.launches) - 1

    def _wait(self, p: int) -> None:
        if p not in self.inflight:
            return
        launch = self.launches[self.inflight.pop(p)]
        self.available.add(p)
        if launch[1] and not launch[2]:
            launch[2] = 1
            self.live += launch[1]
        launch[0] -= 1
        if not launch[0] and launch[1]:
            self.live -= launch[1]

    def _leave(self, call: Call) -> None:
        for p in call.params:
            self.active[p].discard(call.params)
            if self.active[p] or (p in self.persistent and not self.first) or p not in self.available:
                continue
            if not self.first and (self.skipped.get(p, -1) > self.step or self._reused(p)):
                continue
            self.available.discard(p)
            self.live -= self.tree.sizes[p]
            self.num_available -= self.tree.sizes[p]

    def _reused(self, p: int) -> bool:
        """Whether the next use lies within ``max_reuse_distance`` traversed elements (coordinator.py:654-664)."""
        uses = self.uses[p]
        i = bisect_left(uses, self.step)
        return i < len(uses) and self.traversed[uses[i]] - self.traversed[self.step] < self.limits.reuse


def _persistent(sizes: tuple[int, ...], limits: Limits) -> frozenset[int]:
    """Those of at most ``param_persistence_threshold`` elements, up to the model's limit (parameter_offload.py:317)."""
    kept, total = [], 0
    for i, size in enumerate(sizes):
        if size + total > limits.model_persistence or size > limits.persistence:
            continue
        kept.append(i)
        total += size
    return frozenset(kept)


def _depth(calls: tuple[Call, ...] | list[Call]) -> int:
    return sum(1 if call.enter else -1 for call in calls)


def _reverse(calls: tuple[Call, ...]) -> list[Call]:
    """The same modules on the way back: entered where they were left."""
    return [call._replace(enter=not call.enter) for call in reversed(calls)]


def _trace(tree: Modules, replay: str) -> list[Call]:
    """Forward and backward of one micro-batch; checkpointing runs each layer's forward again.

    The re-entrant kind does so before anything of the layer's backward; the other one when the first saved tensor is
    asked for, which is inside the layer's last module.
    """
    trace = list(tree.before)
    for layer in tree.layers:
        trace += layer
    trace += tree.after
    trace += _reverse(tree.after)
    for layer in reversed(tree.layers):
        back = _reverse(layer)
        inside = next(i for i, call in enumerate(back) if not call.enter) if replay == "nonreentrant" else 0
        trace += back[:inside]
        if replay:
            trace += _replayed(layer)
        trace += back[inside:]
    return trace + _reverse(tree.before)


def _replayed(layer: tuple[Call, ...]) -> tuple[Call, ...]:
    """Recomputation stops once the last saved tensor is there: the modules still open are not left."""
    last = max(i for i, call in enumerate(layer) if call.enter and call.params)
    return layer[: last + 1]
