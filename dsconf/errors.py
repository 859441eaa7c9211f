"""The failures a person can cause or meet; each carries the exit code of the outside contract."""

from __future__ import annotations

from collections.abc import Sequence


class DsconfError(Exception):
    """One clear line for a person: what was given, what is wrong, what to do."""

    exit_code = 2


class InputError(DsconfError):
    """An option, argument or file cannot be used as given (exit 2)."""


class DoesNotFitError(DsconfError):
    """The question was understood and the answer is no (exit 1)."""

    exit_code = 1


class UnavailableError(DsconfError):
    """The step cannot be run here: no GPU, DeepSpeed not installed, time limit (exit 3)."""

    exit_code = 3


def closest(word: str, known: list[str] | tuple[str, ...]) -> str | None:
    """Return which of ``known`` an unknown ``word`` may stand for, or None when nothing is close."""
    from difflib import get_close_matches

    lowered = {name.lower(): name for name in known}
    close = get_close_matches(word.lower(), list(lowered), n=1, cutoff=0.6)
    return lowered[close[0]] if close else None


def one_of(option: str, word: str, words: Sequence[str]) -> str:
    """Return ``word``, which must be one of ``words``.

    Raises:
        InputError: it is not; the message names the option, the words and the nearest of them.
    """
    if not isinstance(word, str):
        raise InputError(f"{option}: {word!r} is not one of {', '.join(words)}")
    if word not in words:
        raise InputError(f"{option}: {word!r} is not one of {', '.join(words)}{nearest(word, tuple(words))}")
    return word


def nearest(word: str, known: list[str] | tuple[str, ...]) -> str:
    """Return a ``did you mean`` suffix for an unknown ``word``, or an empty string when nothing is close."""
    meant = closest(word, known)
    return f"; did you mean {meant!r}?" if meant is not None else ""
