"""The highest point of initialisation, before the first step (DeepSpeed 0.19.8: Z12:441-560, Z3:1170, FO:89-135)."""

from __future__ import annotations

from dsconf.job import Job
from dsconf.memory.allocator import CONTEXT_BYTES, block
from dsconf.memory.timeline.resident import Resident, resident
from dsconf.memory.zero.gradient_order import hooks
from dsconf.memory.zero.optimizer_states import temporaries
from dsconf.memory.zero.quantized import frozen
from dsconf.memory.zero.subgroups import largest_param, shards
from dsconf.memory.zero.wrapper import widths, wrapper


def init_peak(job: Job, rank: int, stays: Resident | None = None) -> int:
    """Bytes; the model is moved to the card whole, as it is stored, unless ``zero.Init`` cuts it as it is built.

    ``stays`` is what ``resident`` finds, where that is known already.
    """
    stays = resident(job, rank) if stays is None else stays
    bare = sum([size for _, size in stays.terms]) - stays.optimizer
    width, total = widths(job.settings), hooks(job.model).total
    held = frozen(job.model, job.workload.quantize, width.model)
    whole = width.model * total + held.weights + held.constants + held.largest
    kind = wrapper(job.settings)
    if kind == "zero12":
        # The flat buffer is made beside the parameters; later a zero gradient beside the master (Z12:534, 934-951).
        part = next((size for name, size in stays.terms if name == "master weights"), 0)
        flat = block(width.model * total)
        free = job.cluster.gpu.memory_bytes - CONTEXT_BYTES - whole
        # Where it does not fit beside them, the parameters go through host memory instead (Z12:449-463).
        return max(whole + (flat if flat <= free else 0), bare + part)
    if kind == "zero3":
        return _zero3(job, dict(stays.terms), bare, whole)
    if kind == "fp16":
        return bare + 4 * total  # a zero fp32 gradient while the moments are made (FO:125-135)
    if kind == "unfused":
        # Zero gradients in both types, and a first step of the optimizer (UO:412-430).
        gradients = (width.model + 4) * total
        return bare + gradients + temporaries(job.settings, 4 * total, 4 * hooks(job.model).largest)
    return max(bare, whole)


def _zero3(job: Job, stays: dict[str, int], bare: int, whole: int) -> int:
    """Partitions grow while the whole model shrinks; masters are cast and cloned by sub-group (Z3:1170-1173, 1304)."""
    settings, width = job.settings, widths(job.settings)
    shard = shards(job.model, job.cluster.world_size, settings.sub_group_size, settings.optimizer)
    group = max((elements for elements, _ in shard.groups), default=0)
    loading = largest_param(job.model) * width.model
    if job.workload.zero_init is False or job.workload.quantize is not None:
        # transformers does not build quantized weights under zero.Init (modeling_utils.py:3741-3751).
        loading = whole
    elif settings.offload_param == "none":
        # Under offload_param zero.Init cuts it onto the host (partition_parameters.py:1160-1168).
        loading += width.model * (shard.trained + shard.frozen)
    # The zero gradient goes before the gradient buffer and the bucket are made (Z3:760-801, 1304).
    later = sum(stays.get(name, 0) for name in ("gradients", "reduce bucket"))
    extra = width.master * group if settings.offload_optimizer == "none" else 0
    return max(loading, bare + _hooked(job, width.model), bare - later + extra)


def _hooked(job: Job, width: int) -> int:
    """At the end each trained parameter is gathered for its hook, the largest alone counts (Z3:1501-1504).

    Its own slice comes from the host first where it is there, and hpZ already has its second copy (PP:1900-1950).
    """
    settings, ranks = job.settings, job.cluster.world_size
    offloaded = settings.offload_param != "none"
    if ranks == 1 and not offloaded:
        return 0
    known = hooks(job.model)
    secondary = width * known.total // settings.hpz_partition_size if settings.hpz_partition_size > 1 else 0
    return secondary + width * (known.largest + (-(-known.largest // ranks) if offloaded else 0))
