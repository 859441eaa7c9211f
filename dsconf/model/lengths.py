"""How long a sequence a model can be given."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dsconf.errors import InputError

if TYPE_CHECKING:
    from dsconf.model.spec import Model

USUAL = 2048
"""Tokens of a sequence where nobody says how many."""
TABLES = ("gptj",)
"""Families that rotate by a table with a row for each position, so that there are no more (GPT-J's
``create_sinusoidal_positions``); the others compute what they rotate by."""


def most_positions(model: Model) -> int | None:
    """Tokens beyond which the model's own code fails: positions that it learned, or a table of them; else None."""
    computed = model.rotary_dim and model.family not in TABLES
    return None if computed or model.alibi else model.positions


def sequence_length(seq_len: int | None, model: Model) -> int:
    """``seq_len``; where it is None ``USUAL`` tokens, or as many as the model has positions for.

    Raises:
        InputError: more than the model has positions for.
    """
    most = most_positions(model)
    if seq_len is None:
        return USUAL if most is None else min(USUAL, most)
    if most is not None and seq_len > most:
        raise InputError(f"--seq-len {seq_len}: {model.name} has {most} positions; use at most that")
    return seq_len
