"""What stays on the card from step to step: parameters, master weights, optimizer states, permanent buffers.

Ψ trained elements, F frozen elements, N ranks. Line references are to DeepSpeed 0.19.8: Z12
runtime/zero/stage_1_and_2.py, Z3 runtime/zero/stage3.py, FO runtime/fp16/fused_optimizer.py, BF
runtime/bf16_optimizer.py.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from dsconf.config.settings import Settings
from dsconf.job import Job
from dsconf.memory.allocator import block
from dsconf.memory.hooks import hooks, owned, partition
from dsconf.memory.subgroups import shards

Terms = tuple[tuple[str, int], ...]

_WIDTHS = {"bf16": 2, "fp16": 2, "fp32": 4, "autocast": 4}
# Bytes of optimizer state for each element, in fp32 (facts from the optimizers' own step functions).
_STATE_BYTES = {"adam": 8, "adamw": 8, "lamb": 8, "lion": 4, "adagrad": 4, "sgd": 0, "none": 0}


class Widths(NamedTuple):
    """Bytes of an element."""

    model: int
    master: int
    state: int
    """Optimizer state for each element, all of it."""
    accumulate: int
    """Of a gradient while it accumulates."""
    communicate: int


@lru_cache(maxsize=256)
def widths(settings: Settings) -> Widths:
    """Element sizes under ``settings`` (runtime/engine.py:1717-1730, 1806-1810; runtime/base_optimizer.py:523)."""
    model = _WIDTHS[settings.precision]
    state = _STATE_BYTES.get(settings.optimizer, 8)
    if settings.optimizer == "sgd" and settings.momentum:
        state = 4
    accumulate = {"fp32": 4, "fp16": 2, "bf16": 2}.get(settings.grad_accum_dtype or "", model)
    communicate = {"fp32": 4, "fp16": 2, "bf16": 2}.get(settings.communication_dtype or "", model)
    master = 2 if settings.bf16_master else 4
    if settings.bf16_optimizer_states:
        state //= 2
    return Widths(model, master, state, accumulate, communicate)


def wrapper(settings: Settings) -> str:
    """Optimizer wrapper: ``ddp``, ``none``, ``fp16``, ``bf16``, ``zero12`` or ``zero3`` (engine.py:2294-2366)."""
    if settings.engine == "ddp":
        return "ddp"
    if settings.stage == 3:
        return "zero3"
    if settings.stage == 0:
        return "fp16" if _WIDTHS[settings.precision] == 2 else "none"
    explicit = settings.grad_accum_dtype == "fp32" and settings.precision == "bf16"
    if settings.stage == 1 and explicit and settings.offload_optimizer != "cpu":
        return "bf16"
    return "zero12"


def compact(settings: Settings) -> bool:
    """Stage 2 with fp32 accumulation of a 16-bit model keeps one flat fp32 slice (stage_1_and_2.py:1259-1345)."""
    width = widths(settings)
    return settings.stage == 2 and width.accumulate == 4 and width.model == 2


def reduces_in_hooks(settings: Settings) -> bool:
    """Stages 1 and 2: whether buckets are reduced while backward runs, or after it (stage_1_and_2.py:958-980)."""
    return settings.stage == 2 or settings.overlap_comm


class Resident(NamedTuple):
    """Bytes alive between two steps."""

    terms: Terms
    optimizer: int
    """Of these, the optimizer states, which the first step makes."""


def resident(job: Job, rank: int) -> Resident:
    """What ``rank`` holds from the second step on, before the forward begins."""
    found = _RESIDENT[wrapper(job.settings)](job, rank)
    return found._replace(terms=(*found.terms, *_buffers(job)))


def _buffers(job: Job) -> Terms:
    """Tensors every layer has beside its parameters, which no stage shards.

    GPT-Neo has a square causal mask of bools, GPT-J a table of sines, which the engine casts with the module
    (transformers: GPTNeoSelfAttention.__init__, GPTJAttention.__init__; engine.py:1454).
    """
    model = job.model
    elements = model.layers * model.positions
    sizes = {"gpt_neo": elements * model.positions, "gptj": elements * model.rotary_dim * widths(job.settings).model}
    return (("buffers", sizes[model.family]),) if model.family in sizes else ()


def _frozen(job: Job) -> Terms:
    frozen = job.model.num_params - hooks(job.model).total
    if not frozen:
        return ()
    quantized = {"4bit": 0.5, "8bit": 1.0}.get(job.workload.quantize or "")
    size = int(frozen * quantized) if quantized else frozen * widths(job.settings).model
    return (("frozen parameters", size),)


def _zero12(job: Job, rank: int) -> Resident:
    """Parameters in one flat buffer, replicated; master and states of the own slice (Z12:441, 534, 560)."""
    settings, width = job.settings, widths(job.settings)
    known = hooks(job.model)
    part = partition(known.total, job.cluster.world_size)
    terms: list[tuple[str, int]] = [
        ("parameters", block(width.model * part * job.cluster.world_size)),
        *_frozen(job),
    ]
    if settings.offload_optimizer != "none":
        return Resident((*terms, ("offload staging buffer", block(width.model * known.largest))), 0)
    terms.append(("master weights", block(width.master * part)))
    states = width.state * part
    if settings.optimizer == "adagrad":
        # torch's Adagrad makes its sums at construction: once for the model, once more for the slice (Z12:946).
        terms += [("optimizer states", states), ("optimizer states of the whole model", width.model * known.total)]
        return Resident(tuple(terms), 0)
    if states:
        terms.append(("optimizer states", states))
    del rank
    return Resident(tuple(terms), states)


def _zero3(job: Job, rank: int) -> Resident:
    """Everything in slices; gradient buffer and reduce bucket are permanent (Z3:780-801, 966, 1170)."""
    settings, width = job.settings, widths(job.settings)
    shard = shards(job.model, job.cluster.world_size, settings.sub_group_size)
    terms: list[tuple[str, int]] = []
    if settings.offload_param == "none":
        terms.append(("parameters", block(width.model * shard.trained)))
        if shard.frozen:
            terms.append(("frozen parameters", width.model * shard.frozen))
    states = 0
    if settings.offload_optimizer == "none":
        terms.append(("master weights", block(width.master * shard.trained)))
        terms.append(("gradients", block(width.accumulate * shard.trained)))
        states = width.state * shard.trained
        if states:
            terms.append(("optimizer states", states))
    if settings.contiguous_gradients:
        terms.append(("reduce bucket", block(width.communicate * settings.reduce_bucket_size)))
    del rank
    return Resident(tuple(terms), states)


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


def _bf16(job: Job, rank: int) -> Resident:
    """Stage 1 with fp32 accumulation: a whole fp32 gradient buffer on every rank (BF:166-191)."""
    width, total = widths(job.settings), hooks(job.model).total
    part = owned(job.model, job.cluster.world_size, rank).elements
    states = width.state * part
    terms = (
        ("parameters", block(width.model * total)),
        *_frozen(job),
        ("gradients", block(width.accumulate * total)),
        ("master weights", block(4 * part)),
        ("optimizer states", states),
    )
    return Resident(terms, states)


def _plain(job: Job, rank: int) -> Resident:
    """fp32 at stage 0, or DDP: the optimizer works on the parameters themselves."""
    width, total = widths(job.settings), hooks(job.model).total
    states = width.state * total
    del rank
    terms: list[tuple[str, int]] = [("parameters", width.model * total), *_frozen(job)]
    if job.settings.engine == "ddp":
        terms.append(("DDP buckets", width.model * total))
    if states:
        terms.append(("optimizer states", states))
    return Resident(tuple(terms), states)


_RESIDENT = {"zero12": _zero12, "zero3": _zero3, "fp16": _fp16, "bf16": _bf16, "none": _plain, "ddp": _plain}
