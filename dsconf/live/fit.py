"""Finds the largest micro-batch that runs, by running."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from dsconf.errors import UnavailableError
from dsconf.live.plan import Wish
from dsconf.live.result import CheckResult, Fit


def find_boundary(
    wish: Wish, run: Callable[[Wish], CheckResult], progress: Callable[[str], None] = lambda line: None
) -> CheckResult:
    """The result of the largest micro-batch that ran, with the boundary in its ``fit``; else of a single sequence.

    Doubles from the micro-batch of ``wish`` while it runs, then halves the gap between the largest that ran and the
    smallest that did not. Memory grows with the micro-batch, so whatever lies between is decided.

    Raises:
        UnavailableError: there is no CUDA device, or no memory was ever filled at a micro-batch of 65 536.
    """
    runs: list[tuple[int, bool]] = []
    results: dict[int, CheckResult] = {}
    largest, failed = 0, None
    candidate = wish.micro_batch or 1
    while failed is None or failed - largest > 1:
        progress(f"trying a micro-batch of {candidate}")
        result = results[candidate] = run(wish._replace(micro_batch=candidate))
        if result.device == "CPU":
            raise UnavailableError("--fit: there is no CUDA device here whose memory could be filled")
        if result.failure is not None and result.failure.kind != "oom":
            return replace(result, fit=Fit(largest, failed, tuple(runs)))
        runs.append((candidate, result.ran))
        if result.ran:
            largest = candidate
        else:
            failed = candidate
        candidate = _next(largest, failed)
        if candidate > MOST:
            break
    found = Fit(largest, failed, tuple(runs))
    return replace(results[largest or 1], fit=found)


MOST = 65_536


def _next(largest: int, failed: int | None) -> int:
    if failed is None:
        return 2 * largest
    return max(1, (largest + failed) // 2)
