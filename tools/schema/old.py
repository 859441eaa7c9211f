"""Keys that only releases before 0.19.8 read; see blocks.py for those of today."""

from __future__ import annotations

from tools.schema.key_types import BOOL, COUNT, OBJECT, REAL, TEXT, TEXT_OR_NULL, WHOLE, Key

BOOL_AUTO = {"title": "true or false", "type": ["boolean", "string"], "pattern": "^auto$"}
SCHEDULER = ("runtime/data_pipeline/curriculum_scheduler.py", "CURRICULUM_LEARNING_SCHEDULE_CONFIG]")
TECHNIQUE = {"type": "object", "required": ["different_groups"]}
COUNTS = {"type": "array", "items": COUNT}
WHOLES = {"type": "array", "items": WHOLE}

OLD_TOP: dict[str, Key] = {
    "sparse_gradients": Key(BOOL, "Reduces the gradients of embeddings as sparse tensors."),
    "graph_harvesting": Key(BOOL, "CUDA graphs in the bf16 optimizer."),
}

OLD_BLOCKS: dict[str, dict[str, Key]] = {
    "fp16": {
        "enabled": Key(BOOL_AUTO, "Trains in float16 with loss scaling."),
        "auto_cast": Key(BOOL, "Casts the model's inputs to fp16."),
        "loss_scale": Key({"type": "number", "minimum": 0}, "Fixed loss scale; 0 finds it while training."),
        "initial_scale_power": Key(WHOLE, "First loss scale is 2 to this power."),
        "loss_scale_window": Key(COUNT, "Steps without overflow before the scale doubles."),
        "hysteresis": Key(WHOLE, "Overflows before the scale halves."),
        "consecutive_hysteresis": Key(BOOL, "Counts overflows anew after a good step."),
        "min_loss_scale": Key(REAL, "Smallest loss scale."),
        "fp16_master_weights_and_grads": Key(BOOL, "Masters in fp16 (DeepSpeed's CPU Adam only)."),
    },
    "bf16": {
        "enabled": Key(BOOL_AUTO, "Trains in bfloat16."),
        "immediate_grad_update": Key(BOOL, "Adds each gradient to fp32 at once."),
    },
    "amp": {
        "enabled": Key(BOOL, "Trains with Apex AMP; the other keys go to apex.amp.initialize."),
        "opt_level": Key(TEXT, "Apex's level, such as O1.", None, ("runtime/engine.py", "amp.initialize(")),
    },
    "compression_training": {
        "shared_parameters": Key(OBJECT, "Without effect here: it belongs inside a technique."),
        "layer_reduction": Key(OBJECT, "Trains a student with fewer layers."),
        "weight_quantization": Key(TECHNIQUE, "Quantizes weights: shared_parameters and different_groups."),
        "activation_quantization": Key(TECHNIQUE, "Quantizes activations: shared_parameters and different_groups."),
        "sparse_pruning": Key(TECHNIQUE, "Prunes single weights: shared_parameters and different_groups."),
        "row_pruning": Key(TECHNIQUE, "Prunes rows: shared_parameters and different_groups."),
        "head_pruning": Key(TECHNIQUE, "Prunes attention heads: shared_parameters and different_groups."),
        "channel_pruning": Key(TECHNIQUE, "Prunes channels: shared_parameters and different_groups."),
    },
    "curriculum_learning": {
        "enabled": Key(BOOL, "Trains on short sequences first."),
        "curriculum_type": Key(TEXT, "What grows: seqlen.", None, ("runtime/engine.py", "curriculum_learning")),
        "min_difficulty": Key(COUNT, "Difficulty at the start.", None, SCHEDULER),
        "max_difficulty": Key(COUNT, "Difficulty at the end.", None, SCHEDULER),
        "schedule_type": Key(TEXT, "fixed_linear, fixed_root, fixed_discrete or custom.", None, SCHEDULER),
        "schedule_config": Key(OBJECT, "Arguments of the schedule.", None, SCHEDULER),
    },
    "elasticity": {
        "enabled": Key(BOOL, "Chooses batch sizes that many numbers of GPUs can train."),
        "max_train_batch_size": Key(COUNT, "Largest train batch; needed.", None),
        "micro_batch_sizes": Key(COUNTS, "Micro-batches to choose from; needed.", None),
        "min_gpus": Key(COUNT, "Fewest GPUs."),
        "max_gpus": Key(COUNT, "Most GPUs."),
        "min_time": Key(WHOLE, "Shortest time between changes, in minutes."),
        "version": Key({"enum": [0.1, 0.2]}, "Version of the elastic logic."),
        "prefer_larger_batch": Key(BOOL, "Prefers the largest train batch."),
        "ignore_non_elastic_batch_info": Key(BOOL, "Lets batch sizes stand in the config, unused."),
        "model_parallel_size": Key(COUNT, "Model-parallel ranks."),
        "num_gpus_per_node": Key(COUNT, "GPUs of a node."),
    },
    "nebula": {
        "enabled": Key(BOOL, "Saves checkpoints through Nebula."),
        "persistent_storage_path": Key(TEXT_OR_NULL, "Folder of the lasting copies."),
        "persistent_time_interval": Key(COUNT, "Seconds between lasting copies."),
        "num_of_version_in_retention": Key(COUNT, "Lasting copies that are kept."),
        "enable_nebula_load": Key(BOOL, "Loads through Nebula."),
        "nebula_load_path": Key(TEXT_OR_NULL, "Folder to load from."),
    },
    "progressive_layer_drop": {
        "enabled": Key(BOOL, "Drops more and more layers while training."),
        "theta": Key(REAL, "Share of layers kept at the end.", 0.5, ("runtime/progressive_layer_drop.py", "theta=0.5")),
        "gamma": Key(REAL, "How fast layers go.", 0.001, ("runtime/progressive_layer_drop.py", "gamma=0.001")),
    },
    "sparse_attention": {
        "mode": Key({"enum": ["dense", "fixed", "variable", "bigbird", "bslongformer"]}, "Pattern.", "fixed"),
        "block": Key(COUNT, "Tokens of one block."),
        "different_layout_per_head": Key(BOOL, "Each head has its own layout."),
        "num_local_blocks": Key(COUNT, "fixed: blocks of a local window."),
        "num_global_blocks": Key(COUNT, "Blocks that see every token."),
        "attention": Key({"enum": ["bidirectional", "unidirectional"]}, "Whether tokens see later ones."),
        "horizontal_global_attention": Key(BOOL, "Global blocks look at every token too."),
        "num_different_global_patterns": Key(COUNT, "fixed: layouts that heads take in turn."),
        "num_random_blocks": Key(WHOLE, "variable, bigbird: random blocks of a row."),
        "local_window_blocks": Key(COUNTS, "variable: blocks of each local window."),
        "global_block_indices": Key(WHOLES, "variable, bslongformer: which blocks are global."),
        "global_block_end_indices": Key(
            {"type": ["array", "null"], "items": WHOLE}, "Ends of ranges of global blocks."
        ),
        "num_sliding_window_blocks": Key(COUNT, "bigbird, bslongformer: blocks of the sliding window."),
    },
}

OLD_BLOCK_WORDS = {
    "amp": "Apex AMP.",
    "compression_training": "Compression while training.",
    "curriculum_learning": "Curriculum learning by sequence length.",
    "elasticity": "Batch sizes for a changing number of GPUs.",
    "nebula": "Checkpoints through Nebula.",
    "progressive_layer_drop": "Progressive layer dropping.",
    "sparse_attention": "Block-sparse attention.",
}

OLD_WORDS: dict[str, dict[str, str]] = {
    "zero_optimization": {
        "mics_shard_size": "Ranks that shard the model among them (MiCS); -1: off.",
        "mics_hierarchical_params_gather": "Gathers MiCS parameters in the node first.",
        "zeropp_loco_param": "Error feedback for quantized gradients (LoCo).",
    },
}
