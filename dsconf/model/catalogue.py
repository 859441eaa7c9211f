"""Well-known models by name; the data, and where each value was seen, is in catalogue.json, read on first use."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple

TUNED_WORDS = frozenset({"instruct", "chat", "it", "base", "hf", "meta"})


class Entry(NamedTuple):
    """One published model."""

    name: str
    """Organisation and name on the Hugging Face hub."""
    config: Mapping[str, Any]
    """The keys of its config.json that decide its shape."""
    num_params: int | None
    """Parameters, tied weights once, where that very number was found published; else None."""
    source: str
    """Addresses of the public copies that ``config`` was compared with."""
    unconfirmed: tuple[str, ...]
    """Keys of ``config`` that no public copy of this model showed."""


@cache
def catalogue() -> tuple[Entry, ...]:
    """Return all entries, in the order of the file."""
    import json

    document = json.loads(_data())
    return tuple(_entry(name, row, document["sources"]) for name, row in document["models"].items())


def _entry(name: str, row: Mapping[str, Any], sources: Mapping[str, Any]) -> Entry:
    """Read one row of the file; its sources are keys of ``sources`` or addresses."""
    addresses = [sources[key]["url"] if key in sources else key for key in row["source"]]
    unconfirmed = tuple(row.get("unconfirmed", ()))
    return Entry(name, row["config"], row.get("num_params"), "; ".join(addresses), unconfirmed)


def _data() -> bytes:
    """Read catalogue.json from a folder or a zip; ``importlib.resources`` would take longer to import than the rest."""
    loader: Any = __spec__.loader if __spec__ else None
    data: bytes = loader.get_data(os.path.join(os.path.dirname(__file__), "catalogue.json"))
    return data


def names() -> tuple[str, ...]:
    """List every name, with the organisation and without."""
    full = tuple(entry.name for entry in catalogue())
    return (*full, *(name.rpartition("/")[2] for name in full))


def find(name: str) -> Entry | None:
    """Find the entry called ``name``, in any case, with or without its organisation; None where there is none.

    A tuned model (``Llama-3.1-8B-Instruct``, ``gemma-2-9b-it``) has the shape of its base, so it finds that.
    """
    wanted = name.strip().lower()
    for spelling in (str.lower, _base_name):
        for entry in catalogue():
            full = spelling(entry.name)
            if spelling(wanted) in (full, full.rpartition("/")[2]):
                return entry
    return None


def _base_name(name: str) -> str:
    """Return ``name`` in small letters without the words that mark a tuned or converted model."""
    organisation, slash, model = name.lower().rpartition("/")
    words = [word for word in model.split("-") if word not in TUNED_WORDS]
    return f"{organisation}{slash}{'-'.join(words)}"
