"""A live ``torch.nn.Module`` as a model: its parameters, and what a trace of it says about its activations.

The module runs once forward and backward on fake tensors (memory/trace/tracer.py), for each size of batch, type and
kind of checkpointing asked for. Tensors have no values there: a module whose sizes depend on them cannot
be traced.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from dsconf.errors import InputError
from dsconf.memory.autograd.figures import Activations, Call, ModuleOrder, Shape
from dsconf.memory.autograd.tape import Peaks
from dsconf.memory.trace.blocks import ParamPlace, Split, find, parameters, places, whole
from dsconf.memory.trace.example_batch import Arguments, arguments, hides, sizes, token_ids
from dsconf.memory.trace.ledger import Trace
from dsconf.model.spec import Model

if TYPE_CHECKING:
    from torch import nn

FAMILY = "module"
"""``Model.family`` of a live module."""


@dataclass(frozen=True, eq=False)
class Source:
    """A live module and how to run it."""

    module: nn.Module
    batch: Arguments | None
    """Positional and named arguments; None: token ids of the size asked for."""
    split: Split
    where: Mapping[str, ParamPlace]


@dataclass(frozen=True, eq=False, kw_only=True)
class TracedModel(Model):
    """A model that is a live module."""

    source: Source
    trace: Trace
    """The first trace: the order of its modules and gradients does not depend on sizes."""


def read_module(
    module: object,
    batch: object = None,
    *,
    micro_batch_size: int | None = None,
    seq_len: int = 2048,
    precision: str = "bf16",
) -> TracedModel:
    """Return the model that ``module`` is. It is left as it is, and may lie on any device, ``meta`` included.

    Args:
        module: what is trained, weights of any type; frozen parameters stay frozen.
        batch: one micro-batch as ``forward`` takes it: a mapping of named arguments, a tuple of positional ones, or
            one tensor. Only shapes and types count. It may be left out where ``module.config`` has a ``vocab_size``:
            then ``input_ids``, and ``labels`` where ``forward`` knows them, of ``micro_batch_size`` × ``seq_len``.
        micro_batch_size, seq_len: size of that batch.
        precision: ``bf16``, ``fp16`` or ``fp32``: the type of the first trace.

    The loss is the output's ``loss``; the output itself where it is one number; else the sum of its tensors.

    Raises:
        InputError: not a module, without parameters to train, a batch that cannot be used, or a forward that fails.
    """
    found = _module(module)
    example = None if batch is None else arguments(batch)
    if example is None and not _vocabulary(found):
        raise InputError(
            f"batch: give the arguments of {type(found).__name__}'s forward; it has no config with a vocab_size to "
            "make token ids from"
        )
    for word, given in (("--micro-batch-size", micro_batch_size), ("--seq-len", seq_len)):
        if given is not None and (isinstance(given, bool) or not isinstance(given, int) or given <= 0):
            raise InputError(f"{word}: {given!r} is not a positive whole number")
    size, steps = sizes(example) if example else (micro_batch_size or 1, seq_len)
    shape = Shape(size, steps, 4 if precision == "fp32" else 2, precision == "fp16", "")
    source = _source(found, example, find(found))
    trace = _trace(source, shape, "")
    if not _in_order(trace, source.split):
        source = _source(found, example, whole(found))
        trace = _trace(source, shape, "")
    return _model(source, trace)


def _module(module: object) -> nn.Module:
    try:
        from torch import nn
    except ImportError:
        raise InputError("module: torch cannot be imported, so there is no torch.nn.Module to trace") from None
    if not isinstance(module, nn.Module):
        raise InputError(f"module: is of type {type(module).__name__}, not a torch.nn.Module")
    if not any(param.requires_grad for param in module.parameters()):
        raise InputError(f"module: {type(module).__name__} has no parameter that requires a gradient")
    return module


def _vocabulary(module: nn.Module) -> int:
    return int(getattr(getattr(module, "config", None), "vocab_size", None) or 0)


def _source(module: nn.Module, example: Arguments | None, split: Split) -> Source:
    return Source(module, example, split, places(module, split))


def _in_order(trace: Trace, split: Split) -> bool:
    """Say whether every block ran once, one after the other."""
    members = set(split.members)
    return [v.module for v in trace.visits if v.enter and v.module in members] == list(split.members)


def _model(source: Source, trace: Trace) -> TracedModel:
    module, layers = source.module, source.split.layers
    hidden = getattr(getattr(module, "config", None), "hidden_size", None)
    vocab = _vocabulary(module)
    return TracedModel(
        name=type(module).__name__,
        family=FAMILY,
        layers=layers,
        hidden=hidden if isinstance(hidden, int) else 0,
        heads=0,
        kv_heads=0,
        head_dim=0,
        mlp=0,
        vocab=vocab,
        positions=0,
        tied=False,
        parameters=parameters(module, dict(source.where), layers),
        source=source,
        trace=trace,
    )


def _traced(model: Model) -> TracedModel:
    assert isinstance(model, TracedModel)
    return model


def batch_sizes(model: Model, micro_batch_size: int | None, seq_len: int) -> tuple[int, int]:
    """Micro-batch and sequence length that ``model`` is trained with: an example batch has its own.

    Raises:
        InputError: ``micro_batch_size`` (of the option or the config) is not that of the example batch.
    """
    model = _traced(model)
    if model.source.batch is None:
        return micro_batch_size or 1, seq_len
    size, steps = sizes(model.source.batch)
    if micro_batch_size not in (None, size):
        raise InputError(f"--micro-batch-size: {micro_batch_size}, but batch holds {size}; give a batch of that size")
    return size, steps


def _trace(source: Source, shape: Shape, replay: str) -> Trace:
    """Trace a run of the module: of ``shape`` only what it depends on, since its attention is the module's own."""
    return _run(source, Shape(shape.batch, shape.seq, shape.width, shape.half, "", shape.autocast), replay)


