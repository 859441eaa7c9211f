"""Turns a JSON value into the type DeepSpeed reads it as.

The numbers and booleans of DeepSpeed's pydantic blocks are coerced in pydantic's lax mode: ``"5"``, ``5.0`` and
``5e8`` are whole numbers, ``"5e8"`` and ``5.5`` are not; ``"yes"``, ``"on"``, ``1`` are true.
https://docs.pydantic.dev/latest/concepts/conversion_table/
"""

from __future__ import annotations

import math
import re
from typing import Any

from dsconf.errors import InputError

WHOLE_TEXT = r"^\s*[+-]?[0-9]+(_[0-9]+)*(\.0+)?\s*$"
"""Strings that pydantic reads as a whole number; a JSON Schema pattern as well."""
TRUE_TEXT = ("1", "t", "true", "on", "y", "yes")
FALSE_TEXT = ("0", "f", "false", "off", "n", "no")

_DTYPES = {
    "bf16": ("bf16", "bfloat16", "torch.bfloat16"),
    "fp16": ("fp16", "float16", "half", "torch.float16"),
    "fp32": ("fp32", "float32", "float", "torch.float32"),
}


def _wrong(path: str, value: Any, wanted: str) -> InputError:
    shown = "null" if value is None else repr(value)
    return InputError(f"{path}: {shown[:80]} is not {wanted}")


def as_int(path: str, value: Any) -> int:
    """Read ``value`` as a whole number.

    Raises:
        InputError: DeepSpeed would not read it as one; the message begins with ``path``.
    """
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float) and math.isfinite(value) and value == int(value):
        return int(value)
    if isinstance(value, str) and len(value) < 100 and re.match(WHOLE_TEXT, value):
        return int(value.partition(".")[0])
    raise _wrong(path, value, "a whole number")


def as_float(path: str, value: Any) -> float:
    """Read ``value`` as a finite number.

    Raises:
        InputError: DeepSpeed would not read it as one; the message begins with ``path``.
    """
    if isinstance(value, (int, float, str)):
        try:
            number = float(value)
        except (ValueError, OverflowError):
            raise _wrong(path, value, "a number") from None
        if math.isfinite(number):
            return number
    raise _wrong(path, value, "a number")


def as_bool(path: str, value: Any) -> bool:
    """Read ``value`` as true or false.

    Raises:
        InputError: DeepSpeed would not read it as one; the message begins with ``path``.
    """
    if isinstance(value, str) and value.lower() in (*TRUE_TEXT, *FALSE_TEXT):
        return value.lower() in TRUE_TEXT
    if isinstance(value, (bool, int, float)) and value in (0, 1):
        return bool(value)
    raise _wrong(path, value, "true or false")


def as_text(path: str, value: Any) -> str:
    """Return ``value``, which must be a string.

    Raises:
        InputError: it is not; the message begins with ``path``.
    """
    if isinstance(value, str):
        return value
    raise _wrong(path, value, "a string")


def as_dtype(path: str, value: Any) -> str:
    """Read ``bf16``, ``fp16`` or ``fp32`` under any of the names DeepSpeed knows (runtime/config.py: DtypeEnum).

    Raises:
        InputError: none of them; the message begins with ``path``.
    """
    for dtype, names in _DTYPES.items():
        if isinstance(value, str) and value.lower() in names:
            return dtype
    raise _wrong(path, value, "one of bf16, fp16, fp32")


def as_block(path: str, value: Any) -> dict[str, Any]:
    """Return ``value``, which must be an object.

    Raises:
        InputError: it is not; the message begins with ``path``.
    """
    if isinstance(value, dict):
        return value
    raise _wrong(path, value, "an object")
