"""Where each key of a JSON text stands."""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Iterator

Path = tuple[str | int, ...]
Place = tuple[int, int]

_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\],:]|[^\s{}\[\],:"]+')


def _walk(text: str) -> Iterator[tuple[Path, int]]:
    """Every path of strict JSON ``text`` with the offset of its key (of its value, in a list), in file order."""
    path: list[str | int] = []
    kinds: list[str] = []
    want_key = False
    for match in _TOKEN.finditer(text):
        token = match[0]
        if token in "}]":
            kinds.pop()
            path.pop()
            want_key = False
        elif token == ",":
            want_key = kinds[-1] == "{"
            if not want_key:
                path[-1] = int(path[-1]) + 1
        elif token == ":":
            want_key = False
        elif want_key:
            path[-1] = json.loads(token)
            yield tuple(path), match.start()
        else:
            if not kinds or kinds[-1] == "[":
                yield tuple(path), match.start()
            if token in "{[":
                kinds.append(token)
                path.append(0 if token == "[" else "")
                want_key = token == "{"


def _places(text: str) -> Iterator[tuple[Path, Place]]:
    starts = [0, *(match.end() for match in re.finditer("\n", text))]
    for path, offset in _walk(text):
        line = bisect_right(starts, offset)
        yield path, (line, offset - starts[line - 1] + 1)


def positions(text: str) -> dict[Path, Place]:
    """Line and column, from 1, of every path of strict JSON ``text``: of the key, or of the value in a list."""
    return dict(_places(text))


def first_duplicate(text: str) -> Place:
    """Line and column of the first key that its object already has.

    Raises:
        StopIteration: there is none.
    """
    seen: set[Path] = set()
    for path, place in _places(text):
        if path in seen:
            return place
        seen.add(path)
    raise StopIteration
