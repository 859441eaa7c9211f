"""Appends a measurement to a results file, in the form that ``benchmarks.memory.accuracy`` reads."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dsconf.errors import InputError
from dsconf.live.result import PHASES, CheckResult, RankFigures
from dsconf.units import MIB


def writable(option: str, place: str | Path, *, new: bool = False) -> Path:
    """Return ``place`` as an absolute path, looked at before a run of minutes ends in an error.

    Raises:
        InputError: a folder, in a folder that does not exist, or (``new``) there already.
    """
    path = Path(place).absolute()
    if path.is_dir():
        raise InputError(f"{option}: {place} is a folder; name a file")
    if not path.parent.is_dir():
        raise InputError(f"{option}: the folder {path.parent} does not exist")
    if new and path.exists():
        raise InputError(f"{option}: {place} exists; name another file or delete it first")
    return path


def append(place: Path, result: CheckResult, progress: Callable[[str], None]) -> CheckResult:
    """Write ``result`` as one more line of ``place``, where it is a measurement of a GPU's memory."""
    if not result.ran or result.order is None or result.order.device != "cuda" or result.order.module:
        progress(f"not recorded in {place.name}: only a run on a GPU that went to its end is, of a model by its config")
        return result
    with place.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record(result)) + "\n")
    return result


def record(result: CheckResult) -> dict[str, Any]:
    """Return one line: the case, and what was measured of the rank that holds most, in MiB and seconds."""
    return record_of(result, RankFigures(result.rank, result.measured, result.iterations))


def record_of(result: CheckResult, one: RankFigures) -> dict[str, Any]:
    """Return the line of ``one`` of the ranks of ``result``."""
    order = result.order
    assert order is not None
    half = any(order.ds_config.get(name, {}).get("enabled") for name in ("bf16", "fp16"))
    return {
        "name": _name(result, one.rank),
        "model": {key: value for key, value in order.hf_config.items() if value is not None},
        "world_size": order.world_size,
        "rank": one.rank,
        "rehearsed": order.rehearsed,
        "micro_batch_size": order.workload.micro_batch,
        "seq_len": order.workload.seq_len,
        "gradient_accumulation_steps": order.workload.accumulation,
        "gradient_checkpointing": order.workload.checkpointing,
        "checkpoint_use_reentrant": order.workload.reentrant if order.workload.checkpointing else None,
        "attention": order.workload.attention,
        "load_dtype": order.workload.load_dtype,
        "zero_init": order.workload.zero_init,
        "lora": {"r": order.lora_rank} if order.lora_rank else None,
        "quantize": order.workload.quantize or None,
        "strategy": order.backend,
        "autocast_bf16": order.backend == "ddp" and half,
        "ds_config": order.ds_config,
        "measured": {
            "init_peak_mib": _mib(one.measured.init_bytes),
            "peak_mib": _mib(one.measured.peak_bytes),
            "max_reserved_mib": _mib(one.measured.reserved_bytes),
            "process_mib": _mib(one.measured.process_bytes),
            "step_seconds": [iteration["step_seconds"] for iteration in one.iterations],
            "iterations": [_in_mib(iteration) for iteration in one.iterations],
        },
        "device": result.device,
        "versions": dict(result.versions),
    }


def _name(result: CheckResult, rank: int) -> str:
    order = result.order
    assert order is not None
    stage = order.ds_config.get("zero_optimization", {}).get("stage", 0)
    family = order.hf_config.get("model_type", "model")
    return f"{family}-z{stage}-w{order.world_size}-b{order.workload.micro_batch}-s{order.workload.seq_len}-r{rank}"


def _in_mib(iteration: Mapping[str, Any]) -> dict[str, float | None]:
    short = {"forward": "fwd", "backward": "bwd", "step": "step"}
    return {f"{short[phase]}_mib": _mib(iteration[f"{phase}_bytes"]) for phase in PHASES}


def _mib(num_bytes: int | None) -> float | None:
    return None if num_bytes is None else round(num_bytes / MIB, 2)
