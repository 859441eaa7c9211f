"""Repairs what has one safe answer, in the text of a file, and shows what it changes."""

from __future__ import annotations

from difflib import unified_diff
from typing import NamedTuple

from dsconf.config.finding import Edit, dotted
from dsconf.config.load import Loaded, LoadError, parse
from dsconf.config.repair.fix_text import rewritten
from dsconf.config.repair.fix_value import CannotFixError
from dsconf.config.validate import ValidationOptions, config_problems

_ROUNDS = 20
"""Most rounds: a repair can bring another one to light, such as a key that was moved and is misspelt."""


class Repair(NamedTuple):
    """A text before and after, and what was repaired."""

    before: str
    after: str
    repaired: tuple[str, ...] = ()
    """``code path`` of each problem, in the order repaired."""
    loaded: Loaded | None = None
    """What ``after`` is read as."""

    def diff(self, name: str) -> str:
        """Return the change as a unified diff, or nothing."""
        before, after = (text.splitlines(keepends=True) for text in (self.before, self.after))
        shown = unified_diff(before, after, name, name)
        return "".join(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in shown)


def repair(name: str, text: str, options: ValidationOptions) -> Repair:
    """Repair everything in ``text`` that has one safe answer for ``options``; ``name`` is what messages call it.

    Comments, layout, newlines and a byte order mark stay, except that a mark is taken out where the loader cannot read
    past it. Repairing the result again changes nothing.

    Raises:
        LoadError: nobody can read ``text``.
    """
    loaded = parse(name, text, options.target)
    options = options._replace(target=loaded.target)
    newline = _newline(text)
    if loaded.twice or loaded.not_finite or newline is None or not loaded.text:
        return Repair(text, text, (), loaded)
    done: list[str] = []
    seen = {loaded.text}
    for _ in range(_ROUNDS):
        after, repaired = _one_round(loaded, options)
        if not repaired or after in seen:
            break
        try:
            loaded = parse(name, after, options.target)
        except LoadError:
            break
        seen.add(after)
        done += repaired
    mark = "\ufeff" if text.startswith("\ufeff") else ""
    if mark and loaded.target != "deepspeed":
        mark, done = "", ["DS004", *done]
    if not done:
        return Repair(text, text, (), loaded)
    return Repair(text, mark + loaded.text.replace("\n", newline), tuple(done), loaded)


def _newline(text: str) -> str | None:
    """Return how lines end in ``text``; None where they end in several ways, which cannot be kept."""
    if "\r" not in text:
        return "\n"
    only = text.count("\r\n") == text.count("\n") == text.count("\r")
    return "\r\n" if only else None


def _one_round(loaded: Loaded, options: ValidationOptions) -> tuple[str, list[str]]:
    text, repaired = loaded.text, []
    for problem in config_problems(loaded.config, loaded.target, options):
        if not problem.fix:
            continue
        try:
            text = rewritten(text, problem.fix)
        except CannotFixError:
            continue
        repaired.append(f"{problem.code} {dotted(problem.path)}".rstrip())
    return text, repaired


class Replacement(NamedTuple):
    """Offsets of the text that is replaced, the end exclusive, and what comes in its place."""

    start: int
    end: int
    new: str


def replacement(text: str, edits: tuple[Edit, ...]) -> Replacement | None:
    """Return the smallest single change of ``text`` that makes ``edits``; None where they cannot be made."""
    try:
        after = rewritten(text, edits)
    except CannotFixError:
        return None
    shorter = min(len(text), len(after))
    start = next((place for place in range(shorter) if text[place] != after[place]), shorter)
    same = next((n for n in range(shorter - start) if text[-1 - n] != after[-1 - n]), shorter - start)
    return Replacement(start, len(text) - same, after[start : len(after) - same])
