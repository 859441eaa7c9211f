"""What stays on the card from step to step: parameters, master weights, optimizer states, permanent buffers.

Files of DeepSpeed 0.19.8 are named at each function: runtime/zero/stage_1_and_2.py, runtime/zero/stage3.py,
runtime/fp16/fused_optimizer.py, runtime/fp16/unfused_optimizer.py and runtime/bf16_optimizer.py.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

from dsconf.memory.allocator import block
from dsconf.memory.timeline.common import Frame
from dsconf.memory.zero.gradient_order import hooks
from dsconf.memory.zero.muon import OwnedSlice, gathers, owned_slices, param_groups
from dsconf.memory.zero.optimizer_states import states_per_element, whole_states
from dsconf.memory.zero.quantized import frozen
from dsconf.memory.zero.subgroups import on_gpu, shards
from dsconf.model.spec import Model, Param

Terms = tuple[tuple[str, int], ...]
"""Names, and the bytes of each."""

_ADAM_STATES = 2
"""Moments of the Adam that trains what Muon leaves out."""


class Resident(NamedTuple):
    """Bytes alive between two steps."""

    terms: Terms
    optimizer: int
    """Of these, the optimizer states, which the first step makes."""


def resident(frame: Frame, rank: int) -> Resident:
    """Return what ``rank`` holds from the second step on, before the forward begins."""
    terms, optimizer = _RESIDENT[frame.wrapper](frame, rank)
    present = [(name, size) for name, size in (*terms, ("buffers", buffers(frame))) if size]
    return Resident(tuple(present), optimizer)


def buffers(frame: Frame) -> int:
    """Return the tensors that every layer has beside its parameters, which no stage shards.

    GPT-Neo has a square causal mask of bools, GPT-J a table of sines, which the engine casts with the module
    (transformers: GPTNeoSelfAttention.__init__, GPTJAttention.__init__; runtime/engine.py:1454).
    """
    model = frame.model
    rows = model.layers * model.positions
    if model.family == "gpt_neo":
        return frame.bytes.product(1, rows * model.positions, f"of causal masks in {model.layers} layers")
    if model.family == "gptj":
        return frame.bytes.product(frame.width.model, rows * model.rotary_dim, f"sines in {model.layers} layers")
    return frame.bytes.total()


def each_in_a_block(frame: Frame, width: int, why: str, without: int = 0) -> int:
    """Return all trained parameters at ``width`` bytes an element, each tensor in a block of its own.

    ``without``: elements that are left out, but for the rounding of their block.
    """
    elements = frame.hooks.total
    rest = _in_blocks(frame.model, width) - width * elements
    return frame.bytes.total(
        (width, elements - without, why), (1, rest, "of rounding each tensor to the allocator's blocks")
    )


@lru_cache(maxsize=256)
def _in_blocks(model: Model, width: int) -> int:
    return sum([block(width * numel) for numel, _ in hooks(model).registered])


def frozen_parameters(frame: Frame) -> int:
    """Return the parameters that are not trained, as they are stored."""
    if frame.model.num_params == frame.hooks.total:
        return 0
    stored = frozen(frame.model, frame.job.workload.quantize, frame.width.model)
    return frame.bytes.total(
        (stored.width, stored.kept, "elements of frozen parameters"),
        (1, stored.packed, f"of linear weights in {frame.job.workload.quantize}"),
        (1, stored.scales, "of scales of the quantized weights"),
    )


def _share(frame: Frame) -> str:
    """Say which elements a slice is of."""
    return f"elements: {frame.hooks.total:,} trained parameters ÷ {frame.world_size} ranks"


def _zero12(frame: Frame, rank: int) -> Resident:
    """List one flat buffer of parameters on every rank; master and states of its slice (stage_1_and_2.py:441, 534,
    560)."""
    settings, width = frame.settings, frame.width
    groups = owned_slices(frame.model, settings.optimizer, frame.world_size, rank)
    flat = [frame.bytes.in_a_block(width.model, g.slice.elements * frame.world_size, _PADDED) for g in groups]
    terms = [("parameters", frame.bytes.together(*flat)), ("frozen parameters", frozen_parameters(frame))]
    if settings.offload_optimizer != "none":
        staging = frame.bytes.in_a_block(width.model, frame.hooks.largest, "elements of the largest parameter")
        return Resident((*terms, ("offload staging buffer", staging)), 0)
    masters = [frame.bytes.in_a_block(width.master, g.slice.elements, _share(frame)) for g in groups]
    terms.append(("master weights", frame.bytes.together(*masters)))
    if settings.optimizer == "muon":
        states = optimizer_states_with_muon(frame, groups)
        staged = muons_staged_momentum(frame, groups)
        return Resident((*terms, ("optimizer states", states), ("Muon's staged momentum", staged)), states + staged)
    states = frame.bytes.product(width.state, groups[0].slice.elements, _share(frame))
    if states_per_element(settings).at_start:
        whole = optimizer_states_of_the_whole_model(frame)
        return Resident((*terms, ("optimizer states", states), ("optimizer states of the whole model", whole)), 0)
    return Resident((*terms, ("optimizer states", states)), states)


_PADDED = "trained parameters, padded to twice the ranks"


def optimizer_states_with_muon(frame: Frame, groups: tuple[OwnedSlice, ...]) -> int:
    """Return the momentum of Muon's matrices, whole and in the gradient's type, and Adam's moments of the rest
    (stage_1_and_2.py:2805-2836)."""
    adam = sum([g.slice.elements for g in groups if not g.muon])
    return frame.bytes.total(
        (frame.width.model, _whole_matrices(groups), "elements of whole matrices: Muon's momentum"),
        (_ADAM_STATES * frame.width.master, adam, "elements of the rest of the slice: Adam's two moments"),
    )


def muons_staged_momentum(frame: Frame, groups: tuple[OwnedSlice, ...]) -> int:
    """Return the momentum once more: a step may be discarded (stage_1_and_2.py:2989-3004)."""
    return frame.bytes.product(frame.width.model, _whole_matrices(groups), "elements of whole matrices")


def _whole_matrices(groups: tuple[OwnedSlice, ...]) -> int:
    return sum([g.slice.whole for g in groups if g.muon])


def optimizer_states_of_the_whole_model(frame: Frame) -> int:
    """Return the sums that torch's Adagrad makes when it is built; it is built anew for the slices
    (stage_1_and_2.py:946)."""
    return frame.bytes.product(frame.width.model, frame.hooks.total, "trained parameters")


def _zero3(frame: Frame, rank: int) -> Resident:
    """Everything in slices; gradient buffer and reduce bucket are permanent (stage3.py:780-801, 966, 1170)."""
    settings, width = frame.settings, frame.width
    shard = shards(frame.model, frame.world_size, settings.sub_group_size, settings.optimizer)
    terms: list[tuple[str, int]] = []
    if settings.offload_param == "none":
        terms.append(("parameters", frame.bytes.in_a_block(width.model, shard.trained, _slices(frame))))
        terms.append(("frozen parameters", frozen_parameters_in_slices(frame, shard.frozen)))
    in_first_step = 0
    if settings.offload_optimizer == "none":
        terms.append(("master weights", frame.bytes.in_a_block(width.master, shard.trained, _slices(frame))))
        terms.append(("gradients", frame.bytes.in_a_block(width.accumulate, shard.trained, _slices(frame))))
        states, in_first_step = optimizer_states_in_slices(frame, shard.trained - shard.muon, shard.muon)
        kept = muons_gather_buffers(frame)
        in_first_step += kept
        terms += [("Muon's gather buffers", kept), ("optimizer states", states)]
        if states_per_element(settings).at_start:
            in_first_step = 0
            if frame.job.workload.zero_init is False:
                terms.append(("optimizer states of the whole model", optimizer_states_of_the_whole_model(frame)))
    if stay := sum([elements for elements, _ in on_gpu(settings, shard)]):
        each = frame.bytes.product(2 * width.master + width.state, stay, _on_gpu(frame))
        terms.append(("optimizer of the sub-groups on the GPU", each))
    if settings.contiguous_gradients:
        terms.append(("reduce bucket", permanent_reduce_bucket(frame)))
    return Resident(tuple(terms), in_first_step)


def _slices(frame: Frame) -> str:
    return f"elements: {frame.hooks.total:,} trained parameters ÷ {frame.world_size} ranks, each padded"


def _on_gpu(frame: Frame) -> str:
    ratio = frame.settings.offload_optimizer_ratio
    return f"elements of the first {1 - ratio:.0%} of the sub-groups: master, gradient and states"


def frozen_parameters_in_slices(frame: Frame, elements: int) -> int:
    """Return one rank's ``elements``; the scales of quantized weights are no parameters and stay whole."""
    quantize = frame.job.workload.quantize
    if quantize is None:
        return frame.bytes.product(
            frame.width.model, elements, f"elements of frozen parameters ÷ {frame.world_size} ranks"
        )
    stored = frozen(frame.model, quantize, frame.width.model)
    part = -(-stored.weights // frame.world_size)
    return frame.bytes.total(
        (1, part, f"of {stored.weights:,} of quantized and other frozen weights ÷ {frame.world_size} ranks"),
        (1, stored.scales, "of scales of the quantized weights, whole"),
    )


def optimizer_states_in_slices(frame: Frame, elements: int, by_muon: int) -> tuple[int, int]:
    """Return stage 3's states, and of these what the first step makes.

    Muon's momentum is made with the master weights, in the type of the collectives (stage3.py:1066-1079).
    """
    width = frame.width
    each = _ADAM_STATES * width.master if frame.settings.optimizer == "muon" else width.state
    states = frame.bytes.product(each, elements, "elements of the slices")
    momentum = frame.bytes.product(width.communicate, by_muon, "elements of the slices of matrices: Muon's momentum")
    return frame.bytes.together(states, momentum), states


def muons_gather_buffers(frame: Frame) -> int:
    """Return what stage 3 keeps to gather Muon's matrices (stage3.py:2098)."""
    settings, width = frame.settings, frame.width.communicate
    if settings.optimizer != "muon":
        return frame.bytes.total()
    found = gathers(frame.model, frame.world_size, settings.sub_group_size, settings.reduce_bucket_size, width)
    return frame.bytes.product(width, found.kept, "elements of the chunks that 256 MiB hold")


def permanent_reduce_bucket(frame: Frame) -> int:
    """Return stage 3's reduce bucket, one for each type that gradients are reduced in (stage3.py:470-477, 780)."""
    size = frame.settings.reduce_bucket_size
    return frame.bytes.together(
        *[frame.bytes.in_a_block(width, size, "elements of reduce_bucket_size") for width in bucket_widths(frame)]
    )


def bucket_widths(frame: Frame) -> tuple[int, ...]:
    """Return the bytes of an element of each reduce bucket.

    Under torch_autocast the weights of linear layers are reduced in 16 bit, the rest in fp32
    (runtime/torch_autocast.py:32-57); stages 1 and 2 make both buckets in the model's type (stage_1_and_2.py:3256).
    """
    three = frame.settings.stage == 3
    if frame.settings.precision != "autocast":
        return (frame.width.communicate if three else frame.width.model,)
    return tuple([(2 if low else 4) if three else 4 for low in _kinds_reduced(frame.model)])


@lru_cache(maxsize=128)
def _kinds_reduced(model: Model) -> list[bool]:
    """Return whether ``model`` has gradients that are not reduced in 16 bit, and such that are."""
    params = model.parameters
    return sorted({_reduced_low(p) for p in (*params.before, *params.layer, *params.after) if p.trainable})


def _reduced_low(param: Param) -> bool:
    """Return whether torch_autocast marks ``param``: it belongs to a torch.nn.Linear, its bias included."""
    return param.kind in ("linear", "head", "lora")


def _fp16(frame: Frame, rank: int) -> Resident:
    """Stage 0 in 16 bit: flat parameters, fp32 master and moments, made at the start (fused_optimizer.py:89-135)."""
    elements, why = frame.hooks.total, "trained parameters"
    terms = (
        ("parameters", frame.bytes.in_a_block(frame.width.model, elements, why)),
        ("frozen parameters", frozen_parameters(frame)),
        ("master weights", frame.bytes.in_a_block(4, elements, why)),
        ("optimizer states", frame.bytes.product(frame.width.state, elements, why)),
    )
    return Resident(terms, 0)


def _unfused(frame: Frame, rank: int) -> Resident:
    """Stage 0 in 16 bit with any other optimizer: the same, parameter by parameter (unfused_optimizer.py:71-88)."""
    masters = each_in_a_block(frame, 4, "trained parameters")
    terms = [
        ("parameters", each_in_a_block(frame, frame.width.model, "trained parameters")),
        ("frozen parameters", frozen_parameters(frame)),
        ("master weights", masters),
    ]
    states, elements = optimizer_states_of_parameters(frame, 4), frame.hooks.total
    if states:
        # As many blocks again as the master weights took beyond their elements.
        rest = states // 4 // elements * (masters - 4 * elements)
        terms.append(("optimizer states", frame.bytes.together(states, frame.bytes.product(1, rest, _EACH_STATE))))
    if states_per_element(frame.settings).at_start:
        terms.append(("optimizer states of the whole model", optimizer_states_of_the_whole_model(frame)))
    return Resident(tuple(terms), 0)


_EACH_STATE = "of rounding each state to the allocator's blocks"


def optimizer_states_of_parameters(frame: Frame, width: int) -> int:
    """Return states of ``width`` bytes an element where the optimizer sees the parameters one by one."""
    settings = frame.settings
    if settings.optimizer == "muon":
        return frame.bytes.total(
            *[
                (width * (1 if g.muon else _ADAM_STATES), g.total, "elements of a group of Muon's")
                for g in param_groups(frame.model)
            ]
        )
    elements = whole_states(settings, frame.model, frame.hooks.total)
    states = states_per_element(settings).states
    if elements == states * frame.hooks.total:
        return frame.bytes.product(states * width, frame.hooks.total, "trained parameters")
    return frame.bytes.product(width, elements, "rows and columns of the trained parameters")


def _bf16(frame: Frame, rank: int) -> Resident:
    """Stage 1 with fp32 accumulation: a whole fp32 gradient buffer on every rank (bf16_optimizer.py:166-191)."""
    width, ranks, optimizer = frame.width, frame.world_size, frame.settings.optimizer
    groups = owned_slices(frame.model, optimizer, ranks, rank)
    elements = sum([g.slice.elements for g in groups]) * ranks
    states = frame.bytes.product(width.state, groups[0].slice.elements, _share(frame))
    if optimizer == "muon":
        states = frame.bytes.total(
            *[
                (4 if g.muon else 4 * _ADAM_STATES, g.slice.elements, "elements of this rank's slice of a group")
                for g in groups
            ]
        )
    terms = [
        ("parameters", frame.bytes.in_a_block(width.model, elements, _PADDED)),
        ("frozen parameters", frozen_parameters(frame)),
        ("gradients", frame.bytes.in_a_block(width.accumulate, elements, _PADDED)),
        (
            "master weights",
            frame.bytes.together(*[frame.bytes.in_a_block(4, g.slice.elements, _share(frame)) for g in groups]),
        ),
        ("optimizer states", states),
    ]
    if states_per_element(frame.settings).at_start:
        terms.append(("optimizer states of the whole model", optimizer_states_of_the_whole_model(frame)))
    return Resident(tuple(terms), states)


def _plain(frame: Frame, rank: int) -> Resident:
    """List what stays in fp32 at stage 0, or DDP: the optimizer works on the parameters themselves.

    Of several states the first finds the room that the gradients' flat copy left; the others take new blocks.
    """
    width, elements = frame.width.model, frame.hooks.total
    parameters = each_in_a_block(frame, width, "trained parameters")
    states = optimizer_states_of_parameters(frame, width)
    copies = max(0, states // (width * elements) - 1) if elements else 0
    rounding = frame.bytes.product(1, copies * (parameters - width * elements), _EACH_STATE)
    states = frame.bytes.together(states, rounding)
    terms = [("parameters", parameters), ("frozen parameters", frozen_parameters(frame))]
    if frame.settings.engine == "ddp" and frame.world_size > 1:  # a rank alone trains the bare module
        terms.append(("DDP buckets", frame.bytes.product(width, elements, "trained parameters")))
    terms.append(("optimizer states", states))
    return Resident(tuple(terms), 0 if states_per_element(frame.settings).at_start else states)


_RESIDENT: dict[str, Callable[[Frame, int], Resident]] = {
    "zero12": _zero12,
    "zero3": _zero3,
    "fp16": _fp16,
    "unfused": _unfused,
    "bf16": _bf16,
    "none": _plain,
    "ddp": _plain,
}
