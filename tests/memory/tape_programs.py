"""Small programs in three readings: recorded on a tape, run by torch, and walked step by step with nothing clever."""

from __future__ import annotations

from typing import Any, NamedTuple

from dsconf.memory.autograd.tape import Played, Tape

UNIT = 64 * 1024
"""Bytes of one tensor of a program that torch runs; torch's own scalars are lost in the rounding to it."""


class Line(NamedTuple):
    """One operation. Tensor 0 is the program's input, tensor i the output of line i - 1."""

    inputs: tuple[int, ...]
    size: int
    saves: tuple[int, ...] = ()
    saves_output: bool = False
    weight: int = 0
    """Bytes of the parameter it owns, 0 for none."""
    extra: int = 0
    workspace: int = 0
    backward_workspace: int = 0
    reduction: int = 0
    in_place_grad: bool = False
    view: bool = False


def recorded(program: list[Line], input_size: int, held: tuple[int, ...] = ()) -> Played:
    """``program`` played from a tape."""
    tape = Tape()
    ids = [tape.tensor(input_size)]
    for number, line in enumerate(program):
        inputs = [ids[i] for i in line.inputs]
        if line.view:
            ids.append(tape.part(f"op {number}", inputs[0], line.size))
            continue
        output = tape.op(
            f"op {number}",
            inputs,
            line.size,
            saves=[ids[i] for i in line.saves],
            params=[(f"weight {number}", line.weight)] if line.weight else [],
            extra=line.extra,
            workspace=line.workspace,
            backward_workspace=line.backward_workspace,
            reduction=line.reduction,
            in_place_grad=line.in_place_grad,
        )
        ids.append(tape.save_output(output) if line.saves_output else output)
    for tensor in held:
        tape.hold(ids[tensor])
    return tape.play([ids[0]])


class Walked(NamedTuple):
    """What the slow walk finds; the names are those of ``Played`` and ``Peaks``."""

    saved: int
    forward_peak: int
    no_grad_forward_peak: int
    grads_freed: int
    grads_kept: int
    replay_freed: int
    replay_kept: int
    grads: tuple[tuple[str, int, int], ...]


def told(played: Played) -> Walked:
    """The tape's answer in the walk's words."""
    return Walked(
        played.saved,
        played.forward_peak,
        played.no_grad_forward_peak,
        *played.backward,
        *played.replay,
        tuple((g.param, g.num_bytes, g.live) for g in played.grads),
    )


class _Buffer:
    """A gradient: who refers to it decides whether it lives."""

    def __init__(self, size: int) -> None:
        self.size = size


class _Walk:
    """Every figure is found by listing all that is alive at that moment."""

    def __init__(self, program: list[Line], input_size: int, held: tuple[int, ...]) -> None:
        self.program, self.held = program, held
        self.sizes = [input_size, *(line.size for line in program)]
        self.storage = list(range(len(self.sizes)))
        for number, line in enumerate(program):
            if line.view:
                self.storage[number + 1] = self.storage[line.inputs[0]]
        self.kept: list[dict[Any, int]] = []
        """Storage → bytes that each operation saves."""
        for number, line in enumerate(program):
            tensors = (*line.saves, *((number + 1,) if line.saves_output else ()))
            mine: dict[Any, int] = {self.storage[t]: self.sizes[self.storage[t]] for t in tensors}
            if line.extra:
                mine["extra", number] = line.extra
            self.kept.append(mine)

    def forward(self, keep: bool) -> tuple[int, int]:
        """(bytes saved at the end, highest point)."""
        peak = 0
        saved: dict[Any, int] = {}
        for now, line in enumerate(self.program):
            alive = {s: self.sizes[s] for s in self.storage if self._born(s) <= now <= self._death(s)}
            if keep:
                saved |= self.kept[now]
            peak = max(peak, sum((alive | saved).values()) + line.workspace)
        return sum(saved.values()), peak

    def _born(self, storage: int) -> int:
        return storage - 1

    def _death(self, storage: int) -> int:
        last = len(self.program)
        if storage in (self.storage[last], *(self.storage[t] for t in self.held)):
            return last
        mentions = (
            number
            for number, line in enumerate(self.program)
            if storage in (self.storage[number + 1], *(self.storage[i] for i in line.inputs))
        )
        return max(mentions)

    def backward(self) -> tuple[int, int, int, int, tuple[tuple[str, int, int], ...]]:
        """Highest points as in ``Walked``, and each parameter gradient with what lives when its hook runs."""
        self.done: set[int] = set()
        self.pending = {len(self.program): _Buffer(self.sizes[-1])}
        self.peaks = [0, 0, 0, 0]
        self.kept_grads = 0
        grads = []
        for number in reversed(range(len(self.program))):
            if number + 1 in self.pending:
                grads += self._node(number)
        return (*self.peaks, tuple(grads))

    def _alive(self, hands: list[_Buffer]) -> int:
        saved: dict[Any, int] = {}
        for number, mine in enumerate(self.kept):
            if number not in self.done:
                saved |= mine
        buffers = {id(b): b.size for b in (*self.pending.values(), *hands)}
        return sum(saved.values()) + sum(buffers.values())

    def _note(self, height: int, replayed: int) -> None:
        found = (height, height + self.kept_grads, replayed, replayed + self.kept_grads)
        self.peaks = [max(pair) for pair in zip(self.peaks, found, strict=True)]

    def _node(self, number: int) -> list[tuple[str, int, int]]:
        line = self.program[number]
        incoming = self.pending.pop(number + 1)
        made = [incoming if line.in_place_grad else _Buffer(self.sizes[i]) for i in line.inputs]
        # The weight's gradient is one of the node's outputs, so it is there until they are all handed over.
        hands = [incoming, *made]
        if line.weight:
            hands.append(_Buffer(line.weight))
        only_here = set(self.kept[number])
        for other, mine in enumerate(self.kept):
            if other != number and other not in self.done:
                only_here -= set(mine)
        used = sum(self.kept[number][storage] for storage in only_here)
        alive = self._alive(hands)
        summing = max(line.backward_workspace, line.reduction - used)
        self._note(alive + max(line.backward_workspace, line.reduction), alive + summing)
        self.done.add(number)
        hands.remove(incoming)
        for tensor, buffer in zip(line.inputs, made, strict=True):
            self._hand_over(tensor, buffer, hands)
        if not line.weight:
            return []
        self.kept_grads += line.weight
        return [(f"weight {number}", line.weight, self._alive([]))]

    def _hand_over(self, tensor: int, buffer: _Buffer, hands: list[_Buffer]) -> None:
        """torch adds in place where nobody else refers to the older gradient, and otherwise in new memory."""
        hands.remove(buffer)
        older = self.pending.get(tensor)
        if older is None:
            self.pending[tensor] = buffer
            return
        others = [b for t, b in self.pending.items() if t != tensor]
        if any(older is b for b in (*others, *hands, buffer)):
            total = _Buffer(self.sizes[tensor])
            alive = self._alive([buffer, total, *hands])
            self._note(alive, alive)
            self.pending[tensor] = total


def walked(program: list[Line], input_size: int, held: tuple[int, ...] = ()) -> Walked:
    """``program`` step by step."""
    walk = _Walk(program, input_size, held)
    saved, peak = walk.forward(keep=True)
    return Walked(saved, peak, walk.forward(keep=False)[1], *walk.backward())
