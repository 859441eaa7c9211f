"""The keys DeepSpeed reads without pydantic, and what its parser does not show: type and what each does.

A type is a JSON Schema fragment. Sources: deepspeed/runtime/{config,constants}.py and
the config.py and constants.py of activation_checkpointing, swap_tensor, model_checkpointing, profiling, autotuning,
data_pipeline; deepspeed/module_inject/auto_ep_config.py; runtime/pipe/engine.py.
"""

from __future__ import annotations

from tools.schema.experts import EXPERT_PARALLEL
from tools.schema.key_types import (
    ANY,
    BATCH,
    BETAS,
    BOOL,
    COUNT,
    COUNT_OR_NULL,
    DATA_SAMPLER,
    DTYPE,
    DTYPE_TORCH,
    EDITORS,
    FOLDER,
    LIST,
    LTD_LAYER,
    LTD_SCHEDULER,
    METRICS,
    METRICS_PATH,
    NAMES,
    OBJECT,
    RATE_AUTO,
    RATES,
    RATES_AUTO,
    REAL,
    TEXT,
    TEXT_OR_NULL,
    WHOLE,
    WHOLE_OR_NULL,
    WIRE,
    Key,
)
from tools.schema.parts import PARTS

TOP: dict[str, Key] = {
    "train_batch_size": Key(BATCH, "Sequences of one optimizer step over all ranks: micro × accumulation × ranks."),
    "train_micro_batch_size_per_gpu": Key(BATCH, "Sequences one rank takes through forward and backward at a time."),
    "gradient_accumulation_steps": Key(BATCH, "Micro-batches of one optimizer step."),
    "managed_gradient_accumulation": Key(BOOL, "DeepSpeed counts micro-batches; false: every step() updates."),
    "gradient_clipping": Key(
        {"title": "a number", "type": ["number", "string"], "minimum": 0, "pattern": "^auto$"},
        "Largest gradient norm; 0 switches clipping off.",
    ),
    "steps_per_print": Key({"type": ["integer", "null"], "minimum": 1}, "Optimizer steps between progress lines."),
    "wall_clock_breakdown": Key(BOOL, "Times forward, backward and step."),
    "memory_breakdown": Key(BOOL, "Logs memory at points of the step."),
    "dump_state": Key(BOOL, "Logs the engine's state at the start."),
    "disable_python_gc": Key(BOOL, "Switches Python's cyclic garbage collector off."),
    "log_level": Key(TEXT_OR_NULL, "Level of DeepSpeed's logger."),
    "prescale_gradients": Key(BOOL, "Divides gradients before the reduction instead of after."),
    "gradient_predivide_factor": Key(REAL, "Divisor applied before the reduction when prescaling."),
    "gradient_allreduce_op": Key(
        {"title": "mean or sum", "type": "string", "pattern": "^([mM][eE][aA][nN]|[sS][uU][mM])$"},
        "How gradients of the ranks are combined.",
    ),
    "communication_data_type": Key(WIRE, "Type gradients travel in; by default the training precision."),
    "seq_parallel_communication_data_type": Key(WIRE, "The same for sequence parallelism."),
    "disable_allgather": Key(BOOL, "Accepted; nothing reads it."),
    "zero_allow_untested_optimizer": Key(BOOL, "Lets ZeRO wrap optimizers it was not tested with."),
    "zero_force_ds_cpu_optimizer": Key(BOOL, "Insists on DeepSpeed's CPU optimizers under offload."),
    "allgather_size": Key(REAL, "Gather bucket of the old form zero_optimization: true."),
    "sequence_parallel_size": Key(
        COUNT, "Ranks that share one sequence (Ulysses).", 1, ("__init__.py", '"sequence_parallel_size" in config')
    ),
    "data_parallel_size": Key(
        COUNT,
        "Ranks with different data, beside sequence_parallel_size.",
        None,
        ("__init__.py", '"data_parallel_size" in config'),
    ),
    "use_data_before_expert_parallelism": Key(BOOL, "Order of data and expert groups."),
    "dataloader_drop_last": Key(BOOL, "Drops the last, incomplete batch."),
    "vocabulary_size": Key(COUNT_OR_NULL, "Only warns when it is no multiple of 8."),
    "datastates_ckpt": Key(ANY, "Handed to the DataStates checkpoint engine."),
    "$schema": Key(TEXT, "Read by editors alone; DeepSpeed ignores it.", None, EDITORS),
}

