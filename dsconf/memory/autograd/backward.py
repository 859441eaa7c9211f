"""Backward as torch's engine runs it over recorded operations (torch/csrc/autograd/engine.cpp)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from dsconf.memory.autograd.column_sum import ColumnSum


class Grad(NamedTuple):
    """The gradient of one parameter at the moment its hook runs."""

    param: str
    num_bytes: int
    live: int
    """Bytes of activations and their gradients alive then, and of the gradients that the same node made for parameters
    whose hooks run later; the parameter's own is left out."""


class Op(NamedTuple):
    """One recorded operation; sizes are bytes."""

    name: str
    inputs: tuple[int, ...]
    """Tensors that get a gradient from this operation."""
    output: int
    saves: tuple[int, ...] = ()
    params: tuple[tuple[str, int], ...] = ()
    reads: tuple[int, ...] = ()
    workspace: int = 0
    backward_workspace: int = 0
    reduction: int = 0
    column_sum: ColumnSum | None = None
    """The sum at the end of ``reduction``, whose scratch comes on top of it."""
    in_place_grad: bool = False
    """The gradient goes through as it is: addition and views allocate none."""
    params_first: bool = False
    """Parameters' hooks run before the input's gradient is added to an earlier one: a view lies between."""
    others: tuple[int, ...] = ()
    """Further outputs, whose gradients it takes in together with that of ``output``."""


class Height(NamedTuple):
    """Bytes alive at one point, and a column sum whose scratch comes on top of them."""

    num_bytes: int
    column_sum: ColumnSum | None = None

    @property
    def total(self) -> int:
        """Bytes with the scratch."""
        return self.num_bytes + (self.column_sum.scratch if self.column_sum else 0)


def highest(heights: Iterable[Height]) -> int:
    """Return the bytes of the highest of ``heights``, 0 without any."""
    return max((height.total for height in heights), default=0)


class Node(NamedTuple):
    """A node of backward while it runs; bytes."""

    live: int
    """Saved tensors, incoming gradients and the new ones."""
    kept_grads: int
    """Gradients of parameters that earlier nodes made."""
    workspace: int = 0
    reduction: int = 0
    """Scratch of summing a parameter's gradient, after the node itself has run; ``column_sum`` comes on top."""
    used: int = 0
    """Saved tensors that are gone by then if each goes as soon as the node has used it."""
    column_sum: ColumnSum | None = None

    def heights(self, replayed: bool, grads_kept: bool) -> tuple[Height, Height]:
        """Return the bytes: in the node itself, and while its parameter's gradient is summed; as ``Played.heights``."""
        base = self.live + (self.kept_grads if grads_kept else 0)
        reduction = self.reduction - (self.used if replayed else 0)
        return Height(base + self.workspace), Height(base + reduction, self.column_sum)


class Backward:
    """torch's engine at work: saved tensors, gradient buffers and their holders."""

    def __init__(self, sizes: list[int], saved: dict[int, int], users: dict[int, int]) -> None:
        self.pending: dict[int, int] = {}
        """Tensor → number of the buffer that holds its gradient so far."""
        self.nodes: list[Node] = []
        self._kept_grads = 0
        self.grads: list[Grad] = []
        self._sizes = sizes
        self._saved = dict(saved)
        self._users = users
        self._holders: list[int] = []
        self._buffers: list[int] = []
        self._live = sum(saved.values())

    def receive(self, tensor: int) -> int:
        """Make a new gradient buffer for ``tensor``, whose only gradient it is so far."""
        self.pending[tensor] = self._new(tensor)
        return self.pending[tensor]

    def run(self, op: Op, saves: set[int]) -> None:
        """Run one node: make the gradients, note the height, release what it used, add up, hand parameter gradients
        on."""
        incoming = [self.pending.pop(output) for output in (op.output, *op.others) if output in self.pending]
        new = sum(size for _, size in op.params)
        made = new if op.in_place_grad else new + sum(self._sizes[i] for i in op.inputs)
        used = sum(self._saved[root] for root in saves if self._users[root] == 1)
        self.nodes.append(
            Node(self._live + made, self._kept_grads, op.backward_workspace, op.reduction, used, op.column_sum)
        )
        buffers = [self.share(incoming[0]) if op.in_place_grad else self._new(tensor) for tensor in op.inputs]
        for buffer in incoming:
            self._drop(buffer)
        for root in saves:
            self._users[root] -= 1
            if not self._users[root]:
                self._live -= self._saved.pop(root)
        early = self._live
        for tensor, buffer in zip(op.inputs, buffers, strict=True):
            self._accumulate(tensor, buffer, new)
        self._kept_grads += new
        live = (early if op.params_first else self._live) + new
        for name, size in op.params:
            live -= size
            self.grads.append(Grad(name, size, live))

    def _new(self, tensor: int) -> int:
        self._buffers.append(self._sizes[tensor])
        self._holders.append(1)
        self._live += self._sizes[tensor]
        return len(self._buffers) - 1

    def share(self, buffer: int) -> int:
        """Add one more holder of ``buffer``; return it."""
        self._holders[buffer] += 1
        return buffer

    def _accumulate(self, tensor: int, buffer: int, beside: int) -> None:
        """Add ``buffer`` to the gradient of ``tensor``; ``beside``: the parameter gradients made with it."""
        older = self.pending.get(tensor)
        if older is None:
            self.pending[tensor] = buffer
            return
        # InputBuffer::accumulate adds in place when nobody else holds the older gradient.
        if self._holders[older] > 1:
            self.pending[tensor] = self._new(tensor)
            self.nodes.append(Node(self._live + beside, self._kept_grads))
            self._drop(older)
        self._drop(buffer)

    def _drop(self, buffer: int) -> None:
        self._holders[buffer] -= 1
        if not self._holders[buffer]:
            self._live -= self._buffers[buffer]
