"""Options of the command line, made from the words of ``dsconf/request.py``."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType
from typing import Any, TypeVar

import click

from dsconf.word import Word, option_of, words_of

F = TypeVar("F", bound=Callable[..., Any])


class _Read(click.ParamType[Any]):
    """Reads text as the word says; a refusal is the word's own sentence."""

    def __init__(self, option: str, word: Word) -> None:
        self.name = "value"
        self._option, self._word = option, word

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if self._word.read is None or not isinstance(value, str):
            return value
        read = self._word.read(self._option, value)
        # What stands for a number that is found out later is left for the function that takes the word.
        return value if self._word.alone is not None else read

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str | None:
        return f"[{'|'.join(self._word.choices)}]" if self._word.choices else None


def word_options(
    *kinds: type[Any],
    without: Collection[str] = (),
    required: Collection[str] = (),
    defaults: Mapping[str, Any] = MappingProxyType({}),
    helps: Mapping[str, str] = MappingProxyType({}),
) -> Callable[[F], F]:
    """Return a decorator that adds an option for each word of ``kinds``, in order.

    Args:
        without: words that the command does not take, or has an option of its own for.
        required: words that must be given.
        defaults: those of the command where they are not the words' own.
        helps: what the command says of a word where it means something narrower.
    """
    words: dict[str, Word] = {}
    for kind in kinds:
        words |= {name: word for name, word in words_of(kind).items() if name not in without and not word.python_only}
    options = []
    for name, word in words.items():
        word = word._replace(default=defaults.get(name, word.default), help=helps.get(name, word.help))
        options.append(_option(name, word, name in required))
    return combine(*options)


def _option(name: str, word: Word, required: bool) -> Callable[[F], F]:
    option = option_of(name, word)
    if word.switch == "on":
        return click.option(option, name, is_flag=True, help=word.help)
    if word.switch == "on/off":
        return click.option(f"{option}/--no-{option.removeprefix('--')}", name, default=word.default, help=word.help)
    alone: dict[str, Any] = {} if word.alone is None else {"is_flag": False, "flag_value": word.alone}
    return click.option(
        option,
        name,
        type=_Read(option, word),
        default=word.default,
        show_default=word.default is not None,
        required=required,
        metavar=word.metavar or (None if word.choices else "NUMBER" if word.read is not None else None),
        help=word.help,
        **alone,
    )


def combine(*decorators: Callable[[F], F]) -> Callable[[F], F]:
    """Return one decorator that applies ``decorators`` so that --help lists them in the order given."""

    def apply(function: F) -> F:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return apply


def format_option(*choices: str) -> Callable[[F], F]:
    """Return ``--format``; the first choice is the default."""
    return click.option("--format", "output_format", type=click.Choice(choices), default=choices[0], show_default=True)


def finite(value: Any) -> Any:
    """Return ``value`` with NaN and infinities as null, which JSON has no words for."""
    if isinstance(value, float) and value - value != 0:
        return None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    return [finite(item) for item in value] if isinstance(value, (list, tuple)) else value
