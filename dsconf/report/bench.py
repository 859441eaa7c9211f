"""A bench as a person reads it: one row for each strategy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from dsconf.units import format_bytes

if TYPE_CHECKING:
    from dsconf.live.bench import BenchResult, Row

HEADERS = ("strategy", "ranks", "s a step", "tokens/s", "against single", "peak of a rank", "loss, first → last")


def bench_text(result: BenchResult) -> str:
    """Return the table, and what all rows have in common."""
    from tabulate import tabulate

    tried = any(row.resumed is not None for row in result.rows)
    headers = [*HEADERS, *(["resumes"] if tried else [])]
    rows = [list(_cells(row))[: len(headers)] for row in result.rows]
    align = ("left", *["right"] * 5, *["left"] * (len(headers) - 6))
    heading = (
        f"{result.steps} steps of {result.global_batch} sequences of {result.seq_len} tokens on {result.device}; "
        f"{', '.join(f'{name} {version}' for name, version in result.versions.items())}"
    )
    grid = tabulate(rows, headers, colalign=align, disable_numparse=True)
    return "\n".join([heading, "", grid, "", *_remarks(result)])


def _cells(row: Row) -> Iterator[str]:
    yield row.strategy
    yield str(row.world_size)
    yield "-" if row.step_seconds is None else f"{row.step_seconds:.3g}"
    yield "-" if row.tokens_per_second is None else f"{row.tokens_per_second:,.0f}"
    yield "-" if row.speedup is None else f"{row.speedup:.2f} ×"
    yield "-" if row.peak_bytes is None else format_bytes(row.peak_bytes)
    if row.failure is not None:
        yield f"failed: {row.failure.kind}"
    else:
        yield f"{row.losses[0]:.4f} → {row.losses[-1]:.4f}" if row.losses else "-"
    yield "-" if row.resumed is None else "yes" if row.resumed else "no"


def _remarks(result: BenchResult) -> Iterator[str]:
    differences = [row.loss_difference for row in result.rows if row.loss_difference is not None]
    if len(differences) > 1:
        first = result.rows[0].strategy
        yield f"losses: no step of any strategy is more than {max(differences):.2g} from {first}'s"
    yield from (f"scaled down: {change}" for change in result.scaled_down)
    yield from (f"note: {note}" for note in result.notes)
