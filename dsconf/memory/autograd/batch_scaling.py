"""How heights grow with the micro-batch, so that another batch needs no other recording.

Every tensor is in proportion to the batch or does not depend on it, and which tensors there are is the same for all
batches of several sequences. So each point of a tape lies on a line over the batch, which two batches tell, and a peak
is the highest of several lines. Only the scratch of a column sum goes its own way.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from dsconf.memory.autograd.backward import Height
from dsconf.memory.autograd.column_sum import ColumnSum

PeakPoints = Sequence[Sequence[Height]]
"""Of each of several peaks, all points that can be it."""


class Line(NamedTuple):
    """``slope`` × batch + ``start`` bytes, and the scratch of a column sum."""

    slope: int
    start: int
    column_sum: int = 0
    """Its number, 0 for none."""


class BatchScaling(NamedTuple):
    """Peaks of every batch of two sequences or more."""

    column_sums: tuple[tuple[Line, int], ...]
    """Rows and columns, from number 1 on."""
    first: tuple[Line, ...]
    """For each peak a line that it lies on or above."""
    others: tuple[tuple[int, Line], ...]
    """Number of a peak, and one more line that it can lie on."""

    def at(self, batch: int) -> list[int]:
        """Return the bytes of each peak for a micro-batch of ``batch`` sequences."""
        scratch = [0]
        scratch += [ColumnSum(rows.slope * batch + rows.start, columns).scratch for rows, columns in self.column_sums]
        found = [slope * batch + start + scratch[number] for slope, start, number in self.first]
        for peak, (slope, start, number) in self.others:
            size = slope * batch + start + scratch[number]
            if size > found[peak]:
                found[peak] = size
        return found


def batch_scaling(two: PeakPoints, three: PeakPoints) -> BatchScaling:
    """Return the lines through the points that there are for two and for three sequences."""
    sums: dict[ColumnSum, tuple[int, Line]] = {}
    first: list[Line] = []
    others: list[tuple[int, Line]] = []
    for peak, (some, same) in enumerate(zip(two, three, strict=True)):
        lines: list[Line] = []
        for one, other in zip(some, same, strict=True):
            number = 0
            if one.column_sum and other.column_sum:
                rows = _line(one.column_sum.rows, other.column_sum.rows)
                number, _ = sums.setdefault(one.column_sum, (len(sums) + 1, rows))
            lines.append(_line(one.num_bytes, other.num_bytes)._replace(column_sum=number))
        one_line, *rest = _highest(lines)
        first.append(one_line)
        others += [(peak, line) for line in rest]
    return BatchScaling(tuple((rows, one.columns) for one, (_, rows) in sums.items()), tuple(first), tuple(others))


def _line(two: int, three: int) -> Line:
    slope = three - two
    return Line(slope, two - 2 * slope)


def _highest(lines: Iterable[Line]) -> tuple[Line, ...]:
    """Return those of ``lines`` that can be the highest from two sequences on."""
    found: list[Line] = []
    for line in sorted(set(lines), key=lambda line: (2 * line.slope + line.start, line.slope), reverse=True):
        if not any(other.column_sum == line.column_sum and other.slope >= line.slope for other in found):
            found.append(line)
    return tuple(found)
