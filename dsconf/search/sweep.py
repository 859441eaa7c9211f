"""The same question on several numbers of GPUs: how much faster, how much dearer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from dsconf.cluster.read import refuse_too_many
from dsconf.errors import InputError
from dsconf.request import RecommendWords
from dsconf.search.answer import Recommendation
from dsconf.search.candidates import Candidate, CostModels
from dsconf.search.explain.reason import Reason, facts, gained, reason
from dsconf.search.explain.scaling import POOR, alike, brings_nothing, waits
from dsconf.search.rank import EQUAL
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
    tools: CostModels | None = None,
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
    if asked.question.fixed.global_batch is not None:
        check_split(asked.question.fixed.global_batch, sizes)
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
    """Return the numbers of GPUs, each once, fewest first.

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


def conclusions(found: Sweep) -> Iterator[Reason]:
    """Say which number is fastest and which cheapest, where more stop helping, and what was not held equal."""
    if not found.fitting:
        yield reason("sweep_nothing_fits")
    elif len(found.fitting) > 1:
        yield reason("sweep_best", fastest=found.fastest, cheapest=found.cheapest)
        yield from _neighbours(found)
        yield from _above(found)
        yield from _unequal(found)
    for gpus, winner, row in _winners(found):
        if winner.offloads:
            (host,) = (note for note in row.found.notes if note.code == "host_memory")
            yield reason("sweep_host_memory", gpus=gpus, **host.figures)
        held = row.found.why[0].figures["held_back"]
        if held is not None:
            yield reason("sweep_held_back", gpus=gpus, config=held)


def _winners(found: Sweep) -> Iterator[tuple[int, Candidate, SweepRow]]:
    """Iterate over the rows where something fits, with what is recommended there."""
    return ((row.gpus, row.found.recommended, row) for row in found.rows if row.found.recommended is not None)


def _neighbours(found: Sweep) -> Iterator[Reason]:
    """Say where more GPUs stop helping, or each of them gives much less: between rows that train in the same way."""
    for (fewer, few, _), (gpus, many, _) in pairwise(_winners(found)):
        gain = gained(many, few)
        each = (1 + gain) * fewer / gpus
        if not alike(few, many):
            continue
        if brings_nothing(gain, gpus / fewer):
            yield reason("sweep_brings_nothing", gpus=gpus, fewer=fewer, gain=gain, waits=waits(many, few))
        elif each < POOR:
            yield reason("sweep_each_gives_less", gpus=gpus, fewer=fewer, gain=each - 1, waits=waits(many, few))


def _above(found: Sweep) -> Iterator[Reason]:
    """Say why a GPU among more gives more than one among the fewest that fit."""
    (fewer, few, _), *rest = _winners(found)
    best = max(rest, key=lambda row: row[2].efficiency or 0.0, default=None)
    if best is None or (best[2].efficiency or 0.0) <= 1 + EQUAL:
        return
    gpus, many, row = best
    configs = {"config": facts(many), "config_of_fewer": facts(few)}
    gain = (row.efficiency or 0.0) - 1
    yield reason("sweep_each_gives_more", gpus=gpus, fewer=fewer, gain=gain, waits=waits(few, many), **configs)


def _unequal(found: Sweep) -> Iterator[Reason]:
    batches = [winner.global_batch for _, winner, _ in _winners(found)]
    if len(set(batches)) > 1:
        yield reason("sweep_batches_differ", least=min(batches), most=max(batches))
