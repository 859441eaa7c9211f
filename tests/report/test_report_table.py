"""Figures are printed as a person reads them."""

from __future__ import annotations

import pytest

from dsconf.report.table import as_gib, as_rate, table
from dsconf.units import GIB, format_seconds


def test_a_table_lines_up_and_keeps_cells_as_they_are() -> None:
    printed = table(("stage", "GiB"), [["one", "1.50"], ["three", "1,204.9"]])
    assert printed.splitlines() == ["stage        GiB", "-------  -------", "one         1.50", "three    1,204.9"]


@pytest.mark.parametrize(
    ("num_bytes", "printed"), [(0, "-"), (GIB, "1.0"), (1536 * GIB, "1,536.0"), (GIB // 100, "0.0")]
)
def test_gib(num_bytes: int, printed: str) -> None:
    assert as_gib(num_bytes) == printed


@pytest.mark.parametrize(
    ("seconds", "printed"), [(0.012345, "0.0123"), (1.2345, "1.23"), (99.94, "99.9"), (1234.5, "1,234")]
)
def test_seconds(seconds: float, printed: str) -> None:
    assert format_seconds(seconds) == printed


@pytest.mark.parametrize(("rate", "printed"), [(12345.6, "12,346"), (10.4, "10"), (9.94, "9.9"), (0.371, "0.37")])
def test_rate(rate: float, printed: str) -> None:
    assert as_rate(rate) == printed
