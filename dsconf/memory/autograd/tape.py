"""A recording of operations, and what autograd keeps of them: the bytes alive forward and backward.

A tape holds the operations of one stretch of a model (a decoder layer, the head) with the size of every tensor.
Played forward it says what stays saved for backward and the highest point on the way; played backward it follows
torch's engine (torch/csrc/autograd/engine.cpp): a node's incoming gradient, its saved tensors and all gradients it
makes are alive together, then the first two are released. All sizes are bytes.
"""

from __future__ import annotations

from typing import NamedTuple

from dsconf.memory.autograd.backward import Backward, Grad, Height, Node, Op, highest
from dsconf.memory.autograd.column_sum import ColumnSum


class Peaks(NamedTuple):
    """Highest points of one backward, saved tensors, incoming gradient and new gradients included."""

    grads_freed: int
    """Each parameter gradient is gone (reduced, copied away) once its hook has run."""
    grads_kept: int
    """All parameter gradients stay."""


class Played(NamedTuple):
    """What one tape costs, point by point. What was alive before it began is left out, its input excepted.

    Which points there are does not depend on the sizes of tensors.
    """

    saved: int
    """Kept from forward to backward."""
    saved_input: int
    """The part of ``saved`` that is the tape's own input."""
    forward: list[int]
    """Alive before the first operation, and in each."""
    until_saved: int
    """How many of those points there are until the last saved tensor is there."""
    no_grad_forward: list[int]
    """Alive in forward when nothing is kept for backward (the first pass under checkpointing)."""
    nodes: list[Node]
    """Of backward."""
    grads: tuple[Grad, ...]
    """Parameter gradients in the order backward makes them."""
    held: int
    """What variables refer to at the end of forward without being saved, the last output left out."""
    output_held: bool
    """Whether a variable refers to the last output."""

    def heights(self, *, replayed: bool, grads_kept: bool) -> list[Height]:
        """Return the height of each node of backward.

        Args:
            replayed: under checkpointing, where a saved tensor is gone as soon as the node has used it.
            grads_kept: gradients of parameters stay; else each is gone once its hook has run.
        """
        return [height for node in self.nodes for height in node.heights(replayed, grads_kept)]

    @property
    def forward_peak(self) -> int:
        """Highest point of forward."""
        return max(self.forward)

    @property
    def no_grad_forward_peak(self) -> int:
        """Highest point of ``no_grad_forward``."""
        return max(self.no_grad_forward)

    @property
    def backward(self) -> Peaks:
        """Highest points of backward."""
        return self._peaks(replayed=False)

    @property
    def replay(self) -> Peaks:
        """Highest points of backward under checkpointing."""
        return self._peaks(replayed=True)

    def _peaks(self, *, replayed: bool) -> Peaks:
        freed, kept = (highest(self.heights(replayed=replayed, grads_kept=kept)) for kept in (False, True))
        return Peaks(freed, kept)


