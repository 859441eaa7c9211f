"""Blocks that do nothing, or fail, because something else is missing."""

from __future__ import annotations

from collections.abc import Iterator

from dsconf.config.finding import Problem, Remove
from dsconf.config.rules.case import Case, block, flag, whole
from dsconf.errors import nearest

_SWITCHED = (
    *("comms_logger", "flops_profiler", "tensorboard", "wandb", "csv_monitor", "comet", "hybrid_engine"),
    *("torch_autocast", "autotuning"),
)
_RANDOM_LTD = ("total_layer_num", "random_ltd_layer_num", "random_ltd_schedule")
_LEVELS = ("debug", "info", "warning", "error", "critical")
_PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "comet": "comet_ml"}


def compiled_by_the_script(case: Case) -> Iterator[Problem]:
    """Find DeepCompile, which waits for engine.compile() and runs eagerly until then (runtime/engine.py:2997-3000)."""
    if flag(block(case.config, "compile").get("deepcompile", False)):
        message = "does nothing until the script calls engine.compile()"
        yield Problem("DS605", "note", ("compile", "deepcompile"), message)


def switched_off(case: Case) -> Iterator[Problem]:
    """Find blocks whose ``enabled`` is false by default (monitor/config.py, comm/config.py, profiling/config.py)."""
    for name in _SWITCHED:
        inner = block(case.config, name)
        if inner and "enabled" not in inner:
            yield Problem("DS606", "warning", (name,), "off by default: the block has no effect", 'add "enabled": true')


def without_type(case: Case) -> Iterator[Problem]:
    """Find blocks without ``type``: DeepSpeed reads nothing else of them (runtime/config.py:288-299, 325-336)."""
    for name, example in (("optimizer", "AdamW"), ("scheduler", "WarmupLR")):
        inner = block(case.config, name)
        if inner.get("type") is None and any(not key.startswith("_") for key in inner):
            message = "lacks 'type': DeepSpeed silently ignores the block"
            yield Problem("DS614", "error", (name,), message, f'add "type": "{example}" or another')


def every_operation(case: Case) -> Iterator[Problem]:
    """Find a list of operations beside ``prof_all``, which is on by default and wins (utils/comms_logging.py,
    comm/comm.py)."""
    logger = block(case.config, "comms_logger")
    if logger.get("prof_ops") and flag(logger.get("prof_all", True)):
        message = "prof_all is on, by default: all operations are logged, not only these"
        yield Problem("DS607", "warning", ("comms_logger", "prof_ops"), message, "set prof_all to false")


def missing_package(case: Case) -> Iterator[Problem]:
    """Find monitors whose package DeepSpeed imports when it builds the engine (monitor/*.py)."""
    for name, package in _PACKAGES.items():
        if flag(block(case.config, name).get("enabled", False)):
            yield Problem("DS608", "note", (name, "enabled"), f"needs the Python package {package} on every node")


def data_efficiency(case: Case) -> Iterator[Problem]:
    """Find data-efficiency blocks that lack a key.

    DeepSpeed checks them when it reads the file, even with the blocks around them off, and random-LTD when it builds
    the engine (runtime/data_pipeline/config.py, runtime/data_pipeline/data_routing/scheduler.py).
    """
    path = ("data_efficiency", "data_sampling")
    for name, key in (("curriculum_learning", "curriculum_metrics"), ("dynamic_batching", "max_tokens")):
        inner = block(case.config, *path, name)
        if inner.get("enabled", False) is True and key not in inner:
            yield Problem("DS609", "error", (*path, name, "enabled"), f"needs {key} beside it", f"add {key}")
    path = ("data_efficiency", "data_routing")
    dropping = block(case.config, *path, "random_ltd")
    if block(case.config, *path).get("enabled") is True and dropping.get("enabled", False) is True:
        missing = [key for key in _RANDOM_LTD if key not in dropping]
        if missing:
            message = f"needs {', '.join(missing)} beside it"
            yield Problem("DS609", "error", (*path, "random_ltd", "enabled"), message, f"add {missing[0]}")


def tensor_parallel_twice(case: Case) -> Iterator[Problem]:
    """Find two sizes that do not agree (runtime/engine.py:1019-1022); training reads autotp_size alone."""
    parallel = block(case.config, "tensor_parallel")
    size = whole(block(parallel, "tp").get("tp_size", 1)) or 1
    auto = whole(parallel.get("autotp_size", 0)) or 0
    path = ("tensor_parallel", "tp", "tp_size")
    if size > 1 and auto > 1 and size != auto:
        yield Problem(
            "DS610", "error", path, f"{size} differs from autotp_size {auto}", "leave it out", (Remove(path),)
        )
    elif size > 1 and auto <= 1:
        yield Problem("DS611", "warning", path, "training reads autotp_size: this has no effect", "set autotp_size")


def vocabulary(case: Case) -> Iterator[Problem]:
    """Find a vocabulary_size that is no multiple of 8: all DeepSpeed does with it is warn
    (runtime/config.py:716-721)."""
    size = whole(case.config.get("vocabulary_size"))
    if size is not None and size % 8:
        message = f"{size} is not a multiple of 8, which costs speed; all DeepSpeed does is warn"
        yield Problem("DS612", "note", ("vocabulary_size",), message, f"pad the vocabulary to {size + -size % 8}")


def log_level(case: Case) -> Iterator[Problem]:
    """Find log levels other than Python's long names, in any case (utils/logging.py)."""
    level = case.config.get("log_level")
    if isinstance(level, str) and level.lower() not in _LEVELS and level != "auto":
        message = f"{level!r} is not one of {', '.join(_LEVELS)}"
        yield Problem(
            "DS613", "error", ("log_level",), message, nearest(level.lower(), _LEVELS).removeprefix("; ") or None
        )
