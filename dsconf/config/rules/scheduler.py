"""Names and arguments of learning-rate schedulers, as DeepSpeed 0.19.8 builds them (runtime/lr_schedules.py)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from dsconf.config.finding import Problem
from dsconf.config.rules.arguments import PYTHON_SCHEDULERS, REQUIRED, SCHEDULERS, TORCH_SCHEDULERS
from dsconf.config.rules.case import Case, block, number, precision
from dsconf.errors import nearest


def _type(case: Case) -> str | None:
    name = block(case.config, "scheduler").get("type")
    return name if isinstance(name, str) else None


def _params(case: Case) -> Mapping[str, object]:
    return block(case.config, "scheduler", "params")


def unknown_scheduler(case: Case) -> Iterator[Problem]:
    """Find names that are neither DeepSpeed's schedulers nor torch's, as they are spelled
    (runtime/engine.py:1923-1936)."""
    name = _type(case)
    if name in PYTHON_SCHEDULERS:
        message = f"{name} takes Python objects, which no file can hold"
        yield Problem("DS512", "error", ("scheduler", "type"), message, "build it in the script")
    elif name is not None and name not in SCHEDULERS and name not in TORCH_SCHEDULERS:
        hint = nearest(name, [*SCHEDULERS, *TORCH_SCHEDULERS]).removeprefix("; ")
        message = f"DeepSpeed has no scheduler {name!r}"
        yield Problem("DS512", "error", ("scheduler", "type"), message, hint or None)


def unknown_parameters(case: Case) -> Iterator[Problem]:
    """Find comments and typos among the arguments: a TypeError when the engine is built (runtime/engine.py:1934)."""
    name = _type(case)
    words = SCHEDULERS.get(name or "") or TORCH_SCHEDULERS.get(name or "")
    for key in _params(case):
        if words is not None and key not in words:
            hint = nearest(key, list(words)).removeprefix("; ") or None
            yield Problem("DS521", "error", ("scheduler", "params", key), f"{name} has no such parameter", hint)


def missing_parameters(case: Case) -> Iterator[Problem]:
    """Find arguments without a default, or params itself, left out (runtime/engine.py:1933-1934)."""
    name = _type(case)
    if name is None or (name not in SCHEDULERS and name not in TORCH_SCHEDULERS):
        return
    wanted = [key for key in REQUIRED.get(name, ()) if _params(case).get(key) is None]
    if wanted:
        message = f"{name} needs {' and '.join(wanted)}"
        yield Problem("DS522", "error", ("scheduler", "type"), message, f"add {wanted[0]} to params")
    elif case.config["scheduler"].get("params") is None:
        message = "without params DeepSpeed fails, even where every parameter has a default"
        yield Problem("DS522", "error", ("scheduler", "type"), message, 'add "params": {}')


def torch_scheduler_under_a_wrapper(case: Case) -> Iterator[Problem]:
    """Find torch's schedulers where they get ZeRO's optimizer or the 16-bit wrapper instead of a torch one
    (runtime/engine.py:1934)."""
    wrapped = case.stage in (1, 2, 3) or precision(case) in ("bf16", "fp16")
    if wrapped and _type(case) in TORCH_SCHEDULERS:
        message = "torch's schedulers refuse DeepSpeed's optimizer wrapper (ZeRO, bf16, fp16)"
        advice = f"use one of {', '.join(SCHEDULERS)}, or build it in the script"
        yield Problem("DS523", "error", ("scheduler", "type"), message, advice)


def over_before_warm(case: Case) -> Iterator[Problem]:
    """Find a warmup longer than the training, for which DeepSpeed logs a warning (lr_schedules.py: WarmupDecayLR)."""
    total, warmup = (number(_params(case).get(key)) for key in ("total_num_steps", "warmup_num_steps"))
    decays = _type(case) in ("WarmupDecayLR", "WarmupCosineLR")
    if decays and total is not None and (warmup if warmup is not None else 1000) > total:
        given = f"{warmup}" if warmup is not None else "1000, the default"
        message = f"training ends before the warmup of {given} steps does"
        yield Problem("DS524", "warning", ("scheduler", "params", "total_num_steps"), message, "set warmup_num_steps")
