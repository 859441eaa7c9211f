"""A check as a person reads it: a heading, a row for each phase and for the whole, remarks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from dsconf.units import format_bytes

if TYPE_CHECKING:
    from dsconf.live.result import CheckResult, Phase


def check_text(result: CheckResult) -> str:
    """Return the comparison of predicted and measured."""
    from tabulate import tabulate

    rows = [[name, *_cells(phase)] for name, phase in result.phases.items()]
    rows += _whole(result)
    headers = ["phase", "predicted", "measured", "error"]
    grid = tabulate(rows, headers, colalign=("left", "right", "right", "right"), disable_numparse=True)
    return "\n".join([_heading(result), "", grid, "", *_remarks(result)])


def _heading(result: CheckResult) -> str:
    ran = f"rank {result.rank} of {result.world_size_run}, rehearsed" if result.ranks == "rehearsed" else ""
    ran = ran or f"{result.world_size_run} real rank{'s' if result.world_size_run > 1 else ''}"
    limit = f", of which {format_bytes(result.limit_bytes)} may be used" if result.limit_bytes else ""
    return f"{ran} on {result.device}{limit}; peaks by {result.measured_by or 'what was journalled'}"


def _cells(phase: Phase) -> list[str]:
    return [_bytes(phase.predicted_bytes), _bytes(phase.measured_bytes), _percent(phase.error_percent)]


def _whole(result: CheckResult) -> list[list[str]]:
    predicted, measured = result.predicted, result.measured
    rows = [["peak", _bytes(predicted.peak_bytes), _bytes(measured.peak_bytes), _percent(result.error_percent)]]
    for name, field in (("initialisation", "init_bytes"), ("reserved", "reserved_bytes"), ("process", "process_bytes")):
        if getattr(measured, field) is not None:
            rows.append([name, _bytes(getattr(predicted, field)), _bytes(getattr(measured, field)), ""])
    if result.host_peak_bytes is not None:
        rows.append(["host, each process", "", _bytes(result.host_peak_bytes), ""])
    rows.append(["step time", _seconds(predicted.step_seconds), _seconds(measured.step_seconds), ""])
    if result.tokens_per_second:
        rows.append(["tokens/s", "", f"{result.tokens_per_second:,.0f}", ""])
    if result.loss is not None:
        rows.append(["loss", "", f"{result.loss:.3f}", ""])
    return rows


def _remarks(result: CheckResult) -> Iterator[str]:
    if result.fit is not None:
        yield _boundary(result)
    if result.furthest_off is not None:
        part = result.furthest_off
        sign = "more" if part.off_bytes >= 0 else "less"
        off = f"{format_bytes(abs(part.off_bytes))} {sign} predicted than measured"
        yield f"furthest off: {part.name} ({', '.join(part.terms[:3])}), {off}"
    if result.snapshot:
        yield f"memory snapshot: {result.snapshot} (open it at pytorch.org/memory_viz)"
    yield from (f"scaled down: {change}" for change in result.scaled_down)
    yield from (f"note: {note}" for note in result.notes)
    if result.ranks == "rehearsed":
        yield "note: a rehearsed step time holds no communication, and its loss means nothing"


def _boundary(result: CheckResult) -> str:
    assert result.fit is not None
    tried = ", ".join(f"{micro} {'ran' if ran else 'did not'}" for micro, ran in result.fit.runs)
    if not result.fit.largest:
        return f"not even a micro-batch of 1 runs here (tried: {tried})"
    return f"the largest micro-batch that runs is {result.fit.largest} (tried: {tried})"


def _bytes(num_bytes: int | None) -> str:
    return "-" if num_bytes is None else format_bytes(num_bytes)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:+.1f} %"


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g} s"
