"""What ``validate`` says: one finding per cause, and a report per file."""

from __future__ import annotations

from typing import Any, NamedTuple

Path = tuple[str | int, ...]


class Rename(NamedTuple):
    """Call the key at ``path`` ``key``; its value and its place stay."""

    path: Path
    key: str


class Move(NamedTuple):
    """Put the key at ``path``, value and all, at ``to``; blocks that do not exist yet are made."""

    path: Path
    to: Path


class Remove(NamedTuple):
    """Take out the key at ``path`` with its value."""

    path: Path


class SetValue(NamedTuple):
    """Give the key at ``path`` the JSON value ``value``; a key that does not exist is added at the end of its block."""

    path: Path
    value: Any


Edit = Rename | Move | Remove | SetValue


class Problem(NamedTuple):
    """What one rule found, before its place in a file is known."""

    code: str
    severity: str
    """``error``: DeepSpeed rejects, ignores or changes it; ``warning``: it has no effect, or will be removed;
    ``note``."""
    path: Path
    message: str
    suggestion: str | None = None
    """What to write instead, as the end of a sentence."""
    fix: tuple[Edit, ...] = ()
    """What ``--fix`` does about it, in this order; empty unless it is certain what the person meant."""


class Finding(NamedTuple):
    """One problem at its place. ``line`` and ``column`` count from 1, None where the text has no such key."""

    code: str
    severity: str
    path: str
    """Dotted, as DeepSpeed's documentation writes it: ``zero_optimization.stage``; empty for the whole file."""
    message: str
    line: int | None = None
    column: int | None = None
    suggestion: str | None = None
    end_column: int | None = None
    """Column of the character after the key, on the same line."""
    fix: tuple[Edit, ...] = ()
    """What ``--fix`` does about it; empty where it leaves it alone."""


class FileReport(NamedTuple):
    """The findings of one file in the order they stand in it."""

    file: str
    valid: bool
    """No finding is an error."""
    findings: tuple[Finding, ...]
    target: str = "deepspeed"
    """Who is taken to load the file: ``deepspeed``, ``hf`` or ``accelerate``."""
    readable: bool = True
    text: str = ""
    """What was read, with newlines as ``open`` gives them."""


class Report(NamedTuple):
    """The reports of all files, in the order given."""

    files: tuple[FileReport, ...]

    @property
    def valid(self) -> bool:
        """Say whether every file is valid."""
        return all(file.valid for file in self.files)

    @property
    def readable(self) -> bool:
        """Say whether every file could be read."""
        return all(file.readable for file in self.files)


def dotted(path: Path) -> str:
    """Write ``("optimizer", "params", "betas", 0)`` as ``optimizer.params.betas.0``."""
    return ".".join(str(part) for part in path)


def edit_json(edit: Edit) -> dict[str, Any]:
    """Return ``edit`` as the JSON of the outside contract."""
    path = dotted(edit.path)
    if isinstance(edit, Rename):
        return {"edit": "rename", "path": path, "to": dotted((*edit.path[:-1], edit.key))}
    if isinstance(edit, Move):
        return {"edit": "move", "path": path, "to": dotted(edit.to)}
    return (
        {"edit": "remove", "path": path}
        if isinstance(edit, Remove)
        else {"edit": "set", "path": path, "value": edit.value}
    )


def finding_json(finding: Finding) -> dict[str, Any]:
    """Return ``finding`` as the JSON of the outside contract; it has a ``fix`` where ``--fix`` would do something."""
    names = ("code", "severity", "path", "line", "column", "message", "suggestion")
    shown = {name: getattr(finding, name) for name in names}
    return {**shown, "fix": [edit_json(edit) for edit in finding.fix]} if finding.fix else shown
