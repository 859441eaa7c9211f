"""Clears the build locks of a process that was ended; ``guard.watch_build_locks`` takes them."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any


def clear(events: Iterable[dict[str, Any]]) -> None:
    """Delete the locks that the process with these ``events`` holds, and nobody else's."""
    for event in events:
        if event["event"] == "lock":
            lock, second_name = Path(event["path"]), Path(event["own"])
            with suppress(FileNotFoundError):  # never made, or given back
                if second_name.samefile(lock):
                    lock.unlink()
            second_name.unlink(missing_ok=True)
