"""The boundary found by running, against cards of known size."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsconf.errors import UnavailableError
from dsconf.live.check import MOST, find_boundary
from dsconf.live.plan import CheckRequest
from dsconf.live.processes.launcher import Failure
from dsconf.live.result import CheckResult

REQUEST = CheckRequest({}, None, 8, micro_batch=1)


class Card:
    """Runs every micro-batch up to ``most``."""

    def __init__(self, most: int, device: str = "NVIDIA H200", kind: str = "oom") -> None:
        self.most, self.device, self.kind = most, device, kind
        self.tried: list[int] = []

    def run(self, request: CheckRequest) -> CheckResult:
        micro = request.micro_batch or 0
        self.tried.append(micro)
        ran = micro <= self.most
        failure = None if ran else Failure(self.kind, "out")
        return CheckResult(ran, "rehearsed", device=self.device, micro_batch_size=micro, failure=failure)


def test_by_hand() -> None:
    card = Card(9)
    result = find_boundary(REQUEST, card.run)
    assert card.tried == [1, 2, 4, 8, 16, 12, 10, 9]
    assert result.fit is not None
    assert (result.fit.largest, result.fit.failed) == (9, 10)
    assert result.fit.runs == (
        (1, True),
        (2, True),
        (4, True),
        (8, True),
        (16, False),
        (12, False),
        (10, False),
        (9, True),
    )
    assert (result.ran, result.micro_batch_size) == (True, 9)


@given(most=st.integers(0, 3000), start=st.integers(1, 64))
def test_the_boundary_is_exact_from_wherever_it_starts(most: int, start: int) -> None:
    card = Card(most)
    result = find_boundary(REQUEST._replace(micro_batch=start), card.run)
    assert result.fit is not None
    assert (result.fit.largest, result.fit.failed) == (most, most + 1)
    assert result.ran == (most > 0)
    assert len(card.tried) == len(set(card.tried)) <= 25


def test_a_card_that_never_fills_ends_the_search() -> None:
    card = Card(10**9)
    result = find_boundary(REQUEST, card.run)
    assert result.fit is not None
    assert (result.fit.largest, result.fit.failed) == (MOST, None)


def test_another_failure_is_no_boundary() -> None:
    result = find_boundary(REQUEST, Card(3, kind="exception").run)
    assert result.failure is not None
    assert result.failure.kind == "exception"
    assert result.fit is not None
    assert (result.fit.largest, result.fit.failed) == (2, None)


def test_without_a_card_there_is_nothing_to_fill() -> None:
    with pytest.raises(UnavailableError, match="--fit"):
        find_boundary(REQUEST, Card(3, device="CPU").run)
