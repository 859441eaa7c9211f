"""What DeepSpeed 0.19.8 no longer has (runtime/config.py:80-141, and the optimizers of runtime/fp16/onebit)."""

from __future__ import annotations

REMOVED = {
    "amp": "use fp16, bf16 or torch_autocast",
    "compression_training": "leave it out; compress the model before or after training",
    "curriculum_learning": "use data_efficiency.data_sampling.curriculum_learning",
    "eigenvalue": "leave it out",
    "elasticity": "set train_batch_size, train_micro_batch_size_per_gpu and gradient_accumulation_steps",
    "graph_harvesting": "leave it out",
    "nebula": "leave it out; checkpoints are saved with torch.save",
    "progressive_layer_drop": "leave it out",
    "quantize_training": "leave it out",
    "sparse_attention": "leave it out; choose the model's attention kernel instead",
    "sparse_gradients": "leave it out; torch.nn.Embedding(sparse=True) needs no flag",
    "zero_optimization.mics_shard_size": "use zero_hpz_partition_size",
    "zero_optimization.mics_hierarchical_params_gather": "leave it out",
    "zero_optimization.zeropp_loco_param": "leave it out; zero_quantized_gradients works without it",
}
"""Dotted path: what to do instead."""

REMOVED_OPTIMIZERS = ("onebitadam", "onebitlamb", "zerooneadam")
"""Lower-case names; DeepSpeed calls them unsupported when the engine is built (runtime/engine.py:1985, 2016)."""
