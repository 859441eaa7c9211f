"""Turns what went wrong in a training process into one line and a kind."""

from __future__ import annotations

import re
from typing import Any

from dsconf.units import parse_bytes

ASKED = re.compile(r"[Tt]ried to allocate ([\d.]+ ?(?:[KMGT]i?B|bytes)|\d+)")

KINDS = {
    "OutOfMemoryError": "oom",
    "MissingPackageError": "missing",
    "FactoryError": "invalid",
    "InputError": "invalid",
    "FloatingPointError": "nan",
}
"""Kinds of failure by the name of the exception."""


def describe(error: Exception) -> dict[str, Any]:
    """Return ``kind``, one-line ``message`` and, for memory, ``asked_bytes`` of ``error``.

    Kinds: ``oom``, ``missing`` (a package), ``invalid`` (a factory), ``nan`` and ``exception``.
    """
    text = last_line(error)
    kind = KINDS.get(type(error).__name__, "exception")
    if "can't allocate memory" in text or isinstance(error, MemoryError):
        kind = "oom"
    if kind == "oom":
        return {"kind": kind, "message": text, "asked_bytes": asked_bytes(str(error))}
    return {"kind": kind, "message": text if kind != "exception" else f"{type(error).__name__}: {text}"}


def last_line(error: Exception) -> str:
    """Return the last line of the error's text that says anything, or its type."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def asked_bytes(text: str) -> int | None:
    """Read the size of the allocation that failed from torch's own message; None where it does not say."""
    match = ASKED.search(text)
    return parse_bytes(match[1].removesuffix("bytes").strip()) if match else None
