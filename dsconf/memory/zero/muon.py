"""Muon's two parameter groups and what its update makes (DeepSpeed 0.19.8: runtime/zero, runtime/zero/muon).

Matrices outside embeddings and output projection go to Muon, the rest to Adam (deepspeed/__init__.py:
set_optimizer_flags). Each group has a flat buffer of its own; Muon's comes first (engine.py:2425-2474).
"""

from __future__ import annotations

from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple

from dsconf.memory.terms import Counting
from dsconf.memory.zero.slices import Slice, owned, slice_of
from dsconf.model.spec import Model, Param

CACHED_BYTES = 256 * 2**20
"""Most that stage 3 keeps of gather buffers from step to step (stage3.py:243)."""


class ParamGroup(NamedTuple):
    """One of the two groups."""

    muon: bool
    registered: tuple[tuple[int, int], ...]
    """(elements, offset) of each trained parameter, in the group's order."""
    total: int

    @property
    def numels(self) -> tuple[int, ...]:
        """Elements of each parameter."""
        return tuple([numel for numel, _ in self.registered])


def by_muon(name: str, param: Param) -> bool:
    """Say whether Muon trains ``param``, by shape and name (deepspeed/__init__.py:369)."""
    return len(param.shape) >= 2 and not any(word in name.lower() for word in ("embed", "lm_head"))


@lru_cache(maxsize=128)
def param_groups(model: Model) -> tuple[ParamGroup, ...]:
    """Return Muon's group and Adam's, without the empty ones."""
    params = model.parameters
    every = (*params.before, *(params.layer * params.layers), *params.after)
    found = []
    for muon in (True, False):
        group = [p for p in every if p.trainable and by_muon(p.name, p) == muon]
        if muon:
            # Muon sorts its matrices by shape (original_muon.py: MuonWithAuxAdam.__init__).
            group.sort(key=lambda p: p.shape, reverse=True)
        if group:
            ends = list(accumulate([p.numel for p in group], initial=0))
            registered = tuple([(p.numel, offset) for p, offset in zip(group, ends, strict=False)])
            found.append(ParamGroup(muon, registered, ends[-1]))
    return tuple(found)


class OwnedSlice(NamedTuple):
    """What one rank owns of one parameter group at stages 1 and 2."""

    muon: bool
    total: int
    """Elements of the group."""
    slice: Slice


@lru_cache(maxsize=1024)
def owned_slices(model: Model, optimizer: str, world_size: int, rank: int) -> tuple[OwnedSlice, ...]:
    """Return the slice of ``rank`` of each parameter group of ``optimizer``: two for Muon, one for any other."""
    if optimizer != "muon":
        only = owned(model, world_size, rank)
        return (OwnedSlice(False, only.elements * world_size, only),)
    return tuple(
        [
            OwnedSlice(group.muon, group.total, slice_of(group.registered, group.total, world_size, rank))
            for group in param_groups(model)
        ]
    )


@lru_cache(maxsize=128)
def largest_matrix(model: Model) -> int:
    """Return the elements of the largest parameter that Muon trains."""
    return max((max(group.numels) for group in param_groups(model) if group.muon), default=0)


def newton_schulz_iteration(count: Counting, model: Model, width: int) -> int:
    """Return what the iteration over the largest matrix makes (original_muon.py:87-186).

    The matrix in 16 bit, its product with the orthogonalizing matrix, and the update in the gradient's ``width``.
    """
    return count.product(
        2 + 2 + width, largest_matrix(model), "elements of the largest matrix: in 16 bit, product, update"
    )


class Gathers(NamedTuple):
    """Stage 3 gathers gradients and momenta whole, chunks as large as a reduce bucket (stage3.py:1697-1864)."""

    kept: int
    """Elements of gather buffers that stay from step to step."""
    most: int
    """Most elements alive beside those, in the step."""


@lru_cache(maxsize=256)
def gathers(model: Model, world_size: int, sub_group_size: int, bucket: int, width: int) -> Gathers:
    """Yield the buffers of ``width`` bytes an element; chunks do not cross sub-groups."""
    group = next((group for group in param_groups(model) if group.muon), None)
    if group is None or world_size == 1:
        clones = max(group.numels) if group else 0
        return Gathers(0, clones)
    buffers: dict[int, int] = {}
    most = 0
    for _ in range(2):  # in the second step the buffers of the first are there
        before = 0
        for chunk in _chunks(group.numels, world_size, sub_group_size, bucket):
            own = sum(-(-numel // world_size) for numel in chunk)
            whole = own * world_size
            scratch = own + whole
            kept = scratch * width <= CACHED_BYTES
            if kept:
                buffers.pop(own, None)
                while buffers and (sum(buffers.values()) + scratch) * width > CACHED_BYTES:
                    buffers.pop(next(iter(buffers)))
                buffers[own] = scratch
            extra = 0 if kept else scratch
            cached = sum(buffers.values())
            gradients = before + whole + extra
            momenta = whole + own + whole + max(extra, _round(chunk, world_size))
            most = max(most, cached + gradients, cached + momenta)
            before = whole
    kept_now = sum(buffers.values())
    return Gathers(kept_now, most - kept_now)


def _round(chunk: tuple[int, ...], world_size: int) -> int:
    """Count a round: each rank orthogonalizes one parameter of a round; unequal ones are padded and gathered anew
    (stage3.py:1738)."""
    most = 0
    for at in range(0, len(chunk), world_size):
        some = chunk[at : at + world_size]
        if len(some) < world_size or len(set(some)) > 1:
            most = max(most, 2 * (1 + world_size) * max(some))
    return most


def _chunks(numels: tuple[int, ...], world_size: int, sub_group_size: int, bucket: int) -> list[tuple[int, ...]]:
    found: list[tuple[int, ...]] = []
    chunk: list[int] = []
    inside = 0
    for numel in numels:
        if chunk and sum(chunk) + numel > bucket:
            found.append(tuple(chunk))
            chunk = []
        chunk.append(numel)
        inside += -(-numel // world_size)
        if inside >= sub_group_size:
            found.append(tuple(chunk))
            chunk, inside = [], 0
    if chunk:
        found.append(tuple(chunk))
    return found
