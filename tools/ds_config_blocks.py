"""The parts of DeepSpeed 0.19.8's ds_config that no pydantic model describes: (type, default, what it does).

A type is a JSON Schema fragment. Sources: deepspeed/runtime/{config,constants}.py and
the config.py and constants.py of activation_checkpointing, swap_tensor, model_checkpointing, profiling, autotuning,
data_pipeline; deepspeed/module_inject/auto_ep_presets/base.py; runtime/pipe/engine.py.
"""

from __future__ import annotations

from typing import Any

Key = tuple[dict[str, Any], Any, str]

BOOL = {"type": "boolean"}
TEXT = {"type": "string"}
TEXT_OR_NULL = {"type": ["string", "null"]}
OBJECT = {"type": "object"}
COUNT = {"type": "integer", "minimum": 1}
COUNT_OR_NULL = {"type": ["integer", "null"], "minimum": 1}
WHOLE = {"type": "integer", "minimum": 0}
REAL = {"type": "number"}
SHARE = {"type": "number", "minimum": 0, "maximum": 1}
ANY: dict[str, Any] = {}
BATCH = {"title": "a positive whole number", "type": ["integer", "string"], "minimum": 1, "pattern": "^auto$"}
STEPS_AUTO = BATCH
RATE_AUTO = {"title": "a number of at least 0", "type": ["number", "string"], "minimum": 0, "pattern": "^auto$"}
RATES_AUTO = {**RATE_AUTO, "type": ["number", "string", "array"]}
DTYPE = {"enum": ["bf16", "bfloat16", "fp16", "float16", "half", "fp32", "float32", "float", None]}
DTYPE_TORCH = {
    "enum": [
        *("bf16", "bfloat16", "torch.bfloat16", "fp16", "float16", "half", "torch.float16"),
        *("fp32", "float32", "float", "torch.float32"),
    ]
}
WIRE = {
    "title": "one of bf16, fp16, fp32",
    "type": ["string", "null"],
    "pattern": "^([bB][fF]16|[fF][pP]16|[fF][pP]32)$",
}
NAMES = {"type": "array", "items": {"type": "string"}}

TOP: dict[str, Key] = {
    "train_batch_size": (
        BATCH,
        None,
        "Sequences of one optimizer step over all ranks: micro × accumulation × ranks.",
    ),
    "train_micro_batch_size_per_gpu": (
        BATCH,
        None,
        "Sequences one rank takes through forward and backward at a time.",
    ),
    "gradient_accumulation_steps": (BATCH, None, "Micro-batches of one optimizer step."),
    "managed_gradient_accumulation": (BOOL, True, "DeepSpeed counts micro-batches; false: every step() updates."),
    "gradient_clipping": (
        {"title": "a number", "type": ["number", "string"], "minimum": 0, "pattern": "^auto$"},
        1.0,
        "Largest gradient norm; 0 switches clipping off.",
    ),
    "steps_per_print": (
        {"type": ["integer", "null"], "minimum": 1},
        None,
        "Optimizer steps between progress lines.",
    ),
    "wall_clock_breakdown": (BOOL, False, "Times forward, backward and step."),
    "memory_breakdown": (BOOL, False, "Logs memory at points of the step."),
    "dump_state": (BOOL, False, "Logs the engine's state at the start."),
    "disable_python_gc": (BOOL, False, "Switches Python's cyclic garbage collector off."),
    "log_level": (TEXT_OR_NULL, None, "Level of DeepSpeed's logger."),
    "prescale_gradients": (BOOL, False, "Divides gradients before the reduction instead of after."),
    "gradient_predivide_factor": (REAL, 1.0, "Divisor applied before the reduction when prescaling."),
    "gradient_allreduce_op": (
        {"title": "mean or sum", "type": "string", "pattern": "^([mM][eE][aA][nN]|[sS][uU][mM])$"},
        "mean",
        "How gradients of the ranks are combined.",
    ),
    "communication_data_type": (WIRE, None, "Type gradients travel in; by default the training precision."),
    "seq_parallel_communication_data_type": (WIRE, "fp32", "The same for sequence parallelism."),
    "disable_allgather": (BOOL, False, "Accepted; nothing reads it."),
    "zero_allow_untested_optimizer": (BOOL, False, "Lets ZeRO wrap optimizers it was not tested with."),
    "zero_force_ds_cpu_optimizer": (BOOL, True, "Insists on DeepSpeed's CPU optimizers under offload."),
    "allgather_size": (REAL, 5e8, "Gather bucket of the old form zero_optimization: true."),
    "sequence_parallel_size": (COUNT, 1, "Ranks that share one sequence (Ulysses)."),
    "data_parallel_size": (COUNT, None, "Ranks with different data, beside sequence_parallel_size."),
    "use_data_before_expert_parallelism": (BOOL, False, "Order of data and expert groups."),
    "dataloader_drop_last": (BOOL, False, "Drops the last, incomplete batch."),
    "vocabulary_size": (COUNT_OR_NULL, None, "Only warns when it is no multiple of 8."),
    "datastates_ckpt": (ANY, None, "Handed to the DataStates checkpoint engine."),
}

