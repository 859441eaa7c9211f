"""The same question on several numbers of GPUs: how much faster, how much dearer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from dsconf.cluster.read import refuse_too_many
from dsconf.errors import InputError
from dsconf.request import RecommendWords
from dsconf.search.answer import Recommendation
from dsconf.search.candidates import Tools
from dsconf.search.recommend import answer, read_asked, with_cost
from dsconf.search.space import check_split
from dsconf.units import whole
from dsconf.word import worded

if TYPE_CHECKING:
    from typing_extensions import Unpack


class SweepRow(NamedTuple):
    """The recommendation on one number of GPUs."""

    gpus: int
    found: Recommendation
    efficiency: float | None
    """Tokens a second of one GPU, as a part of those of one GPU on the fewest that fit; None where nothing fits."""

    @property
    def tokens_per_second(self) -> float:
        """Of the whole cluster; 0 where nothing fits."""
        return self.found.recommended.tokens_per_second if self.found.recommended is not None else 0.0


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
        return max(self.fitting, key=lambda row: row.tokens_per_second).gpus if self.fitting else None

    @property
    def cheapest(self) -> int | None:
        """The number of GPUs with most tokens an hour of a GPU; of equal ones the most."""
        return max(reversed(self.fitting), key=_each).gpus if self.fitting else None


def _each(row: SweepRow) -> float:
    return row.tokens_per_second / row.gpus


@worded(RecommendWords)
def sweep(
    gpus: str | int | Iterable[int],
    params: str | int | None = None,
    model: str | Path | Mapping[str, Any] | None = None,
    *,
    tools: Tools | None = None,
    **words: Unpack[RecommendWords],
) -> Sweep:
    """Ask ``recommend`` on each number of ``gpus``: an iterable, or text such as ``8,16,32``.

    The words are those of ``recommend``. Each row is a full search; it does not say what one change would buy, since
    the other rows do.

    Raises:
        InputError: an argument that cannot be used as given.
    """
    sizes = read_sizes(gpus)
    asked = read_asked(params, model, sizes[0], tools, **words)
    if asked.question.wish.global_batch is not None:
        check_split(asked.question.wish.global_batch, sizes)
    rows = []
    for size in sizes:
        found = answer(asked.question.on(size), asked.target, alternatives=False)
        rows.append(SweepRow(size, with_cost(found, asked.tokens, asked.price), None))
    first = next((_each(row) for row in rows if row.found.recommended is not None), 1.0)
    measured = (
        row._replace(efficiency=_each(row) / first) if row.found.recommended is not None else row for row in rows
    )
    return Sweep(tuple(measured), asked.tokens, asked.price)


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
    refuse_too_many(max(sizes))
    return tuple(sorted(sizes))
