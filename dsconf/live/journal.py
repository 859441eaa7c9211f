"""What a training process tells its parent: one JSON object a line, in a file of its own.

Standard output and standard error stay free for whatever DeepSpeed prints; they are only a log.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any


def journal_path(folder: Path, rank: int) -> Path:
    """Where ``rank`` writes."""
    return folder / f"rank{rank}.jsonl"


def log_path(folder: Path, rank: int) -> Path:
    """Standard output and standard error of ``rank``."""
    return folder / f"rank{rank}.log"


class Journal:
    """The writing side; every event is on disk when ``write`` returns."""

    def __init__(self, folder: Path, rank: int) -> None:
        self.folder = folder
        self.rank = rank
        self.phase = "start"
        self._file = journal_path(folder, rank).open("a", encoding="utf-8")

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

    def __init__(self, folder: Path, rank: int) -> None:
        self._path = journal_path(folder, rank)
        self._offset = 0

    def new_events(self) -> list[dict[str, Any]]:
        """Events written since the last call; a line still being written waits for the next call."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                text = file.read()
        except FileNotFoundError:
            return []
        whole = text[: text.rfind(b"\n") + 1]
        self._offset += len(whole)
        return [json.loads(line) for line in whole.splitlines()]