BLOCKS: dict[str, dict[str, Key]] = {
    "optimizer": {
        "type": Key(TEXT, "One of DeepSpeed's own optimizers, in any case, or a class of torch.optim.", None),
        "params": Key({"$ref": "#/$defs/optimizer_params"}, "Arguments of the optimizer's constructor."),
        "legacy_fusion": Key(BOOL, "Old fused path of the fp16 optimizer.", False),
    },
    "scheduler": {
        "type": Key(TEXT_OR_NULL, "One of DeepSpeed's own schedules, or a class of torch.optim.lr_scheduler.", None),
        "params": Key({"$ref": "#/$defs/scheduler_params"}, "Arguments of the scheduler's constructor."),
    },
    "torch_autocast": {
        "enabled": Key(BOOL, "Trains fp32 parameters under torch.autocast."),
        "dtype": Key(DTYPE_TORCH, "Type autocast computes in.", None),
        "lower_precision_safe_modules": Key(NAMES, "Module classes whose gradients may travel in that type.", None),
    },
    "data_types": {
        "grad_accum_dtype": Key(DTYPE, "Type gradients are accumulated in."),
        "param_dtype": Key(DTYPE, "Type parameters are kept in; must agree with bf16/fp16."),
        "buffer_dtype": Key(DTYPE, "Type buffers are cast to; by default they stay as loaded."),
        "keep_in_fp32_modules": Key(
            {"title": '"auto" or a list of names', "type": ["array", "string"], "pattern": "^auto$", "items": TEXT},
            "Buffers that stay fp32.",
        ),
    },
    "activation_checkpointing": {
        "partition_activations": Key(BOOL, "Splits checkpointed inputs over model-parallel ranks."),
        "cpu_checkpointing": Key(BOOL, "Keeps checkpointed inputs in host memory."),
        "contiguous_memory_optimization": Key(BOOL, "One buffer for all checkpoints; needs number_checkpoints."),
        "number_checkpoints": Key(COUNT_OR_NULL, "Number of checkpoints that buffer holds."),
        "synchronize_checkpoint_boundary": Key(BOOL, "Synchronizes the device around each checkpoint."),
        "profile": Key(BOOL, "Times forward and backward of each checkpoint."),
    },
    "aio": {
        "block_size": Key(COUNT, "Bytes of one NVMe request."),
        "queue_depth": Key(COUNT, "Requests in flight."),
        "intra_op_parallelism": Key(COUNT, "Threads of one read or write."),
        "single_submit": Key(BOOL, "Submits requests one by one."),
        "overlap_events": Key(BOOL, "Submits and waits at the same time."),
        "use_gds": Key(BOOL, "GPUDirect Storage: between NVMe and GPU without host memory (CUDA only)."),
    },
    "checkpoint": {
        "tag_validation": Key(
            {
                "title": "one of Ignore, Warn, Fail",
                "type": "string",
                "pattern": "^([iI][gG][nN][oO][rR][eE]|[wW][aA][rR][nN]|[fF][aA][iI][lL])$",
            },
            "What to do when ranks save under different tags.",
        ),
        "load_universal": Key(BOOL, "Loads a universal checkpoint."),
        "use_node_local_storage": Key(BOOL, "Each node saves to its own disk."),
        "parallel_write": Key({"$ref": "#/$defs/checkpoint_parallel_write"}, "Who writes."),
        "checkpoint_serialization": Key(BOOL, "torch's zip serialization."),
        "writer": Key({"$ref": "#/$defs/checkpoint_writer"}, "The fast checkpoint writer."),
    },
    "checkpoint_parallel_write": {
        "pipeline_stage": Key(BOOL, "Every pipeline stage writes its own layers."),
    },
    "checkpoint_writer": {
        "type": Key(
            {
                "title": "one of mock, python, fast",
                "type": "string",
                "pattern": "^([mM][oO][cC][kK]|[pP][yY][tT][hH][oO][nN]|[fF][aA][sS][tT])$",
            },
            "How files are written.",
        ),
        "decoupled": Key(BOOL, "Writes beside training."),
        "io_buffer_size": Key({"type": "number", "minimum": 1}, "Bytes of the pinned buffer."),
        "io_buffer_double": Key(BOOL, "Two such buffers."),
        "io_multiplier": Key(COUNT, "Writers of one rank."),
        "show_statistics": Key(BOOL, "Logs the speed of writing."),
        "data_parallel": Key(
            {
                "title": "one of replica, socket, machine",
                "type": ["string", "null"],
                "pattern": "^([rR][eE][pP][lL][iI][cC][aA]|[sS][oO][cC][kK][eE][tT]|[mM][aA][cC][hH][iI][nN][eE])$",
            },
            "Which ranks share the writing.",
        ),
    },
    "flops_profiler": {
        "enabled": Key(BOOL, "Counts FLOPs of one step."),
        "recompute_fwd_factor": Key(REAL, "Share of the forward pass that checkpointing repeats."),
        "profile_step": Key(COUNT, "Step to profile."),
        "module_depth": Key({"type": "integer", "minimum": -1}, "Depth of the module tree shown; -1: all."),
        "top_modules": Key(COUNT, "Modules shown at each depth."),
        "detailed": Key(BOOL, "Shows every module."),
        "output_file": Key(TEXT_OR_NULL, "Where to write; by default the log."),
    },
    "timers": {
        "throughput": Key({"$ref": "#/$defs/timers_throughput"}, "The throughput timer."),
    },
    "pipeline": {
        "stages": Key({"type": ["integer", "string"]}, "Accepted; nothing reads it."),
        "partition": Key(TEXT, "Accepted; nothing reads it."),
        "seed_layers": Key(BOOL, "Accepted; nothing reads it."),
        "activation_checkpoint_interval": Key(WHOLE, "Layers between checkpoints; 0: none."),
        "pipe_partitioned": Key(BOOL, "Splits activations between stages over model-parallel ranks."),
        "grad_partitioned": Key(BOOL, "The same for their gradients."),
        "use_reentrant": Key(
            BOOL, "torch's re-entrant checkpointing.", True, ("runtime/pipe/engine.py", "pipeline['use_reentrant']")
        ),
    },
    "autotuning": {
        "enabled": Key(BOOL, "Set by the launcher's --autotuning."),
        "fast": Key(BOOL, "Tunes micro-batches only."),
        "results_dir": Key(FOLDER, "Where results go."),
        "exps_dir": Key(FOLDER, "Where experiments go."),
        "overwrite": Key(BOOL, "Replaces earlier results."),
        "start_profile_step": Key(WHOLE, "First step measured."),
        "end_profile_step": Key(WHOLE, "Last step measured."),
        "metric": Key({"enum": ["latency", "throughput", "flops", "forward", "step"]}, "What is optimized."),
        "metric_path": Key(TEXT_OR_NULL, "File the metric is read from."),
        "tuner_type": Key({"enum": ["gridsearch", "random", "model_based"]}, "How the space is searched."),
        "tuner_early_stopping": Key(WHOLE, "Experiments without progress before it stops."),
        "tuner_num_trials": Key(COUNT, "Experiments at most."),
        "arg_mappings": Key({"type": ["object", "null"]}, "Script arguments that stand for config keys."),
        "model_info": Key({"$ref": "#/$defs/autotuning_model_info"}, "Facts about the model, or profile it."),
        "model_info_path": Key(TEXT_OR_NULL, "File with those facts."),
        "mp_size": Key(COUNT, "Model-parallel ranks."),
        "max_train_batch_size": Key(COUNT_OR_NULL, "Largest train batch tried."),
        "min_train_batch_size": Key(COUNT, "Accepted; nothing reads it."),
        "max_train_micro_batch_size_per_gpu": Key(COUNT, "Largest micro-batch tried."),
        "min_train_micro_batch_size_per_gpu": Key(COUNT, "Smallest micro-batch tried."),
        "num_tuning_micro_batch_sizes": Key(COUNT, "Micro-batches tried."),
    },
    "autotuning_model_info": {
        "profile": Key(BOOL, "Measures the facts below."),
        "num_params": Key(COUNT_OR_NULL, "Parameters."),
        "hidden_size": Key(COUNT_OR_NULL, "Hidden size."),
        "num_layers": Key(COUNT_OR_NULL, "Layers."),
    },
    "data_efficiency": {
        "enabled": Key(BOOL, "Accepted; each part below has its own switch."),
        "seed": Key(WHOLE, "Seed of the sampler."),
        "data_sampling": Key({"$ref": "#/$defs/data_sampling"}, "Curriculum learning and dynamic batching."),
        "data_routing": Key({"$ref": "#/$defs/data_routing"}, "Random layer-token dropping."),
    },
    "data_sampling": {
        "enabled": Key(BOOL, "Uses DeepSpeed's sampler."),
        "num_epochs": Key(COUNT, "Epochs the sampler plans."),
        "num_workers": Key(WHOLE, "Worker processes of the data loader."),
        "pin_memory": Key(BOOL, "Pinned batches."),
        "curriculum_learning": Key({"$ref": "#/$defs/data_curriculum"}, "Easy samples first, by one or more metrics."),
        "dynamic_batching": Key({"$ref": "#/$defs/dynamic_batching"}, "Batches of equal token count."),
    },
    "data_curriculum": {
        "enabled": Key(BOOL, "Uses the metrics below."),
        "curriculum_metrics": Key(METRICS, "Name of a metric: its schedule."),
        "data_cluster_path": Key(TEXT, "Folder for the sorted samples.", None, DATA_SAMPLER),
    },
    "dynamic_batching": {
        "enabled": Key(BOOL, "Uses dynamic batching."),
        "lr_scaling_method": Key(
            {"enum": ["linear", "sqrt", "none"]}, "How the learning rate follows the size of a batch."
        ),
        "min_batch_size": Key(COUNT, "Smallest batch."),
        "max_batch_size": Key(COUNT, "Largest batch; by default none.", None),
        "sequence_picking_order": Key({"enum": ["random", "seqlen", "dataloader"]}, "Order samples are taken in."),
        "max_tokens": Key(COUNT, "Tokens of one batch; needed when enabled.", None),
        "metrics_path": Key(TEXT, "Folder of the analysed lengths.", None, METRICS_PATH),
        "verbose": Key(BOOL, "Logs the batches."),
    },
    "data_routing": {
        "enabled": Key(BOOL, "Uses token dropping."),
        "random_ltd": Key({"$ref": "#/$defs/random_ltd"}, "Layers and schedule of token dropping."),
    },
    "random_ltd": {
        "enabled": Key(BOOL, "Drops tokens in the middle layers."),
        "total_layer_num": Key(COUNT, "Layers of the model.", None, LTD_SCHEDULER),
        "random_ltd_layer_num": Key(COUNT, "Layers that drop tokens.", None, LTD_SCHEDULER),
        "random_ltd_layer_id": Key(
            LIST, "Which layers those are.", None, ("runtime/engine.py", "RANDOM_LTD_LAYER_ID]")
        ),
        "model_mask_name": Key(TEXT_OR_NULL, "Argument that holds the attention mask.", None, LTD_LAYER),
        "model_type": Key({"enum": ["encoder", "decoder"]}, "Kind of the model.", None, LTD_LAYER),
        "hidden_state_order": Key(
            {"enum": ["batch_seq_dim", "seq_batch_dim"]}, "Order of the hidden states' axes.", None, LTD_LAYER
        ),
        "random_ltd_schedule": Key(
            {"$ref": "#/$defs/random_ltd_schedule"}, "How many tokens are kept when.", None, LTD_SCHEDULER
        ),
        "layer_token_lr_schedule": Key(OBJECT, "Not implemented: leave it out.", None, LTD_SCHEDULER),
        "global_batch_size": Key(
            COUNT, "Filled in by DeepSpeed.", None, ("runtime/engine.py", "RANDOM_LTD_GLOBAL_BATCH_SIZE")
        ),
        "micro_batch_size": Key(
            COUNT, "Filled in by DeepSpeed.", None, ("runtime/engine.py", "RANDOM_LTD_MICRO_BATCH_SIZE")
        ),
    },
    "optimizer_params": {
        "lr": Key(RATE_AUTO, "Learning rate."),
        "betas": Key(BETAS, "Decay rates of the moments."),
        "eps": Key(RATE_AUTO, "Added to the denominator."),
        "weight_decay": Key(RATE_AUTO, "Weight decay."),
        "bias_correction": Key(BOOL, "Corrects the moments' bias in the first steps."),
        "amsgrad": Key(BOOL, "AMSGrad; DeepSpeed's FusedAdam refuses it."),
        "set_grad_none": Key(BOOL, "Frees gradients after the step."),
        "adam_w_mode": Key(BOOL, "Decoupled weight decay under the name Adam."),
        "max_grad_norm": Key(
            {"type": "number", "deprecated": True}, "Refused by the engine: use gradient_clipping.", None
        ),
        "torch_adam": Key(
            BOOL, "torch's Adam(W) instead of DeepSpeed's.", False, ("runtime/config.py", '"torch_adam"')
        ),
    },
    "scheduler_params": {
        "warmup_min_lr": Key(RATES_AUTO, "Learning rate at the start."),
        "warmup_max_lr": Key(RATES_AUTO, "Learning rate after warm-up; by default the optimizer's."),
        "warmup_num_steps": Key(BATCH, "Steps of warm-up."),
        "warmup_type": Key({"enum": ["log", "linear"]}, "Shape of the warm-up."),
        "total_num_steps": Key(BATCH, "Steps of the whole training; needed by WarmupDecayLR and WarmupCosineLR.", None),
        "warmup_min_ratio": Key(REAL, "Start of WarmupCosineLR, as a share of the learning rate."),
        "cos_min_ratio": Key(REAL, "End of WarmupCosineLR, as a share of the learning rate."),
        "cycle_min_lr": Key(RATES, "OneCycle: lowest learning rate; needed.", None),
        "cycle_max_lr": Key(RATES, "OneCycle: highest learning rate; needed.", None),
        "decay_lr_rate": Key(REAL, "OneCycle: decay of the learning rate after the cycle."),
        "cycle_first_step_size": Key(COUNT, "OneCycle: steps of the rising half."),
        "cycle_second_step_size": Key(WHOLE_OR_NULL, "OneCycle: steps of the falling half; by default the same."),
        "cycle_first_stair_count": Key(WHOLE, "OneCycle: stairs of the rising half."),
        "cycle_second_stair_count": Key(WHOLE_OR_NULL, "OneCycle: stairs of the falling half; by default the same."),
        "decay_step_size": Key(WHOLE, "OneCycle: steps of one decay; 0: none."),
        "cycle_momentum": Key(BOOL, "OneCycle: moves the momentum against the learning rate."),
        "cycle_min_mom": Key(REAL, "OneCycle: lowest momentum."),
        "cycle_max_mom": Key(REAL, "OneCycle: highest momentum."),
        "decay_mom_rate": Key(REAL, "OneCycle: decay of the momentum after the cycle."),
        "lr_range_test_min_lr": Key(RATES, "LRRangeTest: learning rate at the start."),
        "lr_range_test_step_size": Key(COUNT, "LRRangeTest: steps between rises."),
        "lr_range_test_step_rate": Key(REAL, "LRRangeTest: size of a rise."),
        "lr_range_test_staircase": Key(BOOL, "LRRangeTest: rises in stairs."),
        "last_batch_iteration": Key(
            {"type": "integer", "minimum": -1}, "Step to continue from; -1: the start, else set by a checkpoint."
        ),
    },
    "expert_parallel": EXPERT_PARALLEL,
    **PARTS,
}
