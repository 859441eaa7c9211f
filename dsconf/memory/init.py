"""The highest point of initialisation, before the first step (DeepSpeed 0.19.8: Z12:441-560, Z3:1170, FO:89-135)."""

from __future__ import annotations

from dsconf.job import Job
from dsconf.memory.allocator import CONTEXT_BYTES, block
from dsconf.memory.hooks import hooks
from dsconf.memory.optimizers import temporaries
from dsconf.memory.states import resident, widths, wrapper
from dsconf.memory.subgroups import largest_param, shards


def init_peak(job: Job, rank: int) -> int:
    """Bytes; the model is moved to the card whole in its training type, unless ``zero.Init`` cuts it as it is built."""
    stays = resident(job, rank)
    bare = sum(size for _, size in stays.terms) - stays.optimizer
    width, total = widths(job.settings), hooks(job.model).total
    whole = width.model * job.model.num_params
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
    largest = largest_param(job.model) * width.model
    zero_init = job.workload.zero_init is not False
    loading = largest + width.model * (shard.trained + shard.frozen) if zero_init else whole
    # The zero gradient goes before the gradient buffer and the bucket are made (Z3:760-801, 1304).
    later = sum(stays.get(name, 0) for name in ("gradients", "reduce bucket"))
    extra = width.master * group if settings.offload_optimizer == "none" else 0
    return max(loading, bare, bare - later + extra)
