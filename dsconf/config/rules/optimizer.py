"""Names and arguments of optimizers, as DeepSpeed 0.19.8 builds them (runtime/engine.py:2476-2550)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from dsconf.config.finding import Path, Problem, Remove
from dsconf.config.releases import optimizers, removed_optimizers
from dsconf.config.rules.arguments import (
    CPU_ADAGRAD,
    CPU_ADAM,
    CPU_LION,
    FUSED_ADAM,
    OWN,
    TORCH_ADAM,
    TORCH_OPTIMIZERS,
)
from dsconf.config.rules.case import Case, bf16_name, block, flag, number, offloads_optimizer, precision
from dsconf.errors import nearest

_NICE = ("Adam", "AdamW", "Adagrad", "Lamb", "Lion", "Muon", "MuAdam", "MuAdamW", "MuSGD")
_UNTESTED = ("lamb", "musgd", *TORCH_OPTIMIZERS)
"""Optimizers that runtime/zero/utils.py:45-77 does not list, under the names by which DeepSpeed builds them."""


def _name(case: Case) -> str | None:
    """Return the optimizer's name as DeepSpeed compares it: its own in lower case (runtime/config.py:526-528)."""
    name = block(case.config, "optimizer").get("type")
    if not isinstance(name, str):
        return None
    return name.lower() if name.lower() in OWN else name


def _params(case: Case) -> Mapping[str, object]:
    return block(case.config, "optimizer", "params")


def _cpu_adam(case: Case) -> bool:
    """Say whether DeepSpeedCPUAdam itself is built, not torch's Adam nor ZenFlow's (runtime/engine.py:2385-2404)."""
    plain = not _params(case).get("torch_adam") and case.zero.get("zenflow") is None
    return plain and _name(case) in ("adam", "adamw") and offloads_optimizer(case)


def _arguments(case: Case) -> tuple[str, ...] | None:
    """Return the arguments of the class that DeepSpeed will build."""
    name = _name(case) or ""
    if name in ("adam", "adamw"):
        if _params(case).get("torch_adam"):
            return TORCH_ADAM
        return CPU_ADAM if offloads_optimizer(case) else FUSED_ADAM
    on_cpu = {"adagrad": CPU_ADAGRAD, "lion": CPU_LION}
    if name in on_cpu and offloads_optimizer(case):
        return on_cpu[name]
    return OWN.get(name) or TORCH_OPTIMIZERS.get(name)


def unknown_optimizer(case: Case) -> Iterator[Problem]:
    """Find names that are neither DeepSpeed's own (in any case) nor torch.optim's as torch spells them
    (runtime/engine.py:1985-1986)."""
    name = block(case.config, "optimizer").get("type")
    if not isinstance(name, str) or name.lower() in optimizers(case.release) or name in TORCH_OPTIMIZERS:
        return
    path = ("optimizer", "type")
    removed = removed_optimizers(case.release).get(name.lower())
    if removed is not None:
        advice = "use Lamb" if "lamb" in name.lower() else "use AdamW"
        yield Problem("DS105", "error", path, f"{name} was removed in DeepSpeed {removed}", advice)
    elif name.lower() in OWN:
        yield Problem(
            "DS511", "error", path, f"DeepSpeed {case.release} does not have {name} yet", "use a later release"
        )
    else:
        hint = nearest(name, [*_NICE, *TORCH_OPTIMIZERS]).removeprefix("; ")
        yield Problem("DS511", "error", path, f"DeepSpeed has no optimizer {name!r}", hint or None)


def unknown_parameters(case: Case) -> Iterator[Problem]:
    """Find comments and typos among the arguments: a TypeError when the engine is built, except that Muon drops them
    silently."""
    words = _arguments(case)
    for key in _params(case):
        path = ("optimizer", "params", key)
        name = case.config["optimizer"].get("type")
        if key == "max_grad_norm" and name is not None:
            advice = "use gradient_clipping at the top level"
            yield Problem("DS513", "error", path, "DeepSpeed refuses it", advice)
        elif words is not None and key not in words:
            hint = nearest(key, list(words)).removeprefix("; ") or None
            kind = " on the CPU" if offloads_optimizer(case) else ""
            yield Problem("DS513", "error", path, f"{name}{kind} has no such parameter", hint)


def impossible_value(case: Case) -> Iterator[Problem]:
    """Find values that torch refuses, and with which DeepSpeed's own kernels diverge or climb
    (ops/adam/fused_adam.py:76-96)."""
    params = _params(case)
    for key in ("lr", "eps", "weight_decay", "momentum", "muon_lr", "adam_lr"):
        value = number(params.get(key))
        if value is not None and value < 0:
            yield Problem("DS514", "error", ("optimizer", "params", key), f"{value} is negative")
    betas = params.get("betas")
    if not isinstance(betas, list):
        return
    if len(betas) != 2 and _name(case) != "Adafactor":
        yield Problem("DS514", "error", ("optimizer", "params", "betas"), f"{len(betas)} numbers; it takes two")
    for index, beta in enumerate(betas):
        value = number(beta)
        if value is not None and not 0 <= value < 1:
            path = ("optimizer", "params", "betas", index)
            yield Problem("DS514", "error", path, f"{value} must be at least 0 and less than 1")


