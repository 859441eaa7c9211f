"""A recording of operations, and what autograd keeps of them: the bytes alive forward and backward.

A tape holds the operations of one stretch of a model (a decoder layer, the head) with the size of every tensor.
Played forward it says what stays saved for backward and the highest point on the way; played backward it follows
torch's engine (torch/csrc/autograd/engine.cpp): a node's incoming gradient, its saved tensors and all gradients it
makes are alive together, then the first two are released. All sizes are bytes.
"""

from __future__ import annotations

from typing import NamedTuple


class Grad(NamedTuple):
    """The gradient of one parameter at the moment its hook runs."""

    param: str
    num_bytes: int
    live: int
    """Bytes of activations and their gradients alive then, and of the gradients that the same node made for parameters
    whose hooks run later; the parameter's own is left out."""


class Heights(NamedTuple):
    """Highest points of one backward, saved tensors, incoming gradient and new gradients included."""

    reduced: int
    """Each parameter gradient is gone (reduced, copied away) once its hook has run."""
    hoarded: int
    """All parameter gradients stay."""


class Played(NamedTuple):
    """What one tape costs. Peaks leave out what was alive before the tape began, its input excepted."""

    saved: int
    """Kept from forward to backward."""
    saved_input: int
    """The part of ``saved`` that is the tape's own input."""
    forward_peak: int
    until_saved: int
    """Highest point of forward until its last saved tensor is there."""
    dry_peak: int
    """Highest point of forward when nothing is kept for backward (the first pass under checkpointing)."""
    backward: Heights
    replay: Heights
    """Under checkpointing, where a saved tensor is gone as soon as the node has used it."""
    backward_top: str
    """Name of the operation where that is."""
    grads: tuple[Grad, ...]
    """Parameter gradients in the order backward makes them."""
    held: int
    """What variables refer to at the end of forward without being saved, the last output left out."""
    output_held: bool
    """Whether a variable refers to the last output."""


class _Op(NamedTuple):
    name: str
    inputs: tuple[int, ...]
    """Tensors that get a gradient from this operation."""
    output: int
    saves: tuple[int, ...]
    params: tuple[tuple[str, int], ...]
    reads: tuple[int, ...]
    workspace: int
    backward_workspace: int
    reduction: int
    passes: bool
    """The gradient goes through as it is: addition and views allocate none."""
    params_first: bool
    """Parameters' hooks run before the input's gradient is added to an earlier one: a view lies between."""
    others: tuple[int, ...] = ()
    """Further outputs, whose gradients it takes in together with that of ``output``."""


class Tape:
    """Records operations in the order forward runs them."""

    def __init__(self) -> None:
        self._bytes: list[int] = []
        self._root: list[int] = []
        self._differentiable: list[bool] = []
        self._ops: list[_Op] = []
        self._held: list[int] = []
        self._returned: list[int] = []

    def tensor(self, num_bytes: int, *, differentiable: bool = True, of: int | None = None) -> int:
        """A tensor from outside, or with ``of`` a view that shares that tensor's storage."""
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
        passes: bool = False,
        params_first: bool = False,
    ) -> int:
        """One operation; returns its output.

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
            passes: its gradient is handed on without a new allocation.
            params_first: the hooks of ``params`` run before the input's gradient is added to an earlier one.
        """
        output = self.tensor(num_bytes)
        self._differentiable[output] = bool(params) or any(self._differentiable[i] for i in inputs)
        kept = list(saves or [])
        if extra:
            kept.append(self.tensor(extra, differentiable=False))
        targets = tuple(i for i in inputs if self._differentiable[i])
        self._ops.append(
            _Op(
                name,
                targets,
                output,
                tuple(kept),
                tuple(params or ()),
                (*inputs, *(reads or ())),
                workspace,
                backward_workspace,
                reduction,
                passes,
                params_first,
            )
        )
        return output

    def size(self, tensor: int) -> int:
        """Bytes of ``tensor``."""
        return self._bytes[tensor]

    def hold(self, tensor: int) -> None:
        """Keeps ``tensor`` alive to the end of forward: a variable or an output refers to it."""
        self._held.append(tensor)

    def give_back(self, tensor: int) -> None:
        """The module returns ``tensor`` too: a re-entrant checkpoint makes it a gradient of zeros and holds both."""
        self._returned.append(tensor)

    def part(self, name: str, whole: int, num_bytes: int) -> int:
        """A slice of ``whole`` that shares its storage; the slices' gradients are gathered into a whole one."""
        piece = self.tensor(num_bytes, of=whole)
        self._differentiable[piece] = self._differentiable[whole]
        self._ops.append(_Op(name, (whole,), piece, (), (), (whole,), 0, 0, 0, False, False))
        return piece

    def split(self, name: str, whole: int, sizes: tuple[int, ...]) -> list[int]:
        """All of ``whole`` in slices that share its storage, by one operation: one gradient of the whole is made."""
        pieces = [self.tensor(size, of=whole) for size in sizes]
        for piece in pieces:
            self._differentiable[piece] = self._differentiable[whole]
        first, *others = pieces
        self._ops.append(_Op(name, (whole,), first, (), (), (whole,), 0, 0, 0, False, False, tuple(others)))
        return pieces

    def save_output(self, output: int) -> int:
        """Marks the output of the last operation as kept for its own backward; returns it."""
        last = self._ops[-1]
        self._ops[-1] = last._replace(saves=(*last.saves, output))
        return output

    def play(self, inputs: list[int], *, held: bool = False, nested: bool = False) -> Played:
        """Runs the recording.

        Args:
            inputs: tensors from before; the peaks of forward count them.
            held: whoever runs it keeps ``inputs`` to the end of forward; else they go with their last reader.
            nested: backward runs inside a checkpoint's, whose node holds input and incoming gradient to the end.
        """
        outside = {self._root[i] for i in inputs}
        ends = self._ends(outside if held else set())
        saved, forward_peak, until_saved = self._forward(outside, ends, keep=True)
        _, dry_peak, _ = self._forward(outside, ends, keep=False)
        played = self._backward(saved, outside, nested)
        variables, output = {self._root[t] for t in self._held}, self._root[self._ops[-1].output]
        return Played(
            saved=sum(saved.values()),
            saved_input=sum(size for root, size in saved.items() if root in outside),
            forward_peak=forward_peak,
            until_saved=until_saved,
            dry_peak=dry_peak,
            backward=Heights(*played.backward),
            replay=Heights(*played.replay),
            backward_top=played.top,
            grads=tuple(played.grads),
            held=sum(self._bytes[root] for root in variables - saved.keys() - {output}),
            output_held=output in variables,
        )

    def keeps(self) -> tuple[tuple[str, int], ...]:
        """Each operation with the bytes it is the first to keep for backward, in the order forward runs them."""
        seen: set[int] = set()
        kept: list[tuple[str, int]] = []
        for op in self._ops:
            new = {self._root[tensor] for tensor in op.saves} - seen
            seen |= new
            if new:
                kept.append((op.name, sum(self._bytes[root] for root in new)))
        return tuple(kept)

    def _forward(self, outside: set[int], ends: dict[int, list[int]], *, keep: bool) -> tuple[dict[int, int], int, int]:
        root, sizes = self._root, self._bytes
        saved: dict[int, int] = {}
        live = set(outside)
        alive = peak = until = sum(sizes[tensor] for tensor in outside)
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
            peak = max(peak, alive + op.workspace)
            until = peak if op.saves else until
            for gone in ends.get(step, ()):
                live.discard(gone)
                if gone not in saved:
                    alive -= sizes[gone]
        return saved, peak, until

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

    def _backward(self, saved: dict[int, int], outside: set[int], nested: bool) -> _Backward:
        users = self._users()
        for root in (*outside, *(self._root[tensor] for tensor in self._returned)) if nested else ():
            users[root] = users.get(root, 0) + 1
        state = _Backward(self._bytes, saved, users)
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


