"""What a training process reports to its parent: one JSON object a line, in a file of its own.

Standard output and standard error stay free for whatever DeepSpeed prints; they are only a log.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

FIRST = "first"
"""The process that looks at the machine; it goes on as rank 0 or as the launcher of the ranks."""


def rank_name(rank: int) -> str:
    """Return what ``rank`` is called in the names of its files."""
    return f"rank{rank}"


def journal_path(folder: Path, name: str) -> Path:
    """Return where the process called ``name`` writes."""
    return folder / f"{name}.jsonl"


def log_path(folder: Path, name: str) -> Path:
    """Return where standard output and standard error of the process called ``name`` go."""
    return folder / f"{name}.log"


class Journal:
    """The writing side; every event is on disk when ``write`` returns."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        self.phase = "start"
        self._file = journal_path(folder, name).open("a", encoding="utf-8")

    def write(self, event: str, **fields: Any) -> None:
        """Append one event with the time (seconds since the epoch)."""
        self._file.write(json.dumps({"event": event, "time": time.time(), **fields}) + "\n")
        self._file.flush()

    def enter(self, phase: str, **fields: Any) -> None:
        """Say what the process does from now on; a failure is reported with the phase it happened in."""
        self.phase = phase
        self.write("phase", phase=phase, **fields)


class JournalReader:
    """The reading side: hands out each event once."""

    def __init__(self, folder: Path, name: str) -> None:
        self._path = journal_path(folder, name)
        self._offset = 0

    def new_events(self) -> list[dict[str, Any]]:
        """Read the events written since the last call; a line still being written waits for the next call."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                whole = whole_lines(file.read())
        except FileNotFoundError:
            return []
        self._offset += len(whole)
        return parsed(whole)


def whole_lines(text: bytes) -> bytes:
    """Return ``text`` up to its last line end."""
    return text[: text.rfind(b"\n") + 1]


def parsed(lines: bytes) -> list[dict[str, Any]]:
    """Parse the events in whole ``lines``."""
    return [json.loads(line) for line in lines.splitlines()]
