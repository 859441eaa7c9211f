"""Host memory of one node: what offload keeps there, with the pinned allocator's rounding.

Pinned blocks are rounded up to a power of two and cached (torch: ATen/core/CachingHostAllocator.h); master weights and
moments at stage 3 are not pinned. DeepSpeed 0.19.8: runtime/zero/stage_1_and_2.py and stage3.py.
"""

from __future__ import annotations

from functools import lru_cache

from dsconf.memory.allocator import pinned_block
from dsconf.memory.terms import PINNED
from dsconf.memory.timeline.common import Frame
from dsconf.memory.timeline.resident import Terms
from dsconf.memory.zero.slices import Slice, owned
from dsconf.memory.zero.subgroups import Shards, on_gpu, shards, summed
from dsconf.model.spec import Model

PROCESS_BYTES = 1100 * 2**20
"""Memory one process gains from CUDA, cuBLAS and DeepSpeed's kernels: 950 to 1250 MiB in 146 measured runs without
offload (H200, torch 2.11, DeepSpeed 0.19.8)."""


def host_terms(frame: Frame, rank: int, accumulating: bool) -> Terms:
    """Return the host bytes of one process, besides the interpreter.

    ``accumulating``: of several micro-batches earlier ones have left gradients.
    """
    settings = frame.settings
    terms: list[tuple[str, int]] = [
        ("process", frame.bytes.product(1, PROCESS_BYTES, "of CUDA, cuBLAS and kernels, whatever the model"))
    ]
    if frame.wrapper == "zero12" and settings.offload_optimizer != "none":
        terms += _zero12(frame, rank, accumulating)
    if frame.wrapper == "zero3":
        shard = shards(frame.model, frame.world_size, settings.sub_group_size)
        terms += _OPTIMIZER_AT_STAGE_3.get(settings.offload_optimizer, _nothing)(frame, shard)
        terms += _PARAMETERS.get(settings.offload_param, _nothing)(frame, shard)
    return tuple(terms)


def _zero12(frame: Frame, rank: int, accumulating: bool) -> list[tuple[str, int]]:
    """Master, 16-bit bounce buffer, fp32 gradients and staging pinned, moments not (stage_1_and_2.py:563, 646-661)."""
    width, part = frame.width, owned(frame.model, frame.world_size, rank)
    pinned, why = frame.settings.offload_optimizer_pinned, _share(frame)
    terms = [
        ("master weights", frame.bytes.in_pinned_memory(width.master, part.elements, why, pinned=pinned)),
        ("parameter bounce buffer", frame.bytes.in_pinned_memory(width.model, part.elements, why, pinned=pinned)),
        ("gradients", frame.bytes.in_pinned_memory(width.master, part.elements, why, pinned=pinned)),
        ("gradient staging buffer", gradient_staging_buffer(frame)),
        ("optimizer states", frame.bytes.product(width.state, part.elements, why)),
    ]
    if accumulating and frame.settings.stage == 2 and width.accumulate == width.model:
        terms.append(("accumulated gradients", accumulated_gradients(frame, part)))
    return terms


def _share(frame: Frame) -> str:
    return f"elements: {frame.hooks.total:,} trained parameters ÷ {frame.world_size} ranks"


def gradient_staging_buffer(frame: Frame) -> int:
    """Return the largest parameter's gradient, whole in each process."""
    pinned = frame.settings.offload_optimizer_pinned
    return frame.bytes.in_pinned_memory(
        frame.width.model, frame.hooks.largest, "elements of the largest parameter", pinned=pinned
    )


def accumulated_gradients(frame: Frame, part: Slice) -> int:
    """Return the whole gradients of the parameters that reach into the slice."""
    why, pinned = "elements of the parameters that reach into the slice", frame.settings.offload_optimizer_pinned
    return frame.bytes.in_pinned_memory(frame.width.model, part.whole, why, pinned=pinned)


def _nothing(frame: Frame, shard: Shards) -> list[tuple[str, int]]:
    return []


def _optimizer_on_cpu(frame: Frame, shard: Shards) -> list[tuple[str, int]]:
    """Master and moments pageable, gradients pinned by sub-group (stage3.py:791, 888, 1157)."""
    settings, width = frame.settings, frame.width
    first = len(on_gpu(settings, shard))
    elements, blocks = _sub_groups_from(frame.model, frame.world_size, settings.sub_group_size, first, width.master)
    why = f"elements of {len(shard.groups) - first} sub-groups"
    rest = blocks - width.master * elements if settings.offload_optimizer_pinned else 0
    return [
        ("master weights", frame.bytes.product(width.master, elements, why)),
        ("optimizer states", frame.bytes.product(width.state, elements, why)),
        ("gradients", frame.bytes.total((width.master, elements, why), (1, rest, PINNED))),
        ("16-bit gradients", gradients_in_one_block(frame, shard)),
    ]


