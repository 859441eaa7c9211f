"""What a training run takes: hours, GPU-hours and money."""

from __future__ import annotations

from typing import NamedTuple

from dsconf.errors import InputError


class Cost(NamedTuple):
    """Hours and money of one training run; ``price`` is None when nobody said what a GPU-hour costs."""

    hours: float
    gpu_hours: float
    price: float | None

    def sentence(self) -> str:
        """Say it to a person: ``51.4 days (1,234 hours), 9.87k GPU-hours, cost 24.7k``."""
        from dsconf.units import format_count, format_seconds

        if self.hours >= 48:
            time = f"{self.hours / 24:,.1f} days ({self.hours:,.0f} hours)"
        elif self.hours >= 1:
            time = f"{self.hours:.1f} hours"
        else:
            time = f"{format_seconds(60 * self.hours)} minutes"
        money = "" if self.price is None else f", cost {format_count(self.price)}"
        return f"{time}, {format_count(self.gpu_hours)} GPU-hours{money}"


def run_cost(tokens: float, tokens_per_second: float, world_size: int, price: float | None = None) -> Cost:
    """Compute the hours to see ``tokens`` tokens at ``tokens_per_second`` (of the cluster), and what they cost.

    ``price`` is the price of one GPU for one hour, in whatever currency; so is the answer's.

    Raises:
        InputError: tokens or price that are not positive.
    """
    if not 0 < tokens < float("inf"):
        raise InputError(f"--tokens: {tokens} is not a positive number")
    if price is not None and not 0 < price < float("inf"):
        raise InputError(f"--price: {price} is not a positive number")
    hours = tokens / tokens_per_second / 3600
    return Cost(hours, hours * world_size, None if price is None else hours * world_size * price)
