"""Repairs files: what would change as a diff, and the file written whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from dsconf.config.finding import FileReport
from dsconf.config.load import LoadError, name_of, read_text
from dsconf.config.repair.fix import Repair, repair
from dsconf.config.validate import ValidationOptions, check_text, unreadable
from dsconf.errors import InputError
from dsconf.report.files import write_whole


class Repaired(NamedTuple):
    """One file: what was found in it as it is, and what repairing it makes of it (None: nobody can read it)."""

    source: str
    report: FileReport
    repair: Repair | None

    @property
    def diff(self) -> str:
        """The change as a unified diff; empty where nothing changes."""
        return self.repair.diff(name_of(self.source)) if self.repair else ""


def repairs(sources: Sequence[str], asked: ValidationOptions) -> Iterator[Repaired]:
    """Yield what repairing each of ``sources`` would change; nothing is written."""
    for source in sources:
        name = name_of(source)
        try:
            text = read_text(source)
            made = repair(name, text, asked)
        except LoadError as error:
            yield Repaired(source, unreadable(name, error, asked.target), None)
        else:
            yield Repaired(source, check_text(name, text, asked), made)


def after(one: Repaired, asked: ValidationOptions) -> FileReport:
    """Return what is left to be found when ``one`` has been repaired, for the same loader."""
    if one.repair is None or not one.repair.repaired:
        return one.report
    return check_text(name_of(one.source), one.repair.after, asked._replace(target=one.report.target))


def write(one: Repaired) -> None:
    """Replace the file by its repaired text, whole or not at all; it keeps its permissions.

    Raises:
        InputError: it cannot be written, or it is not what was read any more.
    """
    if one.repair is None or one.repair.before == one.repair.after:
        return
    if read_text(one.source) != one.repair.before:
        raise InputError(f"{one.source}: was changed by somebody else meanwhile; nothing is written")
    write_whole(Path(one.source), one.repair.after)
