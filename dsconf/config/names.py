"""Words that several parts of the config share."""

from __future__ import annotations

TARGETS = ("deepspeed", "hf", "accelerate")
RELEASES = ("0.16.9", "0.17.6", "0.18.9", "0.19.6", "0.19.8")
"""Releases of DeepSpeed whose ds_config has a schema, oldest first; the last is the one that dsconf follows."""
DEVICES = ("none", "cpu", "nvme")
STAGE3_ALIASED = (
    "prefetch_bucket_size",
    "param_persistence_threshold",
    "model_persistence_threshold",
    "max_live_parameters",
    "max_reuse_distance",
    "gather_16bit_weights_on_model_save",
    "module_granularity_threshold",
    "use_all_reduce_for_fetch_params",
    "allgather_sequential",
)
"""Keys of zero_optimization that are also known, and looked up first, with a ``stage3_`` prefix.

Source: DeepSpeed 0.19.8 runtime/zero/config.py:240-292.
"""
