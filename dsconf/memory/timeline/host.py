"""Host memory of one node: what offload keeps there, with the pinned allocator's rounding.

Pinned blocks are rounded up to a power of two and cached (torch: ATen/core/CachingHostAllocator.h); master weights and
moments at stage 3 are not pinned. Z12 and Z3: DeepSpeed 0.19.8, runtime/zero/stage_1_and_2.py and stage3.py.
"""

from __future__ import annotations

from functools import lru_cache

from dsconf.job import Job
from dsconf.memory.timeline.resident import Terms
from dsconf.memory.zero.gradient_order import hooks
from dsconf.memory.zero.slices import owned
from dsconf.memory.zero.subgroups import all_params, on_gpu, shards
from dsconf.memory.zero.wrapper import widths, wrapper
from dsconf.model.spec import Model

PROCESS_BYTES = 1100 * 2**20
"""Memory one process gains from CUDA, cuBLAS and DeepSpeed's kernels: 950 to 1250 MiB in 146 measured runs without
offload (H200, torch 2.11, DeepSpeed 0.19.8)."""


def pinned(size: int) -> int:
    """Bytes of a pinned block of ``size`` bytes."""
    return 1 << max(0, size - 1).bit_length() if size else 0


def host_terms(job: Job, rank: int) -> Terms:
    """Host bytes of one process, besides the interpreter."""
    settings = job.settings
    terms: list[tuple[str, int]] = [("process", PROCESS_BYTES)]
    kind = wrapper(settings)
    if kind == "zero12" and settings.offload_optimizer != "none":
        terms += _zero12(job, rank)
    if kind == "zero3":
        terms += _zero3(job)
    return tuple(terms)


def _block(size: int, is_pinned: bool) -> int:
    return pinned(size) if is_pinned else size


def _zero12(job: Job, rank: int) -> list[tuple[str, int]]:
    """Master, 16-bit bounce buffer, fp32 gradients and staging pinned, moments not (Z12:563-575, 646-661)."""
    settings, width = job.settings, widths(job.settings)
    slice_ = owned(job.model, job.cluster.world_size, rank)
    pin = settings.offload_optimizer_pinned
    largest = hooks(job.model).largest
    terms = [
        ("master weights", _block(width.master * slice_.elements, pin)),
        ("parameter bounce buffer", _block(width.model * slice_.elements, pin)),
        ("gradients", _block(width.master * slice_.elements, pin)),
        ("gradient staging buffer", _block(width.model * largest, pin)),
        ("optimizer states", width.state * slice_.elements),
    ]
    if settings.stage == 2 and job.workload.accumulation > 1 and width.accumulate == width.model:
        terms.append(("accumulated gradients", _block(width.model * slice_.whole, pin)))
    return terms


def _zero3(job: Job) -> list[tuple[str, int]]:
    """Master and moments pageable, gradients pinned by sub-group, parameters pinned twice (Z3:791, 888, 1157, 1337)."""
    settings, width = job.settings, widths(job.settings)
    shard = shards(job.model, job.cluster.world_size, settings.sub_group_size)
    terms: list[tuple[str, int]] = []
    if settings.offload_optimizer == "cpu":
        pin = settings.offload_optimizer_pinned
        here = shard.groups[len(on_gpu(settings, shard)) :]
        elements = sum(e for e, _ in here)
        terms = [
            ("master weights", width.master * elements),
            ("optimizer states", width.state * elements),
            ("gradients", sum(_block(width.master * e, pin) for e, _ in here)),
            ("16-bit gradients", _block(width.accumulate * shard.trained, pin)),
        ]
    if settings.offload_optimizer == "nvme":
        largest = max((e for e, _ in shard.groups), default=0)
        terms = [
            ("swap buffers", settings.offload_optimizer_buffers * width.master * largest),
            ("16-bit gradients", _block(width.accumulate * shard.trained, settings.offload_optimizer_pinned)),
        ]
    if settings.offload_param == "cpu":
        pieces = _pinned_pieces(job.model, job.cluster.world_size, width.model)
        terms.append(("parameters", pinned(width.model * (shard.trained + shard.frozen)) + pieces))
    if settings.offload_param == "nvme":
        terms.append(
            ("parameter swap buffers", settings.offload_param_buffers * settings.offload_param_buffer_size * 2)
        )
        terms.append(("parameters kept in memory", min(settings.offload_param_max_in_cpu, shard.trained) * width.model))
    return terms


@lru_cache(maxsize=1024)
def _pinned_pieces(model: Model, world_size: int, width: int) -> int:
    """Every parameter's slice, pinned one by one before they are put together; torch keeps the blocks (PP:1842)."""
    return sum(pinned(-(-p.numel // world_size) * width) for p in all_params(model))


def nvme_bytes(job: Job) -> int:
    """Bytes one process writes to its NVMe: states, master and gradients, and the parameters if they go there too."""
    settings, width = job.settings, widths(job.settings)
    if settings.stage != 3:
        return 0
    shard = shards(job.model, job.cluster.world_size, settings.sub_group_size)
    total = 0
    if settings.offload_optimizer == "nvme":
        total += (width.state + 2 * width.master) * shard.trained
    if settings.offload_param == "nvme":
        total += width.model * (shard.trained + shard.frozen)
    return total


LOAD_BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}


def loaded_by_each(job: Job) -> int:
    """Bytes of the model in the memory of one process: the whole model in the type it is loaded in, or nothing.

    Under ``zero.Init`` each parameter is cut as it is made, and bitsandbytes quantizes weight by weight on the GPU
    (transformers/modeling_utils.py:3741, quantizers/quantizer_bnb_4bit.py:102).
    """
    built_in_slices = job.settings.stage == 3 and job.workload.zero_init is not False
    if built_in_slices or job.workload.quantize is not None:
        return 0
    return LOAD_BYTES.get(job.workload.load_dtype or "", widths(job.settings).model) * job.model.num_params


def loading_bytes_per_node(job: Job) -> int:
    """Bytes of a node while each of its processes holds the model it loaded.

    An upper bound: tensors of a safetensors file that need no conversion are mapped, and shared by the processes.
    """
    processes = min(job.cluster.gpus_per_node, job.cluster.world_size)
    return processes * (PROCESS_BYTES + loaded_by_each(job))
