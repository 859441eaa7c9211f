"""Finds the shipped schemas/ and templates/ in a wheel, an editable install, a zip and a bare checkout."""

from __future__ import annotations

from importlib import import_module
from importlib.resources import files
from pathlib import Path


def text(folder: str, name: str) -> str:
    """The text of ``schemas/<name>`` or ``templates/<name>``.

    A bare checkout that is first on ``sys.path`` has no ``dsconf.schemas`` package, so the folder beside
    ``dsconf/`` is the second place to look.

    Raises:
        FileNotFoundError: no such file in that folder.
    """
    try:
        import_module(f"dsconf.{folder}")
    except ModuleNotFoundError:
        return (Path(__file__).resolve().parent.parent / folder / name).read_text(encoding="utf-8")
    return files(f"dsconf.{folder}").joinpath(name).read_text(encoding="utf-8")
