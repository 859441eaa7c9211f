"""Micro-batch and accumulation: which pairs make a global batch exactly."""

from __future__ import annotations

from collections.abc import Sequence
from math import lcm

from dsconf.errors import InputError

MOST_TOKENS = 2**18
"""Tokens of the largest micro-batch tried when no global batch is given: matrix products are as fast as they
get from some 2**14 rows on, so a larger micro-batch buys memory use and no speed."""


def batches(
    world_size: int, seq_len: int, global_batch: int | None = None, micro_batch: int | None = None
) -> list[tuple[int, int]]:
    """All (micro-batch, accumulation) pairs with micro × accumulation × world = global, smallest first.

    DeepSpeed asserts that product (runtime/config.py:602). Without ``global_batch`` the accumulation is 1 and
    the micro-batches are the powers of two up to ``MOST_TOKENS`` tokens.

    Raises:
        InputError: the global batch cannot be split evenly; the message names the nearest that can.
    """
    if global_batch is None:
        return [(micro_batch, 1)] if micro_batch else [(micro, 1) for micro in _powers(seq_len)]
    _check_split(global_batch, world_size, micro_batch)
    per_rank = global_batch // world_size
    if micro_batch:
        return [(micro_batch, per_rank // micro_batch)]
    return [(micro, per_rank // micro) for micro in _divisors(per_rank)]


def check_split(global_batch: int, sizes: Sequence[int]) -> None:
    """Nothing, where ``global_batch`` can be split evenly over each number of GPUs in ``sizes``.

    Raises:
        InputError: it cannot; the message names the nearest that can.
    """
    if any(global_batch % size for size in sizes):
        raise InputError(_no_multiple(global_batch, lcm(*sizes), f"each of {', '.join(map(str, sizes))} GPUs"))


def _powers(seq_len: int) -> list[int]:
    most = max(1, MOST_TOKENS // seq_len)
    return [2**exponent for exponent in range(most.bit_length())]


def _divisors(number: int) -> list[int]:
    small = [divisor for divisor in range(1, int(number**0.5) + 1) if number % divisor == 0]
    return sorted({*small, *(number // divisor for divisor in small)})


def _check_split(global_batch: int, world_size: int, micro_batch: int | None) -> None:
    unit = world_size * (micro_batch or 1)
    if global_batch % unit:
        times = f" × micro-batch {micro_batch}" if micro_batch else ""
        gpus = f"{world_size} GPU{'s' if world_size > 1 else ''}"
        raise InputError(_no_multiple(global_batch, unit, f"{gpus}{times}"))


def _no_multiple(global_batch: int, unit: int, what: str) -> str:
    below, above = global_batch // unit * unit, -(-global_batch // unit) * unit
    nearest = f"{below} and {above}" if below else f"{above}"
    return f"--global-batch-size {global_batch} is no multiple of {what}; nearest: {nearest}"
