"""Bytes sent in a step, against the rings written out one message at a time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from search_fakes import fake_cluster, fake_model

from dsconf.job import Job
from dsconf.search.constraints import Constraints
from dsconf.search.space import plain_settings
from dsconf.search.volume import sent_bytes
from dsconf.workload import Workload

MODEL = fake_model(8192, 80, 8000)
KEPT = 10**9 // 2
"""Elements that forward used last and that stay gathered for backward: half of max_reuse_distance."""


def all_gather(num_bytes: int, ranks: int) -> int:
    """Each rank passes on the part it got last, ranks − 1 times."""
    return sum(num_bytes // ranks for _ in range(ranks - 1))


def slow(stage: int, accumulation: int, ranks: int) -> int:
    num_bytes = 2 * MODEL.num_params
    sent = 0
    for micro_batch in range(accumulation):
        last = micro_batch == accumulation - 1
        if stage == 3:
            sent += 3 * all_gather(num_bytes, ranks)  # gather in forward, gather in backward, reduce-scatter
            sent -= all_gather(2 * KEPT, ranks)
        elif stage == 2 or last:
            sent += 2 * all_gather(num_bytes, ranks)  # all-reduce: reduce-scatter and all-gather
    return sent + (all_gather(num_bytes, ranks) if stage in (1, 2) else 0)


@given(stage=st.integers(0, 3), accumulation=st.integers(1, 6), ranks=st.sampled_from([1, 2, 4, 8, 64]))
def test_against_the_slow_way(stage: int, accumulation: int, ranks: int) -> None:
    cluster = fake_cluster(ranks)
    job = Job(MODEL, cluster, plain_settings(MODEL, cluster, Constraints(), stage), Workload(accumulation=accumulation))
    assert sent_bytes(job) == pytest.approx(slow(stage, accumulation, ranks), rel=1e-9, abs=40 * ranks * accumulation)
