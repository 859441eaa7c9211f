"""Reads and prints sizes and counts. Bytes are ints everywhere else; GiB exists only here."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeVar

from dsconf.errors import InputError

Number = TypeVar("Number", int, float)

KIB, MIB, GIB, TIB = 2**10, 2**20, 2**30, 2**40

_DECIMAL = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9, "t": 10**12}
_BYTES = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": KIB,
    "mib": MIB,
    "gib": GIB,
    "tib": TIB,
}
_FIGURE = r"\s*([-+]?(?:\d+(?:_\d+)*(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?)\s*"
_NUMBER = re.compile(_FIGURE + r"([a-zA-Z]*)\s*")
_RATE = re.compile(_FIGURE + r"(?:([kmgtKMGT])(i?))?(b|B|bits?)(?:/s|ps)\s*")
_BINARY = {"k": KIB, "m": MIB, "g": GIB, "t": TIB}
_BITS_OF_BYTE = 8


def _parse(value: str, units: dict[str, int], what: str, example: str) -> int:
    match = _NUMBER.fullmatch(value)
    if match is None or match[2].lower() not in units:
        raise InputError(f"{value!r} is not {what}; write it like {example}")
    try:
        size = float(match[1].replace("_", "")) * units[match[2].lower()]
        exact = int(size)
    except (ValueError, OverflowError):
        raise InputError(f"{value!r} is not a finite number") from None
    if exact <= 0:
        raise InputError(f"{value} is not a positive number")
    return exact


def parse_count(value: str) -> int:
    """Read a positive count such as ``70B``, ``1.5e9`` or ``125M`` (decimal units).

    Raises:
        InputError: not a number, an unknown unit, or not positive.
    """
    return _parse(value, _DECIMAL, "a count", "70B, 125M or 1.5e9")


def parse_bytes(value: str) -> int:
    """Read a positive number of bytes such as ``80GiB`` (binary) or ``80GB`` (decimal).

    Raises:
        InputError: not a number, an unknown unit, or not positive.
    """
    return _parse(value, _BYTES, "a size", "80GiB (2**30) or 80GB (10**9)")


def parse_rate(value: str) -> float:
    """Read the bytes a second of ``400Gbit/s``, ``400Gb/s`` or ``100Gbps`` (bits) and ``50GB/s`` or ``25GiB/s``.

    A lower-case b stands for bits and an upper-case B for bytes, of which ``Gi`` has 2**30 and ``G`` 10**9.

    Raises:
        InputError: not a number, no unit or an unknown one, or not positive.
    """
    match = _RATE.fullmatch(value)
    if match is None:
        bare = _NUMBER.fullmatch(value)
        wrong = f"{value!r} has no unit" if bare is not None and not bare[2] else f"{value!r} is not a rate"
        raise InputError(f"{wrong}; write it like 400Gbit/s (bits) or 50GB/s (bytes)")
    number, prefix, binary, unit = match.groups()
    size = (_BINARY if binary else _DECIMAL)[(prefix or "").lower()]
    rate = float(number.replace("_", "")) * size / (1 if unit == "B" else _BITS_OF_BYTE)
    if not 0 < rate < float("inf"):
        raise InputError(f"{value} is not a positive, finite rate")
    return rate


def whole(option: str, value: object) -> int:
    """Return the positive whole number that ``option`` was given, as a number or as text.

    Raises:
        InputError: it is none.
    """
    try:
        number = int(value)  # type: ignore[call-overload]
        exact = not isinstance(value, bool) and number == float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        exact = False
    if not exact or number <= 0:
        raise InputError(f"{option}: {_shown(value)} is not a positive whole number")
    return int(number)


def positive(option: str, value: object) -> float:
    """Return the positive, finite number that ``option`` was given, as a number or as text.

    Raises:
        InputError: it is none.
    """
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        number = 0.0
    if isinstance(value, bool) or not 0 < number < float("inf"):
        raise InputError(f"{option}: {_shown(value)} is not a positive number")
    return number


def _shown(value: object) -> str:
    """Return a number as it was written, anything else in quotes."""
    return str(value) if _NUMBER.fullmatch(str(value)) else repr(value)


def count(option: str, value: object) -> int:
    """Return the count that ``option`` was given, as a number or as text such as ``70B``.

    Raises:
        InputError: it is none.
    """
    return _named(option, parse_count, value) if isinstance(value, str) else whole(option, value)


def size(option: str, value: object) -> int:
    """Return the bytes that ``option``, some memory's size, was given: a number of them, or text such as ``80GiB``.

    Raises:
        InputError: no size, or one so small that its unit must have been forgotten.
    """
    num_bytes = _named(option, parse_bytes, value) if isinstance(value, str) else whole(option, value)
    if num_bytes < MIB and "b" not in str(value).lower():
        # nvidia-smi and free print thousands of MiB, datasheets some hundred GB.
        meant = f"{value}GiB" if num_bytes < 10_000 else f"{value}MiB"
        raise InputError(f"{option}: {value} is {num_bytes} bytes; did you mean {meant}?")
    return num_bytes


def rate(option: str, value: object) -> float:
    """Return the bytes a second that ``option`` was given as text.

    Raises:
        InputError: no rate, or one without a unit.
    """
    if not isinstance(value, str):
        raise InputError(f"{option}: {value!r} has no unit; write it like 400Gbit/s (bits) or 50GB/s (bytes)")
    return _named(option, parse_rate, value)


def _named(option: str, parse: Callable[[str], Number], value: str) -> Number:
    try:
        return parse(value)
    except InputError as error:
        raise InputError(f"{option}: {error}") from None


def format_rate(bytes_per_second: float, unit: str = "B") -> str:
    """Write a rate as a person would write it, ``300 GB/s``, or with ``unit`` ``bit`` ``400 Gbit/s``; decimal units."""
    rate = bytes_per_second * (1 if unit == "B" else _BITS_OF_BYTE)
    scales = ((10**12, "T"), (10**9, "G"), (10**6, "M"), (10**3, "k"))
    scale, prefix = next(((scale, prefix) for scale, prefix in scales if rate >= scale), (1, ""))
    figure = f"{rate / scale:,.0f}" if rate / scale >= 1000 else f"{rate / scale:.4g}"
    return f"{figure} {prefix}{unit}/s"


def gib(num_bytes: int) -> float:
    """Return bytes as GiB (2**30), for printing."""
    return num_bytes / GIB


def format_bytes(num_bytes: int) -> str:
    """Write ``num_bytes`` with the unit a person would choose: ``3.14 GiB``, ``66.0 MiB``, ``1.50 TiB``."""
    size = abs(num_bytes)
    for unit, name, digits in ((TIB, "TiB", 2), (GIB, "GiB", 2), (MIB, "MiB", 1), (KIB, "KiB", 1)):
        if size >= unit:
            return f"{num_bytes / unit:.{digits}f} {name}"
    return f"{num_bytes} B"


def format_seconds(seconds: float) -> str:
    """Three figures at most and never an exponent, without a unit: ``0.0123``, ``1.23``, ``1,234``."""
    if seconds < 0.001:
        return f"{seconds:.6f}"
    return f"{seconds:,.0f}" if seconds >= 100 else f"{seconds:.3g}"


def format_count(count: float) -> str:
    """Write ``count`` in decimal units: ``70.6B``, ``125M``, ``12.3k``."""
    for unit, name in ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "k")):
        if abs(count) >= unit:
            return f"{count / unit:.3g}{name}"
    return f"{count:.3g}"
