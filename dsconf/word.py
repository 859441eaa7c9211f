"""What a word of a request is: how it is read, spelt as an option, and shown in a function's signature."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar, cast

from dsconf.errors import nearest

Words = TypeVar("Words", bound=Mapping[str, Any])
F = TypeVar("F", bound=Callable[..., Any])


class Word(NamedTuple):
    """What is known of a word besides its name and type."""

    help: str = ""
    read: Callable[[str, Any], Any] | None = None
    """Returns the value of ``(option, value)`` or raises InputError; None: taken as it is."""
    default: Any = None
    choices: tuple[str, ...] = ()
    metavar: str | None = None
    option: str | None = None
    """Its option where that is not its name."""
    switch: str = ""
    """``on`` for an option without a value, ``on/off`` for one with its opposite."""
    alone: str | None = None
    """What the option means when no value follows it."""
    python_only: bool = False


def words_of(kind: type[Any], defaults: Mapping[str, Any] = MappingProxyType({})) -> dict[str, Word]:
    """Return the words of a TypedDict above by name, in order, with ``defaults`` in place of their own."""
    words: dict[str, Word] = {name: hint.__metadata__[0] for name, hint in kind.__annotations__.items()}
    return words | {name: words[name]._replace(default=value) for name, value in defaults.items()}


def worded(kind: type[Any], defaults: Mapping[str, Any] = MappingProxyType({})) -> Callable[[F], F]:
    """Return a decorator that shows ``help`` and editors the words behind a function's ``**words``."""

    def sign(function: F) -> F:
        from inspect import Parameter, signature

        bare = signature(function)
        own = [word for word in bare.parameters.values() if word.kind is not Parameter.VAR_KEYWORD]
        words = [
            Parameter(
                name, Parameter.KEYWORD_ONLY, default=word.default, annotation=kind.__annotations__[name].__origin__
            )
            for name, word in words_of(kind, defaults).items()
        ]
        function.__signature__ = bare.replace(parameters=[*own, *words])  # type: ignore[attr-defined]
        return function

    return sign


def option_of(name: str, word: Word) -> str:
    """Return how the command line spells the word ``name``."""
    return f"--{(word.option or name).replace('_', '-')}"


def read(kind: type[Words], words: Mapping[str, Any], defaults: Mapping[str, Any] = MappingProxyType({})) -> Words:
    """Return ``words`` checked and read, with the defaults of those left out.

    Raises:
        InputError: a value that cannot be used as given.
        TypeError: a word that ``kind`` does not have.
    """
    known = words_of(kind, defaults)
    for name in words:
        if name not in known:
            raise TypeError(f"unexpected keyword argument {name!r}{nearest(name, tuple(known))}")
    values: dict[str, Any] = {}
    for name, word in known.items():
        value = words.get(name, word.default)
        if value is None and word.read is None:
            value = word.default
        stays = word.read is None or (value is None and word.default is None)
        values[name] = value if stays or word.read is None else word.read(option_of(name, word), value)
    return cast("Words", values)
