"""``dsconf check FILE``: parsing and printing only; ``dsconf.live.check`` does the work."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from dsconf.cli.options import REAL, WHOLE, format_option, model_options, workload_options

if TYPE_CHECKING:
    from dsconf.live.result import CheckResult, Phase


@click.command(
    "check",
    epilog="Example: dsconf check ds_config.json --model Qwen/Qwen2.5-0.5B --gpus 8. "
    "Exit codes: 0 it ran, 1 it failed or the config is invalid, 2 wrong usage, 3 it cannot be run here.",
)
@click.argument("file")
@model_options
@click.option("--gpus", type=WHOLE, required=True, help="Total number of GPUs: the world size.")
@click.option("--gpus-per-node", type=WHOLE, default=8, show_default=True, help="GPUs in one node.")
@workload_options
@click.option("--steps", type=WHOLE, default=3, show_default=True, help="Optimizer steps to run.")
@click.option("--timeout", type=REAL, default=600.0, show_default=True, help="Seconds until the run is ended.")
@format_option("table", "json")
def command(file: str, output_format: str, **words: Any) -> int:
    """Prove the ds_config FILE by running a short real DeepSpeed training.

    With as many CUDA GPUs here as asked for, every rank is real. With fewer, one GPU rehearses rank 0 of the
    whole world: its allocations are real, the other ranks are not there. With none, two real ranks train a
    scaled-down model on the CPU. The weights are random.
    """
    from dsconf.live.check import check

    result = check(file, **words, progress=_progress)
    if output_format == "json":
        click.echo(json.dumps(_finite(result.to_json()), indent=2))
    elif result.measured.peak_bytes is not None:
        click.echo(table(result))
    if result.failure is not None:
        click.echo(f"dsconf: {result.failure.message}", err=True)
    return result.exit_code


def _progress(line: str) -> None:
    click.echo(f"check: {line}", err=True)


def _finite(value: Any) -> Any:
    """``value`` with NaN and infinities as null, which JSON has no words for."""
    if isinstance(value, float) and value - value != 0:
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, (list, tuple)) else value


def table(result: CheckResult) -> str:
    """The comparison as a person reads it: a heading, a row for each phase and for the whole."""
    from tabulate import tabulate

    rows = [[name, *_cells(phase)] for name, phase in result.phases.items()]
    rows += _whole(result)
    headers = ["phase", "predicted", "measured", "error"]
    grid = tabulate(rows, headers, colalign=("left", "right", "right", "right"), disable_numparse=True)
    return "\n".join([_heading(result), "", grid, "", *_remarks(result)])


def _heading(result: CheckResult) -> str:
    ran = f"rank 0 of {result.world_size_run}, rehearsed" if result.ranks == "rehearsed" else ""
    ran = ran or f"{result.world_size_run} real rank{'s' if result.world_size_run > 1 else ''}"
    return f"{ran} on {result.device}; peaks by {result.measured_by or 'what was journalled'}"


def _cells(phase: Phase) -> list[str]:
    return [_bytes(phase.predicted_bytes), _bytes(phase.measured_bytes), _percent(phase.error_percent)]


def _whole(result: CheckResult) -> list[list[str]]:
    predicted, measured = result.predicted, result.measured
    rows = [["peak", _bytes(predicted.peak_bytes), _bytes(measured.peak_bytes), _percent(result.error_percent)]]
    if measured.reserved_bytes is not None:
        rows.append(["reserved", _bytes(predicted.reserved_bytes), _bytes(measured.reserved_bytes), ""])
    rows.append(["step time", _seconds(predicted.step_seconds), _seconds(measured.step_seconds), ""])
    return rows


def _remarks(result: CheckResult) -> list[str]:
    remarks = [f"scaled down: {change}" for change in result.scaled_down]
    remarks += [f"note: {note}" for note in result.notes]
    if result.ranks == "rehearsed":
        remarks.append("note: a rehearsed step time holds no communication, and its loss means nothing")
    return remarks


def _bytes(num_bytes: int | None) -> str:
    from dsconf.units import format_bytes

    return "-" if num_bytes is None else format_bytes(num_bytes)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:+.1f} %"


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g} s"