@lru_cache(maxsize=1024)
def _sub_groups_from(model: Model, world_size: int, sub_group_size: int, first: int, width: int) -> tuple[int, int]:
    """Return elements of the sub-groups from number ``first`` on, and bytes of a pinned block for each of them."""
    here = [elements for elements, _ in shards(model, world_size, sub_group_size).groups[first:]]
    # Of hundreds of sub-groups most are alike, as layers are.
    blocks = {elements: pinned_block(width * elements) for elements in set(here)}
    return sum(here), sum([blocks[elements] for elements in here])


def _optimizer_on_nvme(frame: Frame, shard: Shards) -> list[tuple[str, int]]:
    largest = max((elements for elements, _ in shard.groups), default=0)
    buffers = frame.settings.offload_optimizer_buffers
    swap = frame.bytes.product(
        frame.width.master, buffers * largest, f"elements: buffer_count, {buffers}, × the largest sub-group"
    )
    return [("swap buffers", swap), ("16-bit gradients", gradients_in_one_block(frame, shard))]


def gradients_in_one_block(frame: Frame, shard: Shards) -> int:
    """Return the gradients of all slices, in the type that they accumulate in."""
    pinned = frame.settings.offload_optimizer_pinned
    return frame.bytes.in_pinned_memory(
        frame.width.accumulate, shard.trained, "elements of this rank's slices", pinned=pinned
    )


def _parameters_on_cpu(frame: Frame, shard: Shards) -> list[tuple[str, int]]:
    """Count every parameter's slice, pinned one by one, then all in one block; torch keeps the blocks
    (partition_parameters.py:1842, stage3.py:1337)."""
    width, elements = frame.width.model, shard.trained + shard.frozen
    block = frame.bytes.in_pinned_memory(width, elements, "elements of this rank's slices, in one block")
    pieces, elements = _pinned_pieces(frame.model, frame.world_size, width)
    one_by_one = frame.bytes.total(
        (width, elements, "elements of this rank's slices, one by one"),
        (1, pieces - width * elements, "of rounding each slice up to a power of two"),
    )
    return [("parameters", frame.bytes.together(block, one_by_one))]


@lru_cache(maxsize=1024)
def _pinned_pieces(model: Model, world_size: int, width: int) -> tuple[int, int]:
    """Return bytes and elements of the pinned blocks of one slice each."""
    blocks = summed(model, lambda p: pinned_block(-(-p.numel // world_size) * width))
    return blocks, summed(model, lambda p: -(-p.numel // world_size))


def _parameters_on_nvme(frame: Frame, shard: Shards) -> list[tuple[str, int]]:
    settings = frame.settings
    buffers, each = settings.offload_param_buffers, settings.offload_param_buffer_size
    kept = min(settings.offload_param_max_in_cpu, shard.trained)
    return [
        (
            "parameter swap buffers",
            frame.bytes.product(2, buffers * each, f"elements: buffer_count, {buffers}, × buffer_size"),
        ),
        (
            "parameters kept in memory",
            frame.bytes.product(frame.width.model, kept, "elements of this rank's slices, max_in_cpu"),
        ),
    ]


_OPTIMIZER_AT_STAGE_3 = {"cpu": _optimizer_on_cpu, "nvme": _optimizer_on_nvme}
_PARAMETERS = {"cpu": _parameters_on_cpu, "nvme": _parameters_on_nvme}


def nvme_bytes(frame: Frame) -> int:
    """Return the bytes that one process writes to its NVMe: states, master and gradients, and offloaded parameters."""
    settings, width = frame.settings, frame.width
    if settings.stage != 3:
        return 0
    shard = shards(frame.model, frame.world_size, settings.sub_group_size)
    written = 0
    if settings.offload_optimizer == "nvme":
        written += (width.state + 2 * width.master) * shard.trained
    if settings.offload_param == "nvme":
        written += width.model * (shard.trained + shard.frozen)
    return written


LOAD_BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}


def loaded_by_each(frame: Frame) -> int:
    """Return the bytes of the model in the memory of one process: the whole model as it is loaded, or nothing.

    Under ``zero.Init`` each parameter is cut as it is made, and bitsandbytes quantizes weight by weight on the GPU
    (transformers/modeling_utils.py:3741, quantizers/quantizer_bnb_4bit.py:102).
    """
    workload = frame.job.workload
    built_in_slices = frame.settings.stage == 3 and workload.zero_init is not False
    if built_in_slices or workload.quantize is not None:
        return 0
    return LOAD_BYTES.get(workload.load_dtype or "", frame.width.model) * frame.model.num_params


def loading_bytes_per_node(frame: Frame) -> int:
    """Return the bytes of a node while each of its processes holds the model it loaded.

    An upper bound: tensors of a safetensors file that need no conversion are mapped, and shared by the processes.
    """
    processes = min(frame.job.cluster.gpus_per_node, frame.world_size)
    return processes * (PROCESS_BYTES + loaded_by_each(frame))
