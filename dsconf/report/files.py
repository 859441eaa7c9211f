"""Writes a file whole or not at all, and never over another one unasked."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from dsconf.errors import InputError


def check_writable(folder: Path) -> None:
    """Refuse early, before any work, a folder that ``write_whole`` could not write into or create.

    Raises:
        InputError: not a folder, or no permission.
    """
    existing = folder
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        raise InputError(f"cannot write to {folder}: {existing} is not a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise InputError(f"cannot write to {folder}: no permission to write in {existing}")


def refuse_other(path: Path, text: str | None, force: bool) -> None:
    """Refuse to replace a file that holds anything but ``text`` (None: anything at all) without ``force``.

    Raises:
        InputError: the file exists and differs, or is no file.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder; choose another one with -o DIR")
    if force or not path.exists():
        return
    if text is None or path.read_bytes() != text.encode():
        raise InputError(f"{path} already exists; use --force to replace it, or -o DIR to write elsewhere")


def write_whole(path: Path, content: str | bytes) -> None:
    """Write ``content`` beside ``path`` and rename it, so that nobody ever reads half of it.

    A file that is replaced keeps its permissions; a link stays and what it leads to is replaced.

    Raises:
        InputError: the folder cannot be created or written.
    """
    path = path.resolve() if path.is_symlink() else path
    # The process's number keeps two runs apart; tempfile would cost 4 ms of a 0.2 s command to import.
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_bytes(content.encode() if isinstance(content, str) else content)
        if path.exists():
            beside.chmod(path.stat().st_mode & 0o7777)
        os.replace(beside, path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from None
    finally:
        with suppress(OSError):
            beside.unlink()
