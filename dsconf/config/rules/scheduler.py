"""Names and arguments of learning-rate schedulers, as DeepSpeed 0.19.8 builds them (runtime/lr_schedules.py)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from dsconf.config.finding import Problem
from dsconf.config.rules.arguments import PYTHON_SCHEDULERS, REQUIRED, SCHEDULERS, TORCH_SCHEDULERS
from dsconf.config.rules.case import Case, block, number, precision
from dsconf.errors import nearest

_STEPS = ("warmup_num_steps", "lr_range_test_step_size", "cycle_first_step_size")


def _type(case: Case) -> str | None:
    name = block(case.config, "scheduler").get("type")
    return name if isinstance(name, str) else None


def _params(case: Case) -> Mapping[str, object]:
    return block(case.config, "scheduler", "params")


def unknown_scheduler(case: Case) -> Iterator[Problem]:
    """DeepSpeed's schedulers and torch's, as they are spelled (runtime/engine.py:1923-1936)."""
    name = _type(case)
    if name in PYTHON_SCHEDULERS:
        message = f"{name} takes Python objects, which no file can hold"
        yield Problem("DS512", "error", ("scheduler", "type"), message, "build it in the script")
    elif name is not None and name not in SCHEDULERS and name not in TORCH_SCHEDULERS:
        hint = nearest(name, [*SCHEDULERS, *TORCH_SCHEDULERS]).removeprefix("; ")
        message = f"DeepSpeed knows no scheduler {name!r}"
        yield Problem("DS512", "error", ("scheduler", "type"), message, hint or None)


def unknown_parameters(case: Case) -> Iterator[Problem]:
    """A comment or a typo among the arguments is a TypeError when the engine is built (runtime/engine.py:1934)."""
    name = _type(case)
    words = SCHEDULERS.get(name or "") or TORCH_SCHEDULERS.get(name or "")
    for key in _params(case):
        if words is not None and key not in words:
            hint = nearest(key, list(words)).removeprefix("; ") or None
            yield Problem("DS521", "error", ("scheduler", "params", key), f"{name} has no such parameter", hint)


def missing_parameters(case: Case) -> Iterator[Problem]:
    """Arguments without a default, and params itself, must be there (runtime/engine.py:1933-1934)."""
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


def impossible_steps(case: Case) -> Iterator[Problem]:
    """Steps must be positive (lr_schedules.py:734, 875 and the constructors of LRRangeTest and OneCycle)."""
    name = _type(case)
    for key in _STEPS:
        value = number(_params(case).get(key))
        if value is not None and value <= 0 and key in SCHEDULERS.get(name or "", ()):
            path = ("scheduler", "params", key)
            yield Problem("DS523", "error", path, f"{value} is not a positive number of steps")
    second = number(_params(case).get("cycle_second_step_size"))
    if name == "OneCycle" and second is not None and second < 0:
        path = ("scheduler", "params", "cycle_second_step_size")
        yield Problem("DS523", "error", path, f"{second} is a negative number of steps")


def torch_scheduler_under_a_wrapper(case: Case) -> Iterator[Problem]:
    """Torch's schedulers want a torch optimizer, and get ZeRO's or the 16-bit wrapper (runtime/engine.py:1934)."""
    wrapped = case.stage in (1, 2, 3) or precision(case) in ("bf16", "fp16")
    if wrapped and _type(case) in TORCH_SCHEDULERS:
        message = "torch's schedulers refuse DeepSpeed's optimizer wrapper (ZeRO, bf16, fp16)"
        advice = f"use one of {', '.join(SCHEDULERS)}, or build it in the script"
        yield Problem("DS524", "error", ("scheduler", "type"), message, advice)


def unknown_warmup_type(case: Case) -> Iterator[Problem]:
    """Anything but log and linear becomes log, with a line in the log (lr_schedules.py: WarmupLR.__init__)."""
    kind = _params(case).get("warmup_type", "log")
    if "warmup_type" in SCHEDULERS.get(_type(case) or "", ()) and kind not in ("log", "linear", "auto"):
        path = ("scheduler", "params", "warmup_type")
        yield Problem("DS525", "warning", path, f"{kind!r} is neither log nor linear: DeepSpeed takes log")


def over_before_warm(case: Case) -> Iterator[Problem]:
    """A warmup longer than the training never ends; DeepSpeed logs a warning (lr_schedules.py: WarmupDecayLR)."""
    total, warmup = (number(_params(case).get(key)) for key in ("total_num_steps", "warmup_num_steps"))
    decays = _type(case) in ("WarmupDecayLR", "WarmupCosineLR")
    if decays and total is not None and (warmup if warmup is not None else 1000) > total:
        given = f"{warmup}" if warmup is not None else "1000, the default"
        message = f"training ends before the warmup of {given} steps does"
        yield Problem("DS526", "warning", ("scheduler", "params", "total_num_steps"), message, "set warmup_num_steps")
