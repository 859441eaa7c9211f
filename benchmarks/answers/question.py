"""What is asked and what is answered, as plain values, and the helpers that every maker of questions needs."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, NamedTuple

Words = list[tuple[str, "str | None"]]
"""Options with their value, None for a switch; an argument has an empty name."""


class Question(NamedTuple):
    """One call of the command line in a folder that holds ``files`` and nothing else."""

    args: tuple[str, ...]
    files: dict[str, str]
    """Name → text; bytes that are not UTF-8 stand as lone surrogates (``surrogateescape``)."""
    stdin: str | None = None
    asks_more: bool = False
    """To be asked as a table too, and for each term of the answer."""


class Answer(NamedTuple):
    """What came back."""

    exit_code: int
    stdout: str
    stderr: str
    written: dict[str, str]
    """Files that were written or changed, by name."""
    exception: str | None = None
    """What no person should see: an exception that the command line let through."""


def chance_of(seed: int, kind: str, number: int) -> random.Random:
    """The dice of question ``number``, so that no question depends on those before it."""
    return random.Random(f"{seed} {kind} {number}")


def flat(words: Words) -> list[str]:
    """``words`` as a command line."""
    return [part for name, value in words for part in (name, value) if part]


def pick(chance: random.Random, weights: dict[Any, float]) -> Any:
    """One key, as often as its weight says."""
    return chance.choices(list(weights), list(weights.values()))[0]


def maybe(chance: random.Random, share: float, name: str, values: Sequence[Any] | None = None) -> Words:
    """The option ``name`` in ``share`` of all cases, with one of ``values``."""
    if chance.random() >= share:
        return []
    return [(name, None if values is None else str(chance.choice(values)))]


def switch(chance: random.Random, share: float, *names: str) -> Words:
    """One of the switches ``names`` in ``share`` of all cases."""
    return [(chance.choice(names), None)] if chance.random() < share else []


def misspelt(chance: random.Random, word: str) -> str:
    """``word`` with one slip of the fingers."""
    spot = chance.randrange(len(word)) if word else 0
    slips = (
        word[:spot] + word[spot + 1 :],
        word[:spot] + word[spot : spot + 1] + word[spot:],
        word[:spot] + chance.choice("aeioustr_") + word[spot + 1 :],
        word[:spot] + word[spot + 1 : spot + 2] + word[spot : spot + 1] + word[spot + 2 :],
        word.upper(),
        word + " ",
        word.replace("_", "-"),
    )
    return chance.choice(slips)
