"""Tables and figures as the commands print them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dsconf.units import gib


def table(headers: Sequence[str], rows: Sequence[Sequence[Any]], left: Sequence[int] = (0,)) -> str:
    """Lay out rows under ``headers``, every column to the right but the ones numbered in ``left``.

    Cells are printed as they are given: a figure is formatted by who knows its unit.
    """
    from tabulate import tabulate

    align = ["left" if column in left else "right" for column in range(len(headers))]
    return tabulate(rows, headers, tablefmt="simple", colalign=align, headersalign=align, disable_numparse=True)


def as_gib(num_bytes: int, digits: int = 1) -> str:
    """Write GiB without the unit, for a column whose header says it: ``61.2``; ``-`` for nothing at all."""
    return f"{gib(num_bytes):,.{digits}f}" if num_bytes else "-"


def as_rate(per_second: float) -> str:
    """Write tokens a second: ``12,345``, or ``0.37`` where there are few."""
    return f"{per_second:,.0f}" if per_second >= 10 else f"{per_second:.2g}"
