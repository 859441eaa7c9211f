"""Names and arguments of optimizers and learning-rate schedulers.

Arguments are those of the constructors in DeepSpeed 0.19.8: ops/{adam,lion,lamb,adagrad}, runtime/lr_schedules.py,
runtime/engine.py:2377-2550; those of torch's own classes are left to torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from dsconf.config.finding import Problem
from dsconf.config.removed import REMOVED_OPTIMIZERS
from dsconf.config.rules.case import Case, block
from dsconf.errors import nearest

_ADAM: tuple[str, ...] = (
    *("lr", "betas", "eps", "weight_decay", "bias_correction", "amsgrad", "adam_w_mode", "torch_adam"),
    *("fp32_optimizer_states", "foreach", "fused", "maximize", "capturable", "differentiable", "set_grad_none"),
)
_OPTIMIZERS: Mapping[str, tuple[str, ...] | None] = {
    "adam": _ADAM,
    "adamw": _ADAM,
    "adagrad": None,
    "lamb": (
        *("lr", "bias_correction", "betas", "eps", "eps_inside_sqrt", "weight_decay", "max_coeff", "min_coeff"),
        "amsgrad",
    ),
    "lion": ("lr", "betas", "weight_decay", "set_grad_none", "fp32_optimizer_states"),
    "muadam": None,
    "muadamw": None,
    "musgd": None,
    "muon": (*_ADAM, "momentum", "ns_method", "muon_lr", "adam_lr"),
}
"""Lower-case name: arguments, or None where another library defines them."""
_TORCH_OPTIMIZERS = (
    *("Adadelta", "Adafactor", "Adamax", "ASGD", "LBFGS", "NAdam", "RAdam", "RMSprop", "Rprop", "SGD"),
    "SparseAdam",
)
_WARMUP = ("warmup_min_lr", "warmup_max_lr", "warmup_num_steps", "warmup_type", "last_batch_iteration")
_SCHEDULERS: Mapping[str, tuple[str, ...]] = {
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
_TORCH_SCHEDULERS = (
    *("LambdaLR", "MultiplicativeLR", "StepLR", "MultiStepLR", "ConstantLR", "LinearLR", "ExponentialLR"),
    *("SequentialLR", "CosineAnnealingLR", "ChainedScheduler", "ReduceLROnPlateau", "CyclicLR", "OneCycleLR"),
    *("CosineAnnealingWarmRestarts", "PolynomialLR"),
)
_NICE = ("Adam", "AdamW", "Adagrad", "Lamb", "Lion", "Muon", "MuAdam", "MuAdamW", "MuSGD")


def unknown_optimizer(case: Case) -> Iterator[Problem]:
    """DeepSpeed's own in any case, torch.optim's as torch spells them (runtime/engine.py:1985-1986)."""
    name = block(case.config, "optimizer").get("type")
    if not isinstance(name, str) or name.lower() in _OPTIMIZERS or name in _TORCH_OPTIMIZERS:
        return
    path = ("optimizer", "type")
    if name.lower() in REMOVED_OPTIMIZERS:
        advice = "use Lamb" if "lamb" in name.lower() else "use AdamW"
        yield Problem("DS105", "error", path, f"{name} was removed in DeepSpeed 0.19.8", advice)
    else:
        hint = nearest(name, [*_NICE, *_TORCH_OPTIMIZERS]).removeprefix("; ")
        yield Problem("DS511", "error", path, f"DeepSpeed knows no optimizer {name!r}", hint or None)


def unknown_scheduler(case: Case) -> Iterator[Problem]:
    """DeepSpeed's schedulers and torch's, as they are spelled (runtime/engine.py:1923-1936)."""
    name = block(case.config, "scheduler").get("type")
    if isinstance(name, str) and name not in _SCHEDULERS and name not in _TORCH_SCHEDULERS:
        hint = nearest(name, [*_SCHEDULERS, *_TORCH_SCHEDULERS]).removeprefix("; ")
        message = f"DeepSpeed knows no scheduler {name!r}"
        yield Problem("DS512", "error", ("scheduler", "type"), message, hint or None)


def unknown_parameters(case: Case) -> Iterator[Problem]:
    """A comment or a typo among the arguments stops the engine with a TypeError (runtime/engine.py:2476-2550)."""
    optimizer, scheduler = (block(case.config, name).get("type") for name in ("optimizer", "scheduler"))
    known = {
        "optimizer": _OPTIMIZERS.get(optimizer.lower()) if isinstance(optimizer, str) else None,
        "scheduler": _SCHEDULERS.get(scheduler) if isinstance(scheduler, str) else None,
    }
    for name, words in known.items():
        for key in block(case.config, name, "params"):
            if words is None or key in words:
                continue
            hint = nearest(key, list(words)).removeprefix("; ") or None
            if key == "max_grad_norm":
                hint = "use gradient_clipping at the top level"
            message = f"{case.config[name]['type']} has no such parameter"
            yield Problem("DS513", "error", (name, "params", key), message, hint)
