"""Which keys holding "auto" are filled in by the one who loads the file, before DeepSpeed sees it.

Sources: transformers 5.17 integrations/deepspeed.py (trainer_config_process, trainer_config_finalize); accelerate
accelerator.py (_prepare_deepspeed) and utils/dataclasses.py (DeepSpeedPlugin.__post_init__, set_mixed_precision).
"""

from __future__ import annotations

ACCELERATE = frozenset(
    {
        "train_batch_size",
        "train_micro_batch_size_per_gpu",
        "gradient_accumulation_steps",
        "gradient_clipping",
        "fp16.enabled",
        "bf16.enabled",
        "optimizer.params.lr",
        "optimizer.params.weight_decay",
        "scheduler.params.warmup_min_lr",
        "scheduler.params.warmup_max_lr",
        "scheduler.params.warmup_num_steps",
        "scheduler.params.total_num_steps",
        "zero_optimization.stage",
        "zero_optimization.reduce_bucket_size",
        "zero_optimization.stage3_prefetch_bucket_size",
        "zero_optimization.stage3_param_persistence_threshold",
        "zero_optimization.stage3_gather_16bit_weights_on_model_save",
        "zero_optimization.offload_optimizer.device",
        "zero_optimization.offload_optimizer.nvme_path",
        "zero_optimization.offload_param.device",
        "zero_optimization.offload_param.nvme_path",
    }
)
TRAINER = ACCELERATE | {"optimizer.params.betas", "optimizer.params.eps"}
"""The HF Trainer runs through Accelerate, so it fills whatever Accelerate does and two more."""

FILLED: dict[str, frozenset[str]] = {"deepspeed": frozenset(), "hf": TRAINER, "accelerate": ACCELERATE}
