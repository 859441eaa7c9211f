"""The same question on several numbers of GPUs: how much faster, how much dearer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from dsconf.errors import InputError
from dsconf.search.recommend import Recommendation, answer, read_asked, with_cost
from dsconf.search.words import whole


class SweepRow(NamedTuple):
    """The recommendation on one number of GPUs."""

    gpus: int
    found: Recommendation
    efficiency: float | None
    """Tokens a second of one GPU, as a part of those of one GPU on the fewest that fit; None where nothing fits."""


class Sweep(NamedTuple):
    """One row for each number of GPUs, fewest first. ``tokens`` and ``price`` are as they were asked for."""

    rows: tuple[SweepRow, ...]
    tokens: int | None
    price: float | None

    @property
    def fitting(self) -> tuple[SweepRow, ...]:
        """The rows where something fits."""
        return tuple(row for row in self.rows if row.found.recommended is not None)

    @property
    def fastest(self) -> int | None:
        """The number of GPUs with most tokens a second; of equal ones the fewest; None where nothing fits."""
        return max(self.fitting, key=_rate).gpus if self.fitting else None

    @property
    def cheapest(self) -> int | None:
        """The number of GPUs with most tokens an hour of a GPU; of equal ones the most."""
        return max(reversed(self.fitting), key=lambda row: _rate(row) / row.gpus).gpus if self.fitting else None


def _rate(row: SweepRow) -> float:
    return row.found.recommended.tokens_per_second if row.found.recommended is not None else 0.0


def sweep(gpus: str | int | Iterable[int], **words: Any) -> Sweep:
    """``recommend`` on each number of ``gpus``: an iterable, or text such as ``8,16,32``.

    ``words`` are those of ``recommend``. Each row is a full search; it does not say what one change would buy, since
    the other rows do.

    Raises:
        InputError: an argument that cannot be used as given.
    """
    sizes = read_sizes(gpus)
    asked = read_asked(gpus=sizes[0], **words)
    found = [answer(asked.question.on(size), asked.target, alternatives=False) for size in sizes]
    priced = [with_cost(one, asked.tokens, asked.price) for one in found]
    each = [
        one.recommended.tokens_per_second / size if one.recommended else None
        for one, size in zip(found, sizes, strict=True)
    ]
    first = next((rate for rate in each if rate is not None), None)
    rows = (
        SweepRow(size, one, None if rate is None or first is None else rate / first)
        for size, one, rate in zip(sizes, priced, each, strict=True)
    )
    return Sweep(tuple(rows), asked.tokens, asked.price)


def read_sizes(gpus: str | int | Iterable[int]) -> tuple[int, ...]:
    """Numbers of GPUs, each once, fewest first.

    Raises:
        InputError: none, or one that is not a positive whole number.
    """
    values = gpus.split(",") if isinstance(gpus, str) else gpus if isinstance(gpus, Iterable) else [gpus]
    try:
        sizes = {whole("--gpus", value) for value in values}
    except InputError:
        raise InputError(f"--gpus: {gpus} is not a number of GPUs, nor several such as 8,16,32") from None
    if not sizes:
        raise InputError("--gpus: give at least one number of GPUs")
    return tuple(sorted(sizes))
