"""Finds the shipped schemas/, templates/ and docs/rules/ however dsconf is installed."""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path
from typing import Any

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
        spec = import_module(f"dsconf.{folder}").__spec__
    except ModuleNotFoundError:
        home = Path(__file__).resolve().parent.parent
        return (home / _CHECKOUT.get(folder, folder) / name).read_text(encoding="utf-8")
    # As pkgutil.get_data does, from a folder or a zip; importing importlib.resources would take longer than the rest.
    assert spec is not None
    assert spec.origin is not None
    loader: Any = spec.loader
    data: bytes = loader.get_data(os.path.join(os.path.dirname(spec.origin), name))
    return data.decode("utf-8").replace("\r\n", "\n")
