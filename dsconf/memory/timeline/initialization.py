"""The highest point of initialisation, before the first step (DeepSpeed 0.19.8: runtime/zero, runtime/fp16)."""

from __future__ import annotations

from dsconf.memory.allocator import CONTEXT_BYTES, block
from dsconf.memory.timeline.common import Frame
from dsconf.memory.timeline.resident import Resident
from dsconf.memory.zero.optimizer_states import optimizer_temporaries
from dsconf.memory.zero.quantized import frozen
from dsconf.memory.zero.subgroups import largest_group, largest_param, shards


def init_peak(frame: Frame, stays: Resident) -> int:
    """Return the bytes; ``stays`` is what ``resident`` finds of the rank.

    The model is moved to the card whole, as it is stored, unless ``zero.Init`` cuts it as it is built.
    """
    bare = sum([size for _, size in stays.terms]) - stays.optimizer
    width, elements = frame.width, frame.hooks.total
    stored = frozen(frame.model, frame.job.workload.quantize, width.model)
    whole = width.model * elements + stored.weights + stored.scales + stored.largest
    if frame.wrapper == "zero12":
        # The flat buffer is made beside the parameters; later a zero gradient beside the master
        # (stage_1_and_2.py:534, 934-951).
        part = next((size for name, size in stays.terms if name == "master weights"), 0)
        flat = block(width.model * elements)
        free = frame.job.cluster.gpu.memory_bytes - CONTEXT_BYTES - whole
        # Where it does not fit beside them, the parameters go through host memory instead (stage_1_and_2.py:449-463).
        return max(whole + (flat if flat <= free else 0), bare + part)
    if frame.wrapper == "zero3":
        return _zero3(frame, dict(stays.terms), bare, whole)
    if frame.wrapper == "fp16":
        return bare + 4 * elements  # a zero fp32 gradient while the moments are made (fused_optimizer.py:125-135)
    if frame.wrapper == "unfused":
        # Zero gradients in both types, and a first step of the optimizer (unfused_optimizer.py:412-430).
        step = optimizer_temporaries(frame.bytes, frame.settings, 4, elements, frame.hooks.largest)
        return bare + (width.model + 4) * elements + step
    return max(bare, whole)


def _zero3(frame: Frame, stays: dict[str, int], bare: int, whole: int) -> int:
    """Return the highest point of stage 3: partitions grow while the whole model shrinks; masters are cloned by
    sub-group (stage3.py:1170-1173, 1304)."""
    settings, width, workload = frame.settings, frame.width, frame.job.workload
    shard = shards(frame.model, frame.world_size, settings.sub_group_size, settings.optimizer)
    loading = largest_param(frame.model) * width.model
    if workload.zero_init is False or workload.quantize is not None:
        # transformers does not build quantized weights under zero.Init (modeling_utils.py:3741-3751).
        loading = whole
    elif settings.offload_param == "none":
        # Under offload_param zero.Init cuts it onto the host (partition_parameters.py:1160-1168).
        loading += width.model * (shard.trained + shard.frozen)
    # The zero gradient goes before the gradient buffer and the bucket are made (stage3.py:760-801, 1304).
    later = sum(stays.get(name, 0) for name in ("gradients", "reduce bucket"))
    extra = 0
    if settings.offload_optimizer == "none":
        extra = width.master * largest_group(frame.model, frame.world_size, settings.sub_group_size, settings.optimizer)
    return max(loading, bare + _hooked(frame), bare - later + extra)


def _hooked(frame: Frame) -> int:
    """At the end each trained parameter is gathered for its hook, the largest alone counts (stage3.py:1501-1504).

    Its own slice comes from the host first where it is there, and hpZ already has its second copy
    (partition_parameters.py:1900-1950).
    """
    settings, width, known = frame.settings, frame.width.model, frame.hooks
    offloaded = settings.offload_param != "none"
    if frame.world_size == 1 and not offloaded:
        return 0
    secondary = width * known.total // settings.hpz_partition_size if settings.hpz_partition_size > 1 else 0
    return secondary + width * (known.largest + (-(-known.largest // frame.world_size) if offloaded else 0))