@lru_cache(maxsize=64)
def _run(source: Source, shape: Shape, replay: str) -> Trace:
    import torch

    from dsconf.memory.trace.hooks import TracePlan
    from dsconf.memory.trace.tracer import run

    lower = torch.float16 if shape.half else torch.bfloat16
    dtype = torch.float32 if shape.width == 4 else lower
    args, kwargs = source.batch or token_ids(source.module, shape)
    plan = TracePlan(
        source.module,
        args,
        kwargs,
        blocks=source.split.ends,
        checkpointed=source.split.checkpointed if replay else (),
        reentrant=replay == "reentrant",
        dtype=dtype,
        autocast=lower if shape.autocast else None,
        padded=hides(kwargs.get("attention_mask")),
    )
    return run(plan)


def arrivals(model: Model) -> list[tuple[ParamPlace, int, int]]:
    """Return each parameter whose gradient arrives, in that order: its place, the part that makes it, its number
    there."""
    model = _traced(model)
    counts: dict[int, int] = {}
    found: list[tuple[ParamPlace, int, int]] = []
    for arrival in model.trace.arrivals:
        event = counts.get(arrival.part, 0)
        found.append((model.source.where[arrival.param], arrival.part, event))
        counts[arrival.part] = event + 1
    return found


def traced_activations(model: Model, shape: Shape, replay: str) -> Activations:
    """Return the activations of the module for ``shape`` and ``replay``, as ``activations`` has them."""
    model = _traced(model)
    trace, layers = _trace(model.source, shape, replay), model.layers
    layer = sum(trace.kept[1:-1]) // layers
    bottom = sum(trace.kept[:-1]) - layers * layer
    bases = [bottom, *(bottom + i * layer for i in range(layers + 1))]
    before, *blocks, head = (max(0, b - base) for b, base in zip(trace.forward_peak, bases, strict=True))
    first, *inside, last = (Peaks(*pair) for pair in zip(*_heights(trace, bases), strict=True))
    live = _live(trace, bases)
    return Activations(
        bottom=bottom,
        forward_only=trace.forward_only,
        layer=layer,
        layers=layers,
        head=trace.kept[-1],
        logits=trace.outputs,
        layer_forward=max(0, max(before, *blocks) - trace.forward_only),
        head_forward=head,
        layer_backward=Peaks(max(one.grads_freed for one in inside), max(one.grads_kept for one in inside)),
        head_backward=last,
        layer_live=live[0],
        head_live=live[1],
        embedding_live=live[-1],
        tied=trace.carried,
        before_backward=first.grads_freed,
    )


def _heights(trace: Trace, bases: list[int]) -> tuple[list[int], list[int]]:
    """Return the peaks of each part's backward over what is kept below it, and over the carried gradient once that is
    made."""
    under = [*(base + trace.carried for base in bases[:-1]), bases[-1]]
    reduced, grads_kept = (
        [max(0, peak - base) for peak, base in zip(peaks, under, strict=True)]
        for peaks in (trace.backward_peak, trace.grads_kept_peak)
    )
    return reduced, grads_kept


def _live(trace: Trace, bases: list[int]) -> dict[int, tuple[int, ...]]:
    """Return the bytes alive at each hook, by 0 (the most of any block), 1 (after the blocks) and -1 (before them)."""
    events: dict[int, list[int]] = {}
    found: dict[int, list[int]] = {-1: [], 0: [], 1: []}
    for arrival in trace.arrivals:
        part = arrival.part
        number = len(events.setdefault(part, []))
        carried = trace.carried if part >= 0 else 0
        events[part].append(max(0, arrival.live - bases[part + 1] - carried))
        kind = found[-1 if part < 0 else 1 if part == len(bases) - 2 else 0]
        if number == len(kind):
            kind.append(0)
        kind[number] = max(kind[number], events[part][number])
    return {kind: tuple(values) for kind, values in found.items()}


def traced_modules(model: Model, count: int) -> ModuleOrder:
    """Return the modules as forward called them, of ``model`` with ``count`` blocks, each like the first."""
    model = _traced(model)
    params = model.parameters
    first, size, skipped = len(params.before), len(params.layer), model.layers - count
    numbers = {id(param): i for i, param in enumerate(model.source.module.parameters())}

    def number(index: int, layer: int) -> int:
        if index < first:
            return index
        if index >= first + model.layers * size:
            return index - skipped * size
        return first + layer * size + (index - first) % size

    def call(enter: bool, layer: int, name: str) -> Call:
        own = model.source.module.get_submodule(name).parameters(recurse=False)
        return Call(enter, layer, tuple(number(numbers[id(param)], max(layer, 0)) for param in own))

    def part(which: int, layer: int) -> tuple[Call, ...]:
        return tuple(call(v.enter, layer, v.module) for v in model.trace.visits if v.part == which)

    numels = tuple(p.numel for p in (*params.before, *(params.layer * count), *params.after))
    blocks = tuple(part(0, i) for i in range(count))
    return ModuleOrder(numels, part(-1, -1), blocks, part(model.layers, count))