class _Backward:
    """torch's engine at work: saved tensors, gradient buffers and their holders."""

    def __init__(self, sizes: list[int], saved: dict[int, int], users: dict[int, int]) -> None:
        self.pending: dict[int, int] = {}
        """Tensor → number of the buffer that holds its gradient so far."""
        self.backward = [0, 0]
        self.replay = [0, 0]
        self.top = ""
        self._hoard = 0
        self.grads: list[Grad] = []
        self._sizes = sizes
        self._saved = dict(saved)
        self._users = users
        self._holders: list[int] = []
        self._buffers: list[int] = []
        self._live = sum(saved.values())

    def receive(self, tensor: int) -> int:
        """A new gradient buffer for ``tensor``, whose only gradient it is so far."""
        self.pending[tensor] = self._new(tensor)
        return self.pending[tensor]

    def run(self, op: _Op, saves: set[int]) -> None:
        """One node: make the gradients, note the height, release what it used, add up, hand parameter gradients on."""
        incoming = [self.pending.pop(output) for output in (op.output, *op.others) if output in self.pending]
        new = sum(size for _, size in op.params)
        made = new if op.passes else new + sum(self._sizes[i] for i in op.inputs)
        used = sum(self._saved[root] for root in saves if self._users[root] == 1)
        height = self._live + made + max(op.backward_workspace, op.reduction)
        replayed = self._live + made + max(op.backward_workspace, op.reduction - used)
        if height > self.backward[0]:
            self.top = op.name
        self._note(height, replayed)
        buffers = [self.share(incoming[0]) if op.passes else self._new(tensor) for tensor in op.inputs]
        for buffer in incoming:
            self._drop(buffer)
        for root in saves:
            self._users[root] -= 1
            if not self._users[root]:
                self._live -= self._saved.pop(root)
        early = self._live
        for tensor, buffer in zip(op.inputs, buffers, strict=True):
            self._accumulate(tensor, buffer, new)
        self._hoard += new
        live = (early if op.params_first else self._live) + new
        for name, size in op.params:
            live -= size
            self.grads.append(Grad(name, size, live))

    def _note(self, height: int, replayed: int) -> None:
        self.backward = [max(self.backward[0], height), max(self.backward[1], height + self._hoard)]
        self.replay = [max(self.replay[0], replayed), max(self.replay[1], replayed + self._hoard)]

    def _new(self, tensor: int) -> int:
        self._buffers.append(self._sizes[tensor])
        self._holders.append(1)
        self._live += self._sizes[tensor]
        return len(self._buffers) - 1

    def share(self, buffer: int) -> int:
        """One more holder of ``buffer``; returns it."""
        self._holders[buffer] += 1
        return buffer

    def _accumulate(self, tensor: int, buffer: int, beside: int) -> None:
        """Adds ``buffer`` to the gradient of ``tensor``; ``beside``: the parameter gradients made with it."""
        older = self.pending.get(tensor)
        if older is None:
            self.pending[tensor] = buffer
            return
        # InputBuffer::accumulate adds in place when nobody else holds the older gradient.
        if self._holders[older] > 1:
            self.pending[tensor] = self._new(tensor)
            self._note(self._live + beside, self._live + beside)
            self._drop(older)
        self._drop(buffer)

    def _drop(self, buffer: int) -> None:
        self._holders[buffer] -= 1
        if not self._holders[buffer]:
            self._live -= self._buffers[buffer]
