"""Finds the repeated blocks of a live module, and its parameters before, in and after them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from dsconf.model.spec import Param, Parameters

if TYPE_CHECKING:
    from torch import nn

    Named = list[tuple[str, nn.Parameter]]

Signature = tuple[tuple[str, tuple[int, ...], bool], ...]
"""Name, shape and whether it is trained, of each parameter of one member of a list."""


class Split(NamedTuple):
    """Where a module's repeated blocks are. A block is ``period`` members of one list, one after the other."""

    members: tuple[str, ...]
    """Names of the modules that make up the blocks, in order; the module itself has the empty name."""
    period: int
    checkpointed: tuple[str, ...]
    """All members of that list, those that are unlike the others included."""

    @property
    def layers(self) -> int:
        """Number of blocks."""
        return len(self.members) // self.period

    @property
    def ends(self) -> tuple[tuple[str, str], ...]:
        """First and last member of each block."""
        starts = range(0, len(self.members), self.period)
        return tuple((self.members[i], self.members[i + self.period - 1]) for i in starts)


def whole(module: nn.Module) -> Split:
    """Return all of ``module`` as one block; checkpointed is what its largest list holds."""
    found = max(_candidates(module), key=lambda one: one[1], default=None)
    return Split(("",), 1, found[0].checkpointed if found else ("",))


def find(module: nn.Module) -> Split:
    """Find the list (``ModuleList`` or ``Sequential``) whose repeated blocks hold most parameters, the outer one of
    equals.

    Without such a list, the one whose members hold most parameters is one block; without any list, all of ``module``.
    """
    found = list(_candidates(module))
    repeated = [one for one in found if one[0].layers > 1 or len(one[0].checkpointed) == 1]
    best = max(repeated or found, key=lambda one: one[1], default=None)
    return best[0] if best else whole(module)


def _candidates(module: nn.Module) -> Iterator[tuple[Split, int]]:
    """Yield every list with parameters, split into blocks, and the elements these hold."""
    from torch import nn

    params = list(module.named_parameters())
    for name, child in module.named_modules():
        few = 2 if isinstance(child, nn.Sequential) else 1
        if not isinstance(child, (nn.ModuleList, nn.Sequential)) or len(child) < few:
            continue
        prefix = f"{name}." if name else ""
        inside = _inside_list(params, prefix, [prefix + key for key, _ in child.named_children()])
        members = tuple(inside)
        signatures = [_signature(inside[member]) for member in members]
        if any(signatures):
            first, period, count = repetition(signatures)
            chosen = members[first : first + period * count]
            held = sum(param.numel() for member in chosen for _, param in inside[member])
            yield Split(chosen, period, members), held


def _inside_list(params: Named, prefix: str, members: list[str]) -> dict[str, Named]:
    """Return each member's own parameters, named within it."""
    found: dict[str, Named] = {member: [] for member in members}
    for full, param in params:
        if full.startswith(prefix):
            key, dot, rest = full[len(prefix) :].partition(".")
            if dot:
                found[prefix + key].append((rest, param))
    return found


def _signature(params: Named) -> Signature:
    return tuple((name, tuple(param.shape), param.requires_grad) for name, param in params)


def repetition(signatures: Sequence[object]) -> tuple[int, int, int]:
    """First member, members of a block, number of blocks.

    A pattern that fills the list (a, b, a, b) is taken, else the longest run of equal members if it is most of the
    list, else all members as one block.
    """
    size = len(signatures)
    for period in range(1, size // 2 + 1):
        if size % period == 0 and all(signatures[i] == signatures[i % period] for i in range(size)):
            return 0, period, size // period
    first, length = _longest_run(signatures)
    return (first, 1, length) if 2 * length > size else (0, size, 1)


def _longest_run(signatures: Sequence[object]) -> tuple[int, int]:
    best, start = (0, 0), 0
    for i in range(1, len(signatures) + 1):
        if i == len(signatures) or signatures[i] != signatures[start]:
            best = max(best, (start, i - start), key=lambda run: run[1])
            start = i
    return best


class ParamPlace(NamedTuple):
    """Where a parameter of the module is among ``Parameters``."""

    part: int
    """-1 before the blocks, the block, or the number of blocks after them."""
    name: str
    """Within the part: as registered, and in a block relative to it."""


def places(module: nn.Module, split: Split) -> dict[str, ParamPlace]:
    """Return every parameter's place, in registration order."""
    found: dict[str, ParamPlace] = {}
    part = -1
    for full, _ in module.named_parameters():
        inside = _inside(full, split)
        part = inside.part if inside else (-1 if part == -1 else split.layers)
        found[full] = inside or ParamPlace(part, full)
    return found


def _inside(full: str, split: Split) -> ParamPlace | None:
    if split.members == ("",):
        return ParamPlace(0, full)
    for i, member in enumerate(split.members):
        if full.startswith(f"{member}."):
            rest = full[len(member) + 1 :]
            return ParamPlace(i // split.period, rest if split.period == 1 else f"{i % split.period}.{rest}")
    return None


def parameters(module: nn.Module, where: dict[str, ParamPlace], layers: int) -> Parameters:
    """Return the module's parameters as the memory model has them."""
    parts: dict[int, list[Param]] = {}
    for full, param in module.named_parameters():
        place = where[full]
        parts.setdefault(place.part, []).append(Param(place.name, tuple(param.shape), param.requires_grad))
    before, layer, after = (tuple(parts.get(part, ())) for part in (-1, 0, layers))
    return Parameters(before, layer, layers, after)
