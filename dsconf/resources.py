"""Finds the shipped schemas/, templates/ and docs/rules/ however dsconf is installed."""

from __future__ import annotations

from importlib import import_module
from importlib.resources import files
from pathlib import Path

_CHECKOUT = {"rules": "docs/rules"}
"""Where a folder stands in a checkout, if not at the top under its own name."""


def text(folder: str, name: str) -> str:
    """Return the text of ``schemas/<name>``, ``templates/<name>`` or ``docs/rules/<name>``.

    A bare checkout that is first on ``sys.path`` has no ``dsconf.schemas`` package, so the folder beside
    ``dsconf/`` is the second place to look.

    Raises:
        FileNotFoundError: no such file in that folder.
    """
    try:
        import_module(f"dsconf.{folder}")
    except ModuleNotFoundError:
        home = Path(__file__).resolve().parent.parent
        return (home / _CHECKOUT.get(folder, folder) / name).read_text(encoding="utf-8")
    return files(f"dsconf.{folder}").joinpath(name).read_text(encoding="utf-8")
