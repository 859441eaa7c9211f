"""Finds how two answers to one question differ, and groups what differs alike."""

from __future__ import annotations

import json
import re
import shlex
from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import zip_longest
from typing import Any, NamedTuple

from benchmarks.answers.question import Answer, Question

TEXTS = ("text", "numbers in a text", "layout")
"""What does not count where numbers alone do. A string without a blank, such as ``yes`` or ``DS901``, is a word and no
text."""
_NUMBER = re.compile(r"\d[\d,._]*(?:[eE][-+]?\d+)?")
_LONGEST = 160


class Difference(NamedTuple):
    """One thing that is not the same."""

    place: str
    """What it is in: ``exit code``, ``stdout.terms.gradients``, ``stderr``, ``written ds_config.json`` …"""
    nature: str
    old: Any
    new: Any


Groups = dict[tuple[str, str, str], list[tuple[Question, Difference]]]
"""Differences by command, place and nature; of one answer the first of each."""


class Found(NamedTuple):
    """Differences of many answers."""

    answers: int
    equal: int
    groups: Groups


def compare(pairs: Iterable[tuple[Question, Answer, Answer]], numbers_only: bool = False) -> Found:
    """How the old and the new answer to each question differ."""
    answers = equal = 0
    groups: Groups = defaultdict(list)
    for question, old, new in pairs:
        answers += 1
        first: dict[tuple[str, str, str], Difference] = {}
        for found in differences(old, new):
            if not (numbers_only and (found.nature in TEXTS or found.place == "stderr")):
                first.setdefault((question.args[0] if question.args else "", found.place, found.nature), found)
        equal += not first
        for key, found in first.items():
            groups[key].append((question, found))
    return Found(answers, equal, groups)


def differences(old: Answer, new: Answer) -> Iterator[Difference]:
    """Everything that is not the same."""
    if old == new:
        return
    if old.exit_code != new.exit_code:
        yield Difference("exit code", "number", old.exit_code, new.exit_code)
    if old.exception != new.exception:
        yield Difference("exception", "key", old.exception, new.exception)
    yield from _of_outputs("stdout", old.stdout, new.stdout)
    yield from _of_outputs("stderr", old.stderr, new.stderr)
    for name in sorted({*old.written, *new.written}):
        one, other = old.written.get(name), new.written.get(name)
        if one is None or other is None:
            yield Difference(f"written {name}", "key", one and "a file", other and "a file")
        else:
            yield from _of_outputs(f"written {name}", one, other)


def _of_outputs(place: str, old: str, new: str) -> Iterator[Difference]:
    if old == new:
        return
    one, other = _document(old), _document(new)
    if one is None or other is None:
        yield _of_texts(place, old, new)
        return
    found = list(_of_values(place, one, other))
    yield from found or [Difference(place, "layout", old, new)]


def _document(text: str) -> Any:
    """The JSON object or list that ``text`` is, or None."""
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, (dict, list)) else None


def _of_values(place: str, old: Any, new: Any) -> Iterator[Difference]:
    """Differences of JSON values, of all items of a list under one place."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys([*old, *new]):
            if key not in old or key not in new:
                yield Difference(f"{place}.{key}", "key", old.get(key, "absent"), new.get(key, "absent"))
            else:
                yield from _of_values(f"{place}.{key}", old[key], new[key])
    elif isinstance(old, list) and isinstance(new, list):
        if len(old) != len(new):
            yield Difference(f"{place}[]", "length", len(old), len(new))
        for one, other in zip(old, new, strict=False):
            yield from _of_values(f"{place}[]", one, other)
    elif isinstance(old, str) and isinstance(new, str):
        if old != new:
            yield _of_texts(place, old, new)
    elif old != new or type(old) is not type(new):
        both = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in (old, new))
        yield Difference(place, "number" if both else "value", old, new)


def _of_texts(place: str, old: str, new: str) -> Difference:
    """The first line that is another."""
    if not re.search(r"\s", old + new):
        return Difference(place, "word", old, new)
    alike = _NUMBER.sub("0", old) == _NUMBER.sub("0", new)
    lines = zip_longest(old.splitlines(), new.splitlines())
    one, other = next(((one, other) for one, other in lines if one != other), (old[-20:], new[-20:]))
    return Difference(place, "numbers in a text" if alike else "text", one, other)


def report(found: Found, shown: int, most: int = 60) -> Iterator[str]:
    """Lines for a person: the groups from the largest down, each with its first ``shown`` cases."""
    yield f"{found.equal} of {found.answers} answers are equal"
    largest = sorted(found.groups.items(), key=lambda item: -len(item[1]))
    for (command, place, nature), cases in largest[:most]:
        yield ""
        yield f"{command} · {place} · {nature}: {len(cases)} answers{_apart(nature, cases)}"
        for question, one in cases[:shown]:
            yield f"    {_short(one.old)} → {_short(one.new)}"
            yield f"        dsconf {_short(shlex.join(question.args), 400)}"
    if len(largest) > most:
        yield f"\n… and {len(largest) - most} more groups"


def _apart(nature: str, cases: list[tuple[Question, Difference]]) -> str:
    """By how much numbers differ at most."""
    if nature != "number":
        return ""
    worst = max(abs(one.new - one.old) / max(abs(one.old), abs(one.new), 1e-300) for _, one in cases)
    return f", at most {100 * worst:.3g} % apart"


def _short(value: Any, longest: int = _LONGEST) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    text = text.encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= longest else f"{text[:longest]}…"
