"""What has been measured so far: files of JSON lines in one folder, each line written whole."""

from __future__ import annotations

import json
from pathlib import Path
from threading import Lock
from typing import Any

Row = dict[str, Any]
CASES, COLLECTIVES, BENCH, MACHINES = "cases.jsonl", "collectives.jsonl", "bench.jsonl", "machines.jsonl"
SUMMARY = "summary.txt"


class Records:
    """The lines of a folder. Each has a ``unit``: what was run for it."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self._lock = folder, Lock()
        self._rows = {name: self._read(name) for name in (CASES, COLLECTIVES, BENCH, MACHINES)}

    def rows(self, name: str) -> list[Row]:
        """Return the lines of the file ``name``, failures included."""
        return list(self._rows[name])

    def done(self) -> set[str]:
        """Return the units that need not be run again, failed ones included."""
        return {row["unit"] for name in (CASES, COLLECTIVES, BENCH) for row in self._rows[name]}

    def add(self, name: str, rows: list[Row]) -> None:
        """Append ``rows``, all of one unit, in one write."""
        text = "".join(json.dumps(row) + "\n" for row in rows)
        with self._lock, (self.folder / name).open("a", encoding="utf-8") as file:
            file.write(text)
            self._rows[name] += rows

    def forget_failures(self) -> None:
        """Drop what failed, so that it is run again."""
        for name in (CASES, COLLECTIVES, BENCH):
            self._rows[name] = [row for row in self._rows[name] if "error" not in row]
            self._write(name)

    def _write(self, name: str) -> None:
        draft = self.folder / f"{name}.draft"
        draft.write_text("".join(json.dumps(row) + "\n" for row in self._rows[name]), encoding="utf-8")
        draft.replace(self.folder / name)

    def _read(self, name: str) -> list[Row]:
        """Read the whole lines; a last one without its end was cut short by a kill and is dropped from the file,
        too."""
        place = self.folder / name
        if not place.exists():
            return []
        text = place.read_bytes()
        whole = text[: text.rfind(b"\n") + 1]
        if len(whole) < len(text):
            place.write_bytes(whole)
        return [json.loads(line) for line in whole.splitlines()]