class Tape:
    """Records operations in the order forward runs them."""

    def __init__(self) -> None:
        self._bytes: list[int] = []
        self._root: list[int] = []
        self._differentiable: list[bool] = []
        self._ops: list[Op] = []
        self._held: list[int] = []
        self._returned: list[int] = []

    def tensor(self, num_bytes: int, *, differentiable: bool = True, of: int | None = None) -> int:
        """Make a tensor from outside, or with ``of`` a view that shares that tensor's storage."""
        self._bytes.append(num_bytes)
        self._root.append(len(self._root) if of is None else self._root[of])
        self._differentiable.append(differentiable)
        return len(self._bytes) - 1

    def op(
        self,
        name: str,
        inputs: list[int],
        num_bytes: int,
        *,
        saves: list[int] | None = None,
        params: list[tuple[str, int]] | None = None,
        reads: list[int] | None = None,
        extra: int = 0,
        workspace: int = 0,
        backward_workspace: int = 0,
        reduction: int = 0,
        in_place_grad: bool = False,
        params_first: bool = False,
    ) -> int:
        """Record one operation; return its output.

        Args:
            name: what a person would call it.
            inputs: tensors it reads; those that are differentiable get gradients of their own size.
            num_bytes: size of the output.
            saves: tensors kept for backward (the output may be appended with ``save_output``).
            params: (name, bytes) of parameters that get a gradient here.
            extra: bytes it keeps for backward besides tensors of the tape (log-sum-exp, masks, statistics).
            reads: further tensors a variable keeps alive while it runs.
            workspace, backward_workspace: scratch bytes while it runs.
            reduction: scratch bytes of summing a parameter's gradient, after the node itself has run.
            in_place_grad: its gradient is handed on without a new allocation.
            params_first: the hooks of ``params`` run before the input's gradient is added to an earlier one.
        """
        output = self.tensor(num_bytes)
        self._differentiable[output] = bool(params) or any(self._differentiable[i] for i in inputs)
        kept = list(saves or [])
        if extra:
            kept.append(self.tensor(extra, differentiable=False))
        targets = tuple(i for i in inputs if self._differentiable[i])
        self._ops.append(
            Op(
                name=name,
                inputs=targets,
                output=output,
                saves=tuple(kept),
                params=tuple(params or ()),
                reads=(*inputs, *(reads or ())),
                workspace=workspace,
                backward_workspace=backward_workspace,
                reduction=reduction,
                in_place_grad=in_place_grad,
                params_first=params_first,
            )
        )
        return output

    def size(self, tensor: int) -> int:
        """Return the bytes of ``tensor``."""
        return self._bytes[tensor]

    def hold(self, tensor: int) -> None:
        """Keep ``tensor`` alive to the end of forward: a variable or an output refers to it."""
        self._held.append(tensor)

    def also_return(self, tensor: int) -> None:
        """Note that the module returns ``tensor`` too: a re-entrant checkpoint makes it a gradient of zeros and holds
        both."""
        self._returned.append(tensor)

    def part(self, name: str, whole: int, num_bytes: int) -> int:
        """Record a slice of ``whole`` that shares its storage; the slices' gradients are gathered into a whole one."""
        piece = self.tensor(num_bytes, of=whole)
        self._differentiable[piece] = self._differentiable[whole]
        self._ops.append(Op(name=name, inputs=(whole,), output=piece, reads=(whole,)))
        return piece

    def split(self, name: str, whole: int, sizes: tuple[int, ...]) -> list[int]:
        """Cut all of ``whole`` in slices that share its storage, by one operation: one gradient of the whole is
        made."""
        pieces = [self.tensor(size, of=whole) for size in sizes]
        for piece in pieces:
            self._differentiable[piece] = self._differentiable[whole]
        first, *others = pieces
        self._ops.append(Op(name=name, inputs=(whole,), output=first, reads=(whole,), others=tuple(others)))
        return pieces

    def sum_columns(self, output: int, column_sum: ColumnSum | None) -> int:
        """Say that the last operation sums its parameter's gradient over rows, which adds to ``reduction``."""
        self._ops[-1] = self._ops[-1]._replace(column_sum=column_sum)
        return output

    def save_output(self, output: int) -> int:
        """Mark the output of the last operation as kept for its own backward; return it."""
        last = self._ops[-1]
        self._ops[-1] = last._replace(saves=(*last.saves, output))
        return output

    def play(self, inputs: list[int], *, held: bool = False, nested: bool = False) -> Played:
        """Run the recording.

        Args:
            inputs: tensors from before; the heights of forward count them.
            held: whoever runs it keeps ``inputs`` to the end of forward; else they go with their last reader.
            nested: backward runs inside a checkpoint's, whose node holds input and incoming gradient to the end.
        """
        outside = {self._root[i] for i in inputs}
        ends = self._ends(outside if held else set())
        saved, forward = self._forward(outside, ends, keep=True)
        _, no_grad_forward = self._forward(outside, ends, keep=False)
        backward = self._backward(saved, outside, nested)
        variables, output = {self._root[t] for t in self._held}, self._root[self._ops[-1].output]
        return Played(
            saved=sum(saved.values()),
            saved_input=sum(size for root, size in saved.items() if root in outside),
            forward=forward,
            until_saved=max((number for number, op in enumerate(self._ops, 2) if op.saves), default=1),
            no_grad_forward=no_grad_forward,
            nodes=backward.nodes,
            grads=tuple(backward.grads),
            held=sum(self._bytes[root] for root in variables - saved.keys() - {output}),
            output_held=output in variables,
        )

    def keeps(self) -> tuple[tuple[str, int], ...]:
        """Yield each operation with the bytes it is the first to keep for backward, in the order forward runs them."""
        seen: set[int] = set()
        kept: list[tuple[str, int]] = []
        for op in self._ops:
            new = {self._root[tensor] for tensor in op.saves} - seen
            seen |= new
            if new:
                kept.append((op.name, sum(self._bytes[root] for root in new)))
        return tuple(kept)

    def _forward(
        self, outside: set[int], ends: dict[int, list[int]], *, keep: bool
    ) -> tuple[dict[int, int], list[int]]:
        """Return the bytes of each storage that is kept, and those alive before the first operation and in each."""
        root, sizes = self._root, self._bytes
        saved: dict[int, int] = {}
        live = set(outside)
        alive = sum(sizes[tensor] for tensor in outside)
        heights = [alive]
        for step, op in enumerate(self._ops):
            made = root[op.output]
            if made not in live and made not in saved:
                alive += sizes[made]
            live.add(made)
            for tensor in op.saves if keep else ():
                kept = root[tensor]
                if kept not in saved:
                    if kept not in live:
                        alive += sizes[kept]
                    saved[kept] = sizes[kept]
            heights.append(alive + op.workspace)
            for gone in ends.get(step, ()):
                live.discard(gone)
                if gone not in saved:
                    alive -= sizes[gone]
        return saved, heights

    def _ends(self, held: set[int]) -> dict[int, list[int]]:
        """Step → tensors used there for the last time; what is held to the end is in none."""
        last: dict[int, int] = {}
        for step, op in enumerate(self._ops):
            for tensor in (*op.reads, op.output):
                last[self._root[tensor]] = step
        for root in (self._root[self._ops[-1].output], *(self._root[t] for t in self._held), *held):
            last.pop(root, None)
        ends: dict[int, list[int]] = {}
        for tensor, step in last.items():
            ends.setdefault(step, []).append(tensor)
        return ends

    def _backward(self, saved: dict[int, int], outside: set[int], nested: bool) -> Backward:
        users = self._users()
        for root in (*outside, *(self._root[tensor] for tensor in self._returned)) if nested else ():
            users[root] = users.get(root, 0) + 1
        state = Backward(self._bytes, saved, users)
        for tensor in (self._ops[-1].output, *(self._returned if nested else ())):
            buffer = state.receive(tensor)
            if nested:
                state.share(buffer)
        for op in reversed(self._ops):
            if not state.pending.keys().isdisjoint((op.output, *op.others)):
                state.run(op, {self._root[t] for t in op.saves})
        return state

    def _users(self) -> dict[int, int]:
        users: dict[int, int] = {}
        for op in self._ops:
            for root in {self._root[t] for t in op.saves}:
                users[root] = users.get(root, 0) + 1
        return users
