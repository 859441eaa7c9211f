"""Stage 3: how parameters are cut, grouped and reduced."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple

from dsconf.config.settings import Settings
from dsconf.memory.zero.coordinator import AtHooks
from dsconf.memory.zero.gradient_order import hooks
from dsconf.memory.zero.muon import param_groups
from dsconf.memory.zero.reduce_buckets import arrivals, runs_in_backward
from dsconf.model.spec import Model, Param


class Shards(NamedTuple):
    """Elements of one rank at stage 3; each parameter is padded to the world size (partition_parameters.py:1690)."""

    trained: int
    frozen: int
    largest: int
    """Largest slice of one parameter."""
    groups: tuple[tuple[int, int], ...]
    """(elements, tensors) of each sub-group: it closes when it reaches ``sub_group_size`` (stage3.py:1210-1233)."""
    muon: int = 0
    """Of ``trained``, the elements that Muon trains."""


def shards(model: Model, world_size: int, sub_group_size: int, optimizer: str = "adamw") -> Shards:
    """Return what a rank holds of ``model``; sub-groups do not cross the parameter groups of ``optimizer``."""
    return _shards(model, world_size, sub_group_size, optimizer == "muon")


@lru_cache(maxsize=1024)
def _shards(model: Model, world_size: int, sub_group_size: int, by_muon: bool) -> Shards:
    frozen = summed(model, lambda p: 0 if p.trainable else -(-p.numel // world_size))
    if by_muon:
        kinds = [(group.muon, group.numels) for group in param_groups(model)]
    else:
        kinds = [(False, tuple([numel for numel, _ in hooks(model).registered]))]
    trained = muon = largest = 0
    groups: list[tuple[int, int]] = []
    for is_muons, numels in kinds:
        pieces = [-(-numel // world_size) for numel in numels]
        elements = sum(pieces)
        trained += elements
        muon += elements if is_muons else 0
        largest = max(largest, *pieces) if pieces else largest
        groups += _cut(pieces, sub_group_size)
    return Shards(trained, frozen, largest, tuple(groups), muon)


def _cut(pieces: list[int], size: int) -> Iterator[tuple[int, int]]:
    """Yield (elements, tensors) of each sub-group: the first of ``pieces`` that are ``size`` together, and so on."""
    before = (0, *accumulate(pieces))
    start, end = 0, len(pieces)
    while start < end:
        stop = min(end, bisect_left(before, before[start] + size, start + 1))
        yield before[stop] - before[start], stop - start
        start = stop


@lru_cache(maxsize=1024)
def largest_group(model: Model, world_size: int, sub_group_size: int, optimizer: str) -> int:
    """Return the elements of a rank's largest sub-group."""
    return max([elements for elements, _ in shards(model, world_size, sub_group_size, optimizer).groups], default=0)


def on_gpu(settings: Settings, shard: Shards) -> tuple[tuple[int, int], ...]:
    """Return the sub-groups whose optimizer stays on the GPU although it is offloaded: the first (stage3.py:1100)."""
    if settings.offload_optimizer != "cpu":
        return ()
    return shard.groups[: int((1 - settings.offload_optimizer_ratio) * len(shard.groups))]


class BucketScatter(NamedTuple):
    """A bucket being reduce-scattered in the hook of the parameter that no longer fitted."""

    layer: int
    event: int
    unreduced_elements: int
    """Elements of that parameter's gradient, still outside the bucket."""
    copied: int
    """Elements flattened for the collective, padding included; 0 for one parameter that divides evenly."""
    filled: int
    """Elements in the bucket, where they are."""
    outside: int = 0
    """Of ``copied``, those of a gradient larger than the bucket, which is cast for the collective where it is."""
    beside: int = 0
    """Elements of gathered weights beside it, of a reduction in a layer where they are known."""
    hook: str = ""
    """Name of the parameter that no longer fitted, empty at the end of backward."""


def _covers(rival: BucketScatter, other: BucketScatter) -> bool:
    as_much = rival.copied >= other.copied and rival.filled >= other.filled and rival.beside >= other.beside
    return rival.layer >= other.layer and as_much


@lru_cache(maxsize=1024)
def bucket_scatters(
    model: Model, bucket: int, world_size: int, at_hooks: AtHooks | None = None
) -> tuple[BucketScatter, ...]:
    """Return the reductions of one backward that can be the highest (stage3.py:1583-1646,
    runtime/comm/coalesced_collectives.py:79-141): with ``at_hooks`` those beside more gathered weights too."""
    found: dict[tuple[int, bool, bool], list[BucketScatter]] = {}
    seen: dict[tuple[tuple[int, bool, bool], int, int, int], int] = {}
    numbers = {p.name: number for number, p in enumerate(model.parameters.layer)}
    order, before, padded = hooks(model).order, arrivals(model).before, _padded(model, world_size)
    for start, stop in runs_in_backward(model, bucket):
        layer, event, unreduced, name = -1, -1, 0, ""
        if stop < len(order):
            unreduced, _, layer, event, name = order[stop]
        filled, copied = before[stop] - before[start], padded[stop] - padded[start]
        if stop == start + 1 and copied == filled:
            copied = 0  # it divides evenly, and is reduced as it is
        outside = filled if filled > bucket else 0  # too large for the bucket: it waits as its own gradient
        copied += outside
        place = (event, layer < 0, layer == model.layers)
        beside = 0
        if at_hooks is not None and 0 <= layer < model.layers:
            beside = at_hooks.layers[layer][numbers[name.partition(" ")[2]]]
        # Most are like one in a layer higher up, which is a rival already or has one that covers it.
        if seen.get((place, copied, filled, beside), -2) >= layer:
            continue
        seen[place, copied, filled, beside] = layer
        rivals = found.setdefault(place, [])
        made = BucketScatter(layer, event, unreduced, copied, filled, outside=outside, beside=beside, hook=name)
        if not any(_covers(rival, made) for rival in rivals):
            rivals.append(made)
    return tuple(r for rivals in found.values() for r in rivals)


@lru_cache(maxsize=256)
def _padded(model: Model, world_size: int) -> tuple[int, ...]:
    """``Arrivals.before``, each gradient padded to the ranks."""
    numels = [-(-numel // world_size) * world_size for numel in arrivals(model).numels]
    return tuple(accumulate(numels, initial=0))


@lru_cache(maxsize=128)
def largest_param(model: Model) -> int:
    """Return the elements of the largest parameter."""
    return max(p.numel for p in (*model.parameters.before, *model.parameters.layer, *model.parameters.after))


def all_params(model: Model) -> tuple[Param, ...]:
    """Return every parameter, layer by layer, in registration order."""
    params = model.parameters
    return (*params.before, *(params.layer * params.layers), *params.after)


def summed(model: Model, size: Callable[[Param], int]) -> int:
    """Return the sum of ``size`` over every parameter: it is the same in each layer."""
    params = model.parameters
    ends = sum([size(p) for p in (*params.before, *params.after)])
    return ends + params.layers * sum([size(p) for p in params.layer])
