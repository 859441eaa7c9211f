"""Finds what is said of an answer by its code."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from dsconf.search.explain.reason import Reason


def codes(reasons: Iterable[Reason]) -> list[str]:
    """The codes, in order."""
    return [reason.code for reason in reasons]


def figures(reasons: Iterable[Reason], code: str) -> dict[str, Any]:
    """The figures of the one reason with ``code``."""
    (found,) = (reason.figures for reason in reasons if reason.code == code)
    return found
