"""The ``params`` that each optimizer and scheduler takes which DeepSpeed 0.19.8 builds from a config.

Sources: ops/{adam,lion,lamb,adagrad}, runtime/lr_schedules.py, runtime/engine.py:2377-2550, torch 2.13.
"""

from __future__ import annotations

from collections.abc import Mapping

_COMMON = ("lr", "betas", "eps", "weight_decay", "amsgrad")
_BY_ENGINE = ("adam_w_mode", "torch_adam", "fp32_optimizer_states")
"""Arguments that the engine takes out before it calls Adam (runtime/engine.py:2377-2409, 2486-2493)."""
_TORCH = ("foreach", "maximize", "differentiable", "capturable")

FUSED_ADAM = (*_COMMON, *_BY_ENGINE, "bias_correction", "set_grad_none")
CPU_ADAM = (*_COMMON, *_BY_ENGINE, "bias_correction")
TORCH_ADAM = (*_COMMON, *_BY_ENGINE, *_TORCH, "fused")
CPU_ADAGRAD = ("lr", "eps", "weight_decay", "amsgrad", "fp32_optimizer_states")
CPU_LION = ("lr", "betas", "weight_decay", "fp32_optimizer_states")

OWN: Mapping[str, tuple[str, ...] | None] = {
    "adam": None,
    "adamw": None,
    "adagrad": ("lr", "lr_decay", "weight_decay", "initial_accumulator_value", "eps", *_TORCH[:3], "fused"),
    "lamb": (
        *("lr", "bias_correction", "betas", "eps", "eps_inside_sqrt", "weight_decay", "max_coeff", "min_coeff"),
        "amsgrad",
    ),
    "lion": ("lr", "betas", "weight_decay", "set_grad_none"),
    "muadam": None,
    "muadamw": None,
    "musgd": None,
    "muon": (
        *("lr", "betas", "eps", "weight_decay", "momentum", "ns_method", "muon_lr", "adam_lr", "foreach"),
        *_BY_ENGINE,
    ),
}
"""DeepSpeed's own optimizers in lower case; None where it depends (Adam) or another library says (mup)."""
TORCH_OPTIMIZERS: Mapping[str, tuple[str, ...]] = {
    "Adadelta": ("lr", "rho", "eps", "weight_decay", *_TORCH),
    "Adafactor": ("lr", "beta2_decay", "eps", "d", "weight_decay", "foreach", "maximize"),
    "Adamax": ("lr", "betas", "eps", "weight_decay", *_TORCH),
    "ASGD": ("lr", "lambd", "alpha", "t0", "weight_decay", *_TORCH),
    "LBFGS": ("lr", "max_iter", "max_eval", "tolerance_grad", "tolerance_change", "history_size", "line_search_fn"),
    "NAdam": ("lr", "betas", "eps", "weight_decay", "momentum_decay", "decoupled_weight_decay", *_TORCH),
    "RAdam": ("lr", "betas", "eps", "weight_decay", "decoupled_weight_decay", *_TORCH),
    "RMSprop": ("lr", "alpha", "eps", "weight_decay", "momentum", "centered", *_TORCH),
    "Rprop": ("lr", "etas", "step_sizes", *_TORCH),
    "SGD": ("lr", "momentum", "dampening", "weight_decay", "nesterov", *_TORCH[:3], "fused"),
    "SparseAdam": ("lr", "betas", "eps", "maximize"),
}

_WARMUP = ("warmup_min_lr", "warmup_max_lr", "warmup_num_steps", "warmup_type", "last_batch_iteration")
SCHEDULERS: Mapping[str, tuple[str, ...]] = {
    "WarmupLR": _WARMUP,
    "WarmupDecayLR": (*_WARMUP, "total_num_steps"),
    "WarmupCosineLR": (
        *("total_num_steps", "warmup_min_ratio", "warmup_num_steps", "cos_min_ratio", "warmup_type"),
        "last_batch_iteration",
    ),
    "LRRangeTest": (
        *("lr_range_test_min_lr", "lr_range_test_step_size", "lr_range_test_step_rate", "lr_range_test_staircase"),
        "last_batch_iteration",
    ),
    "OneCycle": (
        *("cycle_min_lr", "cycle_max_lr", "decay_lr_rate", "cycle_first_step_size", "cycle_second_step_size"),
        *("cycle_first_stair_count", "cycle_second_stair_count", "decay_step_size", "cycle_momentum"),
        *("cycle_min_mom", "cycle_max_mom", "decay_mom_rate", "last_batch_iteration"),
    ),
}
TORCH_SCHEDULERS: Mapping[str, tuple[str, ...]] = {
    "StepLR": ("step_size", "gamma", "last_epoch"),
    "MultiStepLR": ("milestones", "gamma", "last_epoch"),
    "ConstantLR": ("factor", "total_iters", "last_epoch"),
    "LinearLR": ("start_factor", "end_factor", "total_iters", "last_epoch"),
    "ExponentialLR": ("gamma", "last_epoch"),
    "CosineAnnealingLR": ("T_max", "eta_min", "last_epoch"),
    "CosineAnnealingWarmRestarts": ("T_0", "T_mult", "eta_min", "last_epoch"),
    "PolynomialLR": ("total_iters", "power", "last_epoch"),
    "ReduceLROnPlateau": (*("mode", "factor", "patience", "threshold", "threshold_mode", "cooldown", "min_lr", "eps"),),
    "CyclicLR": (
        *("base_lr", "max_lr", "step_size_up", "step_size_down", "mode", "gamma", "scale_fn", "scale_mode"),
        *("cycle_momentum", "base_momentum", "max_momentum", "last_epoch"),
    ),
    "OneCycleLR": (
        *("max_lr", "total_steps", "epochs", "steps_per_epoch", "pct_start", "anneal_strategy", "cycle_momentum"),
        *("base_momentum", "max_momentum", "div_factor", "final_div_factor", "three_phase", "last_epoch"),
    ),
}
PYTHON_SCHEDULERS = ("LambdaLR", "MultiplicativeLR", "SequentialLR", "ChainedScheduler")
"""Torch's schedulers that take functions or other schedulers, which no file can hold."""
REQUIRED: Mapping[str, tuple[str, ...]] = {
    "WarmupDecayLR": ("total_num_steps",),
    "WarmupCosineLR": ("total_num_steps",),
    "OneCycle": ("cycle_min_lr", "cycle_max_lr"),
    "StepLR": ("step_size",),
    "MultiStepLR": ("milestones",),
    "ExponentialLR": ("gamma",),
    "CosineAnnealingLR": ("T_max",),
    "CosineAnnealingWarmRestarts": ("T_0",),
    "CyclicLR": ("base_lr", "max_lr"),
    "OneCycleLR": ("max_lr",),
}
"""Scheduler arguments without a default."""
