"""A ds_config as DeepSpeed sees it: defaults filled in, "auto" resolved, deprecated names mapped.

Every default is DeepSpeed 0.19.8's own (runtime/zero/config.py, runtime/zero/offload_config.py, runtime/config.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Settings:
    """The settings that decide memory and speed. Bucket sizes are in elements, as in the file."""

    stage: int = 0
    engine: str = "deepspeed"
    """``deepspeed``, or ``ddp`` for torch's own DistributedDataParallel without DeepSpeed."""
    precision: str = "fp32"
    """``bf16``, ``fp16``, ``fp32`` or ``autocast`` (fp32 parameters under torch_autocast)."""
    optimizer: str = "adamw"
    """Lower-case optimizer name; ``none`` where the config has no optimizer and the script brings none."""
    optimizer_fused: bool = True
    """DeepSpeed's FusedAdam; False for ``torch_adam`` (torch's foreach AdamW on CUDA)."""
    momentum: float = 0.0
    """SGD's momentum: 0 keeps no state."""
    optimizer_options: frozenset[str] = frozenset()
    """What else changes the optimizer's memory: ``amsgrad``, ``centered``, ``weight_decay`` (not 0), ``for_loop``
    (``foreach: false``), ``torch_adam`` (torch's Adam although it is fused)."""
    micro_batch: int | None = None
    accumulation: int | None = None
    train_batch: int | None = None
    sequence_parallel: int = 1
    """Ranks that share one sequence (Ulysses): they count as one in the global batch."""
    sequence_parallel_dtype: str | None = None
    """Type of gradients on the wire where ranks share sequences, instead of ``communication_dtype``; None: fp32."""
    gradient_clipping: float = 1.0
    grad_accum_dtype: str | None = None
    communication_dtype: str | None = None
    bf16_master: bool = False
    bf16_optimizer_states: bool = False
    immediate_grad_update: bool = False
    fp16_master: bool = False
    """fp16's own ``fp16_master_weights_and_grads`` (DeepSpeedCPUAdam only)."""
    offload_optimizer: str = "none"
    """``none``, ``cpu`` or ``nvme``."""
    offload_optimizer_pinned: bool = True
    offload_optimizer_ratio: float = 1.0
    offload_optimizer_buffers: int = 4
    offload_param: str = "none"
    offload_param_pinned: bool = True
    offload_param_buffers: int = 5
    offload_param_buffer_size: int = 100_000_000
    offload_param_max_in_cpu: int = 1_000_000_000
    nvme_path: str | None = None
    """Where NVMe offload puts its files; needed when a device is ``nvme``."""
    reduce_bucket_size: int = 500_000_000
    allgather_bucket_size: int = 500_000_000
    overlap_comm: bool = False
    """DeepSpeed's default is True at stage 3 and False below."""
    contiguous_gradients: bool = True
    reduce_scatter: bool = True
    multi_rank_bucket_allreduce: bool = True
    round_robin_gradients: bool = False
    parameter_alignment: bool = False
    sub_group_size: int = 1_000_000_000
    prefetch_bucket_size: int = 50_000_000
    param_persistence_threshold: int = 100_000
    model_persistence_threshold: int = 2**63 - 1
    max_live_parameters: int = 1_000_000_000
    max_reuse_distance: int = 1_000_000_000
    allgather_sequential: bool = False
    hpz_partition_size: int = 1
    quantized_weights: bool = False
    quantized_nontrainable_weights: bool = False
    quantized_gradients: bool = False
    memory_efficient_linear: bool = True
    module_granularity_threshold: int = 0

    @property
    def without_batch(self) -> Settings:
        """Return the same settings without batch sizes; the very same object where they have none."""
        if self.micro_batch is None and self.accumulation is None and self.train_batch is None:
            return self
        return self.with_batch(None, None, None)

    def with_batch(self, micro_batch: int | None, accumulation: int | None, train_batch: int | None) -> Settings:
        """Return the same settings with these batch sizes, in sequences."""
        # A search makes one for each candidate; the constructor takes thirty times as long as copying the fields.
        made = object.__new__(Settings)
        fields = vars(made)
        fields.update(vars(self), micro_batch=micro_batch, accumulation=accumulation, train_batch=train_batch)
        fields.pop("_hash", None)
        return made

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        # Estimates look settings up many times; those of a search differ in any field.
        return hash(tuple(vars(self).values()))
