"""The sentence of each finding: one table from its code to a function of its figures."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from dsconf.report.reasons.alternatives import ALTERNATIVES
from dsconf.report.reasons.winner import WINNER
from dsconf.search.explain.reason import Reason

TABLE: dict[str, Callable[..., str]] = {**WINNER, **ALTERNATIVES}
"""Code → what makes its sentence of the figures; docs/recommend.md lists them."""


def sentence(reason: Reason) -> str:
    """Say ``reason`` in English."""
    return TABLE[reason.code](**reason.figures)


def sentences(reasons: Iterable[Reason]) -> list[str]:
    """Say each of ``reasons``."""
    return [sentence(reason) for reason in reasons]
