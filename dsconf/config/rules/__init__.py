"""One rule, one function: each yields the problems it finds in a config and cites the DeepSpeed line behind it."""

from __future__ import annotations

from dsconf.config.rules import auto, batch, keys, offload, optimizer, precision, zero

RULES = (
    keys.deprecated,
    keys.old_and_new,
    keys.never_read,
    auto.unfilled,
    batch.missing,
    batch.indivisible,
    zero.needed_by_accelerate,
    zero.twice,
    zero.stage3_key_below_stage3,
    offload.param_below_stage3,
    offload.optimizer_at_stage0,
    offload.nvme_path_missing,
    offload.nvme_below_stage3,
    offload.ratio_below_stage3,
    precision.bf16_and_fp16,
    precision.bfloat16_ignored,
    precision.master_without_zero,
    optimizer.unknown_optimizer,
    optimizer.unknown_scheduler,
    optimizer.unknown_parameters,
)
