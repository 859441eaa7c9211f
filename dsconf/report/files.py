"""Writes files whole or not at all, and never over others unasked."""

from __future__ import annotations

import os
from collections.abc import Mapping
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


def refuse_folder(path: Path) -> None:
    """Refuse a name that a folder has.

    Raises:
        InputError: it is a folder.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder; choose another one with -o DIR")


def refuse_other(path: Path, text: str, force: bool) -> None:
    """Refuse to replace a file that holds anything but ``text`` without ``force``.

    Raises:
        InputError: the file exists and differs, or is no file.
    """
    refuse_folder(path)
    if not force and path.exists() and path.read_bytes() != text.encode():
        raise InputError(f"{path} already exists; use --force to replace it, or name another folder with -o")


def write_whole(path: Path, content: str | bytes) -> None:
    """Write ``content`` beside ``path`` and rename it, so that nobody ever reads half of it.

    A file that is replaced keeps its permissions; a link stays and what it leads to is replaced. A new script
    (``.sh``) may be run by whoever may read it.

    Raises:
        InputError: the folder cannot be created or written.
    """
    write_together({path: content})


def write_together(files: Mapping[Path, str | bytes]) -> None:
    """Do as ``write_whole`` for several files: when one cannot be written, files and folders are as before.

    Raises:
        InputError: a folder cannot be created or written.
    """
    # The process's number keeps two runs apart; tempfile would cost 4 ms of a 0.2 s command to import.
    real = {path: path.resolve() if path.is_symlink() else path for path in files}
    beside = {path: real[path].with_name(f".{path.name}.{os.getpid()}") for path in files}
    missing = {folder for path in real.values() for folder in path.parents if not folder.exists()}
    before: dict[Path, bytes | None] = {}
    done = False
    try:
        for path, content in files.items():
            _write_beside(real[path], beside[path], content.encode() if isinstance(content, str) else content)
        for path in files:
            before[path] = None
            if len(files) > 1 and real[path].exists():
                before[path] = _content(real[path])
            _rename(beside[path], real[path])
        done = True
    finally:
        with suppress(OSError):
            if not done:
                _put_back({real[path]: content for path, content in list(before.items())[:-1]})
        for path in beside.values():
            with suppress(OSError):
                path.unlink()
        if not done:
            for folder in sorted(missing, key=lambda folder: len(folder.parts), reverse=True):
                with suppress(OSError):
                    folder.rmdir()


def _write_beside(path: Path, beside: Path, content: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_bytes(content)
        if path.exists():
            beside.chmod(path.stat().st_mode & 0o7777)
        elif path.suffix == ".sh":
            mode = beside.stat().st_mode & 0o7777
            beside.chmod(mode | (mode & 0o444) >> 2)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from None


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot replace {path}: {error.strerror}") from None


def _rename(beside: Path, path: Path) -> None:
    try:
        os.replace(beside, path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from None


def _put_back(before: Mapping[Path, bytes | None]) -> None:
    """Put back: files that were replaced get their old content again; those that were new are removed."""
    for path, content in before.items():
        if content is None:
            path.unlink()
        else:
            path.write_bytes(content)