BLOCKS: dict[str, dict[str, Key]] = {
    "optimizer": {
        "type": (
            TEXT,
            None,
            "Adam, AdamW, Adagrad, Lamb, Lion, Muon, MuAdam, MuAdamW, MuSGD or a torch.optim class.",
        ),
        "params": (
            {
                "type": "object",
                "properties": {
                    "lr": {**RATE_AUTO, "description": "Learning rate."},
                    "betas": {
                        "title": "a list of two numbers",
                        "type": ["array", "string"],
                        "items": {"type": "number"},
                        "minItems": 2,
                        "maxItems": 2,
                        "pattern": "^auto$",
                        "description": "Decay rates of the moments.",
                    },
                    "eps": {**RATE_AUTO, "description": "Added to the denominator."},
                    "weight_decay": {**RATE_AUTO, "description": "Weight decay."},
                    "torch_adam": {**BOOL, "description": "torch's Adam(W) instead of DeepSpeed's FusedAdam."},
                    "adam_w_mode": {**BOOL, "description": "Decoupled weight decay under the name Adam."},
                },
            },
            None,
            "Arguments of the optimizer's constructor.",
        ),
        "legacy_fusion": (BOOL, False, "Old fused path of the fp16 optimizer."),
    },
    "scheduler": {
        "type": (TEXT_OR_NULL, None, "WarmupLR, WarmupDecayLR, WarmupCosineLR, OneCycle, LRRangeTest or torch's."),
        "params": (
            {
                "type": "object",
                "properties": {
                    "warmup_min_lr": {**RATES_AUTO, "description": "Learning rate at the start."},
                    "warmup_max_lr": {**RATES_AUTO, "description": "Learning rate after warm-up."},
                    "warmup_num_steps": {**STEPS_AUTO, "description": "Steps of warm-up."},
                    "total_num_steps": {**STEPS_AUTO, "description": "Steps of the whole training."},
                },
            },
            None,
            "Arguments of the scheduler's constructor.",
        ),
    },
    "torch_autocast": {
        "enabled": (BOOL, False, "Trains fp32 parameters under torch.autocast."),
        "dtype": (DTYPE_TORCH, None, "Type autocast computes in."),
        "lower_precision_safe_modules": (NAMES, None, "Module classes whose gradients may travel in that type."),
    },
    "data_types": {
        "grad_accum_dtype": (DTYPE, None, "Type gradients are accumulated in."),
        "param_dtype": (DTYPE, None, "Type parameters are kept in; must agree with bf16/fp16."),
        "buffer_dtype": (DTYPE, None, "Type buffers are cast to; by default they stay as loaded."),
        "keep_in_fp32_modules": (
            {"title": '"auto" or a list of names', "type": ["array", "string"], "pattern": "^auto$", "items": TEXT},
            "auto",
            "Buffers that stay fp32.",
        ),
    },
    "activation_checkpointing": {
        "partition_activations": (BOOL, False, "Splits checkpointed inputs over model-parallel ranks."),
        "cpu_checkpointing": (BOOL, False, "Keeps checkpointed inputs in host memory."),
        "contiguous_memory_optimization": (
            BOOL,
            False,
            "One buffer for all checkpoints; needs number_checkpoints.",
        ),
        "number_checkpoints": (COUNT_OR_NULL, None, "Number of checkpoints that buffer holds."),
        "synchronize_checkpoint_boundary": (BOOL, False, "Synchronizes the device around each checkpoint."),
        "profile": (BOOL, False, "Times forward and backward of each checkpoint."),
    },
    "aio": {
        "block_size": (COUNT, 1048576, "Bytes of one NVMe request."),
        "queue_depth": (COUNT, 8, "Requests in flight."),
        "intra_op_parallelism": (COUNT, 1, "Threads of one read or write."),
        "single_submit": (BOOL, False, "Submits requests one by one."),
        "overlap_events": (BOOL, True, "Submits and waits at the same time."),
        "use_gds": (BOOL, False, "GPUDirect Storage: between NVMe and GPU without host memory (CUDA only)."),
    },
    "checkpoint": {
        "tag_validation": (
            {
                "title": "one of Ignore, Warn, Fail",
                "type": "string",
                "pattern": "^([iI][gG][nN][oO][rR][eE]|[wW][aA][rR][nN]|[fF][aA][iI][lL])$",
            },
            "Warn",
            "What to do when ranks save under different tags.",
        ),
        "load_universal": (BOOL, False, "Loads a universal checkpoint."),
        "use_node_local_storage": (BOOL, False, "Each node saves to its own disk."),
        "parallel_write": ({"$ref": "#/$defs/checkpoint_parallel_write"}, None, "Who writes."),
        "checkpoint_serialization": (BOOL, True, "torch's zip serialization."),
        "writer": ({"$ref": "#/$defs/checkpoint_writer"}, None, "The fast checkpoint writer."),
    },
    "checkpoint_parallel_write": {
        "pipeline_stage": (BOOL, False, "Every pipeline stage writes its own layers."),
    },
    "checkpoint_writer": {
        "type": (
            {
                "title": "one of mock, python, fast",
                "type": "string",
                "pattern": "^([mM][oO][cC][kK]|[pP][yY][tT][hH][oO][nN]|[fF][aA][sS][tT])$",
            },
            "FAST",
            "How files are written.",
        ),
        "decoupled": (BOOL, False, "Writes beside training."),
        "io_buffer_size": ({"type": "number", "minimum": 1}, 67108864, "Bytes of the pinned buffer."),
        "io_buffer_double": (BOOL, True, "Two such buffers."),
        "io_multiplier": (COUNT, 1, "Writers of one rank."),
        "show_statistics": (BOOL, False, "Logs the speed of writing."),
        "data_parallel": (
            {
                "title": "one of replica, socket, machine",
                "type": ["string", "null"],
                "pattern": "^([rR][eE][pP][lL][iI][cC][aA]|[sS][oO][cC][kK][eE][tT]|[mM][aA][cC][hH][iI][nN][eE])$",
            },
            None,
            "Which ranks share the writing.",
        ),
    },
    "flops_profiler": {
        "enabled": (BOOL, False, "Counts FLOPs of one step."),
        "recompute_fwd_factor": (REAL, 0.0, "Share of the forward pass that checkpointing repeats."),
        "profile_step": (COUNT, 1, "Step to profile."),
        "module_depth": ({"type": "integer", "minimum": -1}, -1, "Depth of the module tree shown; -1: all."),
        "top_modules": (COUNT, 1, "Modules shown at each depth."),
        "detailed": (BOOL, True, "Shows every module."),
        "output_file": (TEXT_OR_NULL, None, "Where to write; by default the log."),
    },
    "timers": {
        "throughput": ({"$ref": "#/$defs/timers_throughput"}, None, "The throughput timer."),
    },
    "pipeline": {
        "stages": ({"type": ["integer", "string"]}, "auto", "Accepted; nothing reads it."),
        "partition": (TEXT, "best", "Accepted; nothing reads it."),
        "seed_layers": (BOOL, False, "Accepted; nothing reads it."),
        "activation_checkpoint_interval": (WHOLE, 0, "Layers between checkpoints; 0: none."),
        "pipe_partitioned": (BOOL, True, "Splits activations between stages over model-parallel ranks."),
        "grad_partitioned": (BOOL, True, "The same for their gradients."),
        "use_reentrant": (BOOL, True, "torch's re-entrant checkpointing."),
    },
    "autotuning": {
        "enabled": (BOOL, False, "Set by the launcher's --autotuning."),
        "fast": (BOOL, True, "Tunes micro-batches only."),
        "results_dir": (TEXT, "autotuning_results", "Where results go."),
        "exps_dir": (TEXT, "autotuning_exps", "Where experiments go."),
        "overwrite": (BOOL, True, "Replaces earlier results."),
        "start_profile_step": (WHOLE, 3, "First step measured."),
        "end_profile_step": (WHOLE, 5, "Last step measured."),
        "metric": (
            {"enum": ["latency", "throughput", "flops", "forward", "step"]},
            "throughput",
            "What is optimized.",
        ),
        "metric_path": (TEXT_OR_NULL, None, "File the metric is read from."),
        "tuner_type": (
            {"enum": ["gridsearch", "random", "model_based"]},
            "gridsearch",
            "How the space is searched.",
        ),
        "tuner_early_stopping": (WHOLE, 5, "Experiments without progress before it stops."),
        "tuner_num_trials": (COUNT, 50, "Experiments at most."),
        "arg_mappings": ({"type": ["object", "null"]}, None, "Script arguments that stand for config keys."),
        "model_info": ({"$ref": "#/$defs/autotuning_model_info"}, None, "Facts about the model, or profile it."),
        "model_info_path": (TEXT_OR_NULL, None, "File with those facts."),
        "mp_size": (COUNT, 1, "Model-parallel ranks."),
        "max_train_batch_size": (COUNT_OR_NULL, None, "Largest train batch tried."),
        "min_train_batch_size": (COUNT, 1, "Accepted; nothing reads it."),
        "max_train_micro_batch_size_per_gpu": (COUNT, 1024, "Largest micro-batch tried."),
        "min_train_micro_batch_size_per_gpu": (COUNT, 1, "Smallest micro-batch tried."),
        "num_tuning_micro_batch_sizes": (COUNT, 3, "Micro-batches tried."),
    },
    "autotuning_model_info": {
        "profile": (BOOL, False, "Measures the facts below."),
        "num_params": (COUNT_OR_NULL, None, "Parameters."),
        "hidden_size": (COUNT_OR_NULL, None, "Hidden size."),
        "num_layers": (COUNT_OR_NULL, None, "Layers."),
    },
    "data_efficiency": {
        "enabled": (BOOL, False, "Accepted; each part below has its own switch."),
        "seed": (WHOLE, 1234, "Seed of the sampler."),
        "data_sampling": ({"$ref": "#/$defs/data_sampling"}, None, "Curriculum learning and dynamic batching."),
        "data_routing": ({"$ref": "#/$defs/data_routing"}, None, "Random layer-token dropping."),
    },
    "data_sampling": {
        "enabled": (BOOL, False, "Uses DeepSpeed's sampler."),
        "num_epochs": (COUNT, 1000, "Epochs the sampler plans."),
        "num_workers": (WHOLE, 0, "Worker processes of the data loader."),
        "pin_memory": (BOOL, False, "Pinned batches."),
        "curriculum_learning": (OBJECT, None, "Metrics and their schedules."),
        "dynamic_batching": (OBJECT, None, "Batches of equal token count."),
    },
    "data_routing": {
        "enabled": (BOOL, False, "Uses token dropping."),
        "random_ltd": (OBJECT, None, "Layers and schedule of token dropping."),
    },
}