def impossible_choice(case: Case) -> Iterator[Problem]:
    """Find methods that Muon does not have (zero/muon/original_muon.py), and torch's Nesterov without momentum
    (torch/optim/sgd.py)."""
    params = _params(case)
    method = params.get("ns_method", "gram")
    if _name(case) == "muon" and method not in ("standard", "gram"):
        message = f"{method!r} is neither standard nor gram"
        yield Problem("DS525", "error", ("optimizer", "params", "ns_method"), message)
    momentum = (number(params.get("momentum", 0)) or 0) > 0 and not params.get("dampening")
    if _name(case) == "SGD" and params.get("nesterov") is True and not momentum:
        message = "Nesterov needs a momentum above 0 and no dampening"
        yield Problem("DS525", "error", ("optimizer", "params", "nesterov"), message, "set momentum")


def amsgrad(case: Case) -> Iterator[Problem]:
    """Find AMSGrad, which DeepSpeed's kernels do not have (ops/adam/fused_adam.py:87-88,
    ops/lamb/fused_lamb.py:55-56)."""
    deepspeed_kernel = _name(case) in ("adam", "adamw", "lamb") and not _params(case).get("torch_adam")
    if deepspeed_kernel and _params(case).get("amsgrad") is True:
        advice = "leave it out" if _name(case) == "lamb" else "leave it out, or set torch_adam"
        yield Problem("DS515", "error", ("optimizer", "params", "amsgrad"), "DeepSpeed's kernel has no AMSGrad", advice)


def legacy_fusion(case: Case) -> Iterator[Problem]:
    """Find legacy_fusion where it fails in the first step of FP16_Optimizer (runtime/fp16/fused_optimizer.py:261)."""
    wrapped = case.stage == 0 and precision(case) in ("bf16", "fp16") and _name(case) in ("adam", "adamw")
    fused = not _params(case).get("torch_adam") and not offloads_optimizer(case)
    if wrapped and fused and block(case.config, "optimizer").get("legacy_fusion") is True:
        path = ("optimizer", "legacy_fusion")
        yield Problem("DS516", "error", path, "the first step fails with it", "leave it out", (Remove(path),))


def untested(case: Case) -> Iterator[Problem]:
    """Find optimizers that ZeRO was not tested with and refuses unless told otherwise (runtime/engine.py:2298-2301)."""
    if (
        case.stage in (0, None)
        or case.config.get("zero_allow_untested_optimizer", False)
        or _name(case) not in _UNTESTED
    ):
        return
    message = f"ZeRO was not tested with {case.config['optimizer']['type']} and refuses it"
    advice = 'add "zero_allow_untested_optimizer": true at the top level'
    yield Problem("DS517", "error", ("optimizer", "type"), message, advice)


def muon_with_reduce_scatter(case: Case) -> Iterator[Problem]:
    """Find Muon with reduce_scatter at stage 3, where it needs whole gradients (zero/stage3.py:360-361)."""
    if case.stage == 3 and _name(case) == "muon" and flag(case.zero.get("reduce_scatter", True)):
        message = "Muon at stage 3 does not work with reduce_scatter, which is on by default"
        yield Problem("DS518", "error", ("optimizer", "type"), message, "set zero_optimization.reduce_scatter to false")


def lamb_with_fixed_scale(case: Case) -> Iterator[Problem]:
    """Find Lamb with a fixed loss scale: it needs a dynamic one, with fp16 on or off (runtime/engine.py:1781,
    2021-2023)."""
    scale = number(block(case.config, "fp16").get("loss_scale", 0))
    if _name(case) == "lamb" and scale:
        yield Problem("DS519", "error", ("fp16", "loss_scale"), "Lamb needs dynamic loss scaling", "write 0")


def cpu_adam_needed(case: Case) -> Iterator[Problem]:
    """Find 16-bit masters and partial offload without DeepSpeedCPUAdam (zero/stage3.py:299-313,
    stage_1_and_2.py:331)."""
    if case.stage in (0, None) or not offloads_optimizer(case) or _name(case) is None or _cpu_adam(case):
        return
    bf16 = bf16_name(case.config)
    wants: list[Path] = (
        [("zero_optimization", "offload_optimizer", "ratio")] if case.stage == 3 and _partial(case) else []
    )
    for name, key in (("fp16", "fp16_master_weights_and_grads"), (bf16, "bf16_master_weights_and_grads")):
        states = name == bf16 and flag(block(case.config, bf16).get("bf16_optimizer_states", False))
        if flag(block(case.config, name).get(key, False)) and not states:
            wants.append((name, key))
    for path in wants:
        advice = "use Adam or AdamW without torch_adam and ZenFlow"
        yield Problem("DS520", "error", path, "only works with DeepSpeed's CPU Adam", advice)


def _partial(case: Case) -> bool:
    ratio = number(block(case.zero, "offload_optimizer").get("ratio", 1.0))
    return ratio is not None and 0 <= ratio < 1
