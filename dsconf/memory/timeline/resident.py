"""What stays on the card from step to step: parameters, master weights, optimizer states, permanent buffers.

Ψ trained elements, F frozen elements, N ranks. Line references are to DeepSpeed 0.19.8: Z12
runtime/zero/stage_1_and_2.py, Z3 runtime/zero/stage3.py, FO runtime/fp16/fused_optimizer.py, UO
runtime/fp16/unfused_optimizer.py, BF runtime/bf16_optimizer.py.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from dsconf.config.settings import Settings
from dsconf.job import Job
from dsconf.memory.allocator import block
from dsconf.memory.zero.gradient_order import hooks
from dsconf.memory.zero.muon import Part, gathers, halves, parts
from dsconf.memory.zero.optimizer_states import kept, whole_states
from dsconf.memory.zero.quantized import frozen
from dsconf.memory.zero.subgroups import on_gpu, shards
from dsconf.memory.zero.wrapper import Widths, widths, wrapper
from dsconf.model.spec import Model, Param

Terms = tuple[tuple[str, int], ...]

_ADAM_STATES = 2
"""Moments of the Adam that trains what Muon leaves out."""


@lru_cache(maxsize=256)
def tensors(model: Model, width: int) -> int:
    """Bytes of all trained parameters at ``width`` bytes an element, each tensor in a block of its own."""
    return sum(block(width * numel) for numel, _ in hooks(model).registered)


class Resident(NamedTuple):
    """Bytes alive between two steps."""

    terms: Terms
    optimizer: int
    """Of these, the optimizer states, which the first step makes."""


def resident(job: Job, rank: int) -> Resident:
    """What ``rank`` holds from the second step on, before the forward begins."""
    terms, optimizer = _RESIDENT[wrapper(job.settings)](job, rank)
    return Resident((*terms, *_buffers(job)), optimizer)


def _buffers(job: Job) -> Terms:
    """Tensors every layer has beside its parameters, which no stage shards.

    GPT-Neo has a square causal mask of bools, GPT-J a table of sines, which the engine casts with the module
    (transformers: GPTNeoSelfAttention.__init__, GPTJAttention.__init__; engine.py:1454).
    """
    model = job.model
    if model.family not in ("gpt_neo", "gptj"):
        return ()
    elements = model.layers * model.positions
    sizes = {"gpt_neo": elements * model.positions, "gptj": elements * model.rotary_dim * widths(job.settings).model}
    return (("buffers", sizes[model.family]),)


def _frozen(job: Job) -> Terms:
    if job.model.num_params == hooks(job.model).total:
        return ()
    found = frozen(job.model, job.workload.quantize, widths(job.settings).model)
    return (("frozen parameters", found.weights + found.constants),)


def _frozen_slice(job: Job, elements: int) -> int:
    """Bytes of one rank's ``elements`` at stage 3; the scales of quantized weights are no parameters and stay whole."""
    width, quantize = widths(job.settings).model, job.workload.quantize
    if quantize is None:
        return width * elements
    found = frozen(job.model, quantize, width)
    return -(-found.weights // job.cluster.world_size) + found.constants


def _zero12(job: Job, rank: int) -> Resident:
    """Parameters in one flat buffer, replicated; master and states of the own slice (Z12:441, 534, 560)."""
    settings, width, ranks = job.settings, widths(job.settings), job.cluster.world_size
    known = hooks(job.model)
    groups = parts(job.model, settings.optimizer, ranks, rank)
    terms: list[tuple[str, int]] = [
        ("parameters", sum([block(width.model * one.slice.elements * ranks) for one in groups])),
        *_frozen(job),
    ]
    if settings.offload_optimizer != "none":
        return Resident((*terms, ("offload staging buffer", block(width.model * known.largest))), 0)
    terms.append(("master weights", sum([block(width.master * one.slice.elements) for one in groups])))
    if settings.optimizer == "muon":
        found = _muon_states(groups, width)
        return Resident((*terms, *found), sum(size for _, size in found))
    states = width.state * groups[0].slice.elements
    if states:
        terms.append(("optimizer states", states))
    if kept(settings).at_start:
        terms.append(_whole_sums(job))
        return Resident(tuple(terms), 0)
    return Resident(tuple(terms), states)


def _muon_states(groups: tuple[Part, ...], width: Widths) -> Terms:
    """Momentum of whole matrices in the gradient's type, twice: a step may be discarded (Z12:2805-2836, 2989-3004)."""
    momentum = sum(width.model * one.slice.whole for one in groups if one.muon)
    adam = sum(_ADAM_STATES * width.master * one.slice.elements for one in groups if not one.muon)
    return (("optimizer states", momentum + adam), ("Muon's staged momentum", momentum))


def _whole_sums(job: Job) -> tuple[str, int]:
    """torch's Adagrad makes its sums when it is built, from the model; it is built anew for the slices (Z12:946)."""
    return ("optimizer states of the whole model", widths(job.settings).model * hooks(job.model).total)


def _zero3(job: Job, rank: int) -> Resident:
    """Everything in slices; gradient buffer and reduce bucket are permanent (Z3:780-801, 966, 1170)."""
    settings, width, ranks = job.settings, widths(job.settings), job.cluster.world_size
    shard = shards(job.model, ranks, settings.sub_group_size, settings.optimizer)
    terms: list[tuple[str, int]] = []
    if settings.offload_param == "none":
        terms.append(("parameters", block(width.model * shard.trained)))
        if shard.frozen:
            terms.append(("frozen parameters", _frozen_slice(job, shard.frozen)))
    states = buffers = 0
    if settings.offload_optimizer == "none":
        terms.append(("master weights", block(width.master * shard.trained)))
        terms.append(("gradients", block(width.accumulate * shard.trained)))
        states = width.state * (shard.trained - shard.muon)
        if settings.optimizer == "muon":
            states = _ADAM_STATES * width.master * (shard.trained - shard.muon)
            found = gathers(job.model, ranks, settings.sub_group_size, settings.reduce_bucket_size, width.communicate)
            buffers = width.communicate * found.kept
            terms.append(("Muon's gather buffers", buffers))
        if states or shard.muon:
            # Muon's momentum is made with the master weights, in the type of the collectives (Z3:1066-1079).
            terms.append(("optimizer states", states + width.communicate * shard.muon))
        if kept(settings).at_start:
            states = 0
            if job.workload.zero_init is False:
                terms.append(_whole_sums(job))
    if stay := sum(elements for elements, _ in on_gpu(settings, shard)):
        terms.append(("optimizer of the sub-groups on the GPU", (2 * width.master + width.state) * stay))
    if settings.contiguous_gradients:
        buckets = bucket_widths(settings, width, job.model)
        terms.append(("reduce bucket", sum(block(one * settings.reduce_bucket_size) for one in buckets)))
    del rank
    return Resident(tuple(terms), states + buffers)


def bucket_widths(settings: Settings, width: Widths, model: Model) -> tuple[int, ...]:
    """Bytes of an element of each reduce bucket: one for each type that gradients are reduced in (Z3:470-477, Z12:610).

    Under torch_autocast the weights of linear layers are reduced in 16 bit, the rest in fp32
    (runtime/torch_autocast.py:32-57); stages 1 and 2 make both buckets in the model's type (Z12:3256).
    """
    three = settings.stage == 3
    if settings.precision != "autocast":
        return (width.communicate if three else width.model,)
    return tuple([(2 if low else 4) if three else 4 for low in _kinds_reduced(model)])


@lru_cache(maxsize=128)
def _kinds_reduced(model: Model) -> list[bool]:
    """Whether ``model`` has gradients that are not reduced in 16 bit, and such that are."""
    params = model.parameters
    return sorted({_reduced_low(p) for p in (*params.before, *params.layer, *params.after) if p.trainable})


def _reduced_low(param: Param) -> bool:
    """Whether torch_autocast marks ``param``: it belongs to a torch.nn.Linear, its bias included."""
    return param.kind in ("linear", "head", "lora")


def _fp16(job: Job, rank: int) -> Resident:
    """Stage 0 in 16 bit: flat parameters, fp32 master and moments, all made at the start (FO:89-135)."""
    width, total = widths(job.settings), hooks(job.model).total
    del rank
    terms = (
        ("parameters", block(width.model * total)),
        *_frozen(job),
        ("master weights", block(4 * total)),
        ("optimizer states", width.state * total),
    )
    return Resident(terms, 0)


def _unfused(job: Job, rank: int) -> Resident:
    """Stage 0 in 16 bit with any other optimizer: the same, parameter by parameter (UO:71-88)."""
    width, total = widths(job.settings), hooks(job.model).total
    del rank
    terms: list[tuple[str, int]] = [
        ("parameters", tensors(job.model, width.model)),
        *_frozen(job),
        ("master weights", tensors(job.model, 4)),
    ]
    if states := _states_of_parameters(job):
        # As many blocks again as the master weights took beyond their elements.
        terms.append(("optimizer states", states + states // 4 // total * (tensors(job.model, 4) - 4 * total)))
    if kept(job.settings).at_start:
        terms.append(_whole_sums(job))
    return Resident(tuple(terms), 0)


def _states_of_parameters(job: Job) -> int:
    """Bytes of fp32 states where the optimizer sees the parameters one by one."""
    if job.settings.optimizer == "muon":
        return sum((4 if half.muon else 4 * _ADAM_STATES) * half.total for half in halves(job.model))
    return 4 * whole_states(job.settings, job.model, hooks(job.model).total)


def _bf16(job: Job, rank: int) -> Resident:
    """Stage 1 with fp32 accumulation: a whole fp32 gradient buffer on every rank (BF:166-191)."""
    width, ranks = widths(job.settings), job.cluster.world_size
    groups = parts(job.model, job.settings.optimizer, ranks, rank)
    total = sum(one.slice.elements for one in groups) * ranks
    states = sum((4 * _ADAM_STATES if one.muon is False else 4) * one.slice.elements for one in groups)
    if job.settings.optimizer != "muon":
        states = width.state * groups[0].slice.elements
    terms: list[tuple[str, int]] = [
        ("parameters", block(width.model * total)),
        *_frozen(job),
        ("gradients", block(width.accumulate * total)),
        ("master weights", sum(block(4 * one.slice.elements) for one in groups)),
    ]
    if states:
        terms.append(("optimizer states", states))
    if kept(job.settings).at_start:
        terms.append(_whole_sums(job))
    return Resident(tuple(terms), states)


def _plain(job: Job, rank: int) -> Resident:
    """fp32 at stage 0, or DDP: the optimizer works on the parameters themselves.

    Of several states the first finds the room that the gradients' flat copy left; the others take new blocks.
    """
    width, total = widths(job.settings), hooks(job.model).total
    parameters = tensors(job.model, width.model)
    states = _states_of_parameters(job) * width.model // 4
    copies = max(0, states // (width.model * total) - 1) if total else 0
    states += copies * (parameters - width.model * total)
    del rank
    terms: list[tuple[str, int]] = [("parameters", parameters), *_frozen(job)]
    if job.settings.engine == "ddp" and job.cluster.world_size > 1:  # a rank alone trains the bare module
        terms.append(("DDP buckets", width.model * total))
    if states:
        terms.append(("optimizer states", states))
    return Resident(tuple(terms), 0 if kept(job.settings).at_start else states)


_RESIDENT = {
    "zero12": _zero12,
    "zero3": _zero3,
    "fp16": _fp16,
    "unfused": _unfused,
    "bf16": _bf16,
    "none": _plain,
    "ddp": _plain,
}
