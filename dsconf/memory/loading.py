"""Host memory of a node while the model is loaded, before DeepSpeed has it.

Every process loads the whole model for itself, so this grows with the GPUs of a node and not with their shards.
"""

from __future__ import annotations

from dsconf.job import Job
from dsconf.memory.host import PROCESS_BYTES
from dsconf.memory.states import widths

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
