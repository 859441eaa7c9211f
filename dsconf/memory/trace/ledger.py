"""Bytes alive through one forward and backward, part by part, as a trace reports them.

A module's parts are numbered -1 (what runs before its blocks), 0 … n-1 (the blocks) and n (what runs after them).
"""

from __future__ import annotations

from typing import NamedTuple

SCALAR = 512
"""Bytes of the smallest block that torch's allocator hands out; every request is rounded to a multiple of it."""


class Arrival(NamedTuple):
    """One parameter's gradient, complete."""

    param: str
    part: int
    live: int
    """Bytes alive then, the gradient itself left out."""


class Visit(NamedTuple):
    """Forward entering or leaving one module."""

    enter: bool
    part: int
    module: str


class Trace(NamedTuple):
    """What one forward and backward cost, in bytes; of the tuples by part the first stands for part -1."""

    order: tuple[int, ...]
    """The blocks as forward called them."""
    visits: tuple[Visit, ...]
    kept: tuple[int, ...]
    """By part: kept from forward to backward. What several blocks keep of the beginning counts for part -1."""
    forward_only: int
    """Made before the blocks, alive through all of them, kept by none."""
    outputs: int
    """Held by the module's output besides what is kept, until the loss has been taken from it."""
    forward_peak: tuple[int, ...]
    """By part: most bytes alive."""
    backward_peak: tuple[int, ...]
    """By part: most bytes alive if a parameter's gradient goes as soon as it is complete."""
    grads_kept_peak: tuple[int, ...]
    """By part: most bytes alive if the gradients of this part stay."""
    carried: int
    """Gradients that the last part made and part -1 needs: of a tied embedding."""
    arrivals: tuple[Arrival, ...]


class _Storage(NamedTuple):
    num_bytes: int
    in_backward: bool
    part: int
    """Where it was made."""


class Ledger:
    """Books every storage while the trace runs; ``storage`` is any key that is unique while the storage lives."""

    def __init__(self, blocks: int) -> None:
        self.blocks = blocks
        self.backward = False
        self._part = -1
        self._live = self._kept_grads = self._made = self._outputs = self._carried = 0
        self._numbers: dict[int, int] = {}
        """Storage → its number in the order they were made: keys come again, numbers do not."""
        self._alive: dict[int, _Storage] = {}
        self._savers: dict[int, list[int]] = {}
        self._passing: dict[int, int] = {}
        """Bytes of what was made before the blocks and is alive after them."""
        self._kept: dict[int, int] = {}
        self._stayed: set[int] = set()
        """What is alive when backward starts."""
        self._peaks = tuple([0] * (blocks + 2) for _ in range(3))
        self._order: list[int] = []
        self._visits: list[Visit] = []
        self._arrivals: list[Arrival] = []

    def knows(self, storage: int) -> bool:
        """Say whether that storage is booked."""
        return storage in self._numbers

    def made(self, storage: int, num_bytes: int) -> None:
        """Book a new storage."""
        size = -(-num_bytes // SCALAR) * SCALAR
        self._made += 1
        self._numbers[storage] = self._made
        self._alive[self._made] = _Storage(size, self.backward, self._part)
        self._live += size

    def gone(self, storage: int) -> None:
        """Book that a storage is released."""
        self._live -= self._alive.pop(self._numbers.pop(storage)).num_bytes

    def ran(self, scratch: int) -> None:
        """Book that an operation has run that took ``scratch`` bytes besides its outputs."""
        height, at = self._live + scratch, self._part + 1
        forward, reduced, grads_kept = self._peaks
        if not self.backward:
            forward[at] = max(forward[at], height)
            return
        reduced[at] = max(reduced[at], height)
        grads_kept[at] = max(grads_kept[at], height + self._kept_grads)

    def visit(self, enter: bool, module: str) -> None:
        """Forward enters or leaves a module."""
        if not self.backward:
            self._visits.append(Visit(enter, self._part, module))

    def start(self, block: int) -> None:
        """Forward reaches a block."""
        if not self.backward:
            self._part = block
            self._order.append(block)

    def finish(self, block: int) -> None:
        """Forward leaves a block; after the last one its own part begins."""
        if not self.backward and block == self.blocks - 1:
            self._part = self.blocks
            self._passing = {n: one.num_bytes for n, one in self._alive.items() if one.part == -1}

    def save(self, storage: int) -> None:
        """Autograd keeps a storage; one that is not booked is a parameter's or the batch's."""
        if storage in self._numbers:
            self._savers.setdefault(self._numbers[storage], []).append(self._part)

    def end_forward(self, outputs: set[int], loss: int) -> None:
        """Book that the loss is taken; ``outputs`` are the storages of the module's output, ``loss`` that of the
        loss."""
        held = {self._numbers[s] for s in outputs - {loss} if s in self._numbers}
        self._outputs = sum(self._alive[n].num_bytes for n in held if n not in self._savers)

    def start_backward(self, loss: int) -> None:
        """Book that the module's output is gone; what is still alive is kept, except the loss itself."""
        for number, one in self._alive.items():
            if number in self._savers or number != self._numbers.get(loss):
                self._stayed.add(number)
                part = self._keeper(number, one.part)
                self._kept[part] = self._kept.get(part, 0) + one.num_bytes
        self.backward, self._part = True, self.blocks

    def _keeper(self, number: int, maker: int) -> int:
        """Find the part that keeps a storage: the first that saves it, and the one that made it if autograd does
        not."""
        savers = self._savers.get(number, [maker])
        shared = maker == -1 and len({part for part in savers if 0 <= part < self.blocks}) > 1
        return -1 if shared else savers[0]

    def reach(self, part: int, gradient: int) -> None:
        """Backward has made the gradient (a storage) of ``part``'s output and goes on there."""
        if part >= self._part:
            return
        self._part, self._kept_grads = part, 0
        if part == -1:
            incoming = self._numbers.get(gradient)
            early = [one for n, one in self._alive.items() if n != incoming and one.in_backward]
            self._carried = sum(one.num_bytes for one in early if one.part == self.blocks and one.num_bytes > SCALAR)

    def arrived(self, param: str, gradient: int) -> None:
        """Book that a parameter's gradient (a storage) is complete and is about to be dropped."""
        size = self._alive[self._numbers[gradient]].num_bytes if gradient in self._numbers else 0
        self._arrivals.append(Arrival(param, self._part, self._live - size))
        self._kept_grads += size

    def trace(self) -> Trace:
        """Everything booked, once backward is over."""
        parts = range(-1, self.blocks + 1)
        forward, reduced, grads_kept = (tuple(peaks) for peaks in self._peaks)
        return Trace(
            order=tuple(self._order),
            visits=tuple(self._visits),
            kept=tuple(self._kept.get(part, 0) for part in parts),
            forward_only=sum(size for number, size in self._passing.items() if number not in self._stayed),
            outputs=self._outputs,
            forward_peak=forward,
            backward_peak=reduced,
            grads_kept_peak=grads_kept,
            carried=self._carried,
            arrivals=tuple(self._arrivals),
        )
