"""Which of several candidates is chosen, and which are held back: by hand, and among real ones."""

from __future__ import annotations

from dataclasses import replace

import pytest
from search_fakes import FAKES, fake_cluster, fake_model
from search_said import figures

from dsconf import recommend
from dsconf.cluster.spec import Cluster
from dsconf.job import Job
from dsconf.search.candidates import Candidate, evaluate
from dsconf.search.constraints import Constraints
from dsconf.search.rank import choose, exceeds_likely_host, likely_host_bytes, ranked
from dsconf.search.space import plain_settings
from dsconf.units import GIB
from dsconf.workload import Workload

MODEL = fake_model(2048, 16)


def made(
    rate: float, offload: bool = False, host: int = 0, low: bool = False, cluster: Cluster | None = None
) -> Candidate:
    """A candidate that fits, with ``rate`` tokens a second and ``host`` bytes of host memory in each node."""
    cluster = cluster or fake_cluster(8)
    settings = replace(
        plain_settings(MODEL, cluster, Constraints(), 3),
        offload_optimizer="cpu" if offload else "none",
        bf16_optimizer_states=low,
    )
    found = evaluate(Job(MODEL, cluster, settings, Workload()), FAKES)
    step = found.step._replace(tokens_per_second=rate)  # type: ignore[attr-defined]
    return found._replace(fits="yes", step=step, estimate=replace(found.estimate, host_bytes_per_node=host))


def chosen(*candidates: Candidate) -> Candidate | None:
    return choose(ranked(candidates))


def test_a_host_is_taken_to_have_as_much_memory_as_its_gpus() -> None:
    assert likely_host_bytes(fake_cluster(8)) == 640 * GIB
    assert likely_host_bytes(fake_cluster(2)) == 160 * GIB
    assert not exceeds_likely_host(made(1, offload=True, host=640 * GIB))
    assert exceeds_likely_host(made(1, offload=True, host=641 * GIB))
    stated = fake_cluster(8, host=2048 * GIB)
    assert not exceeds_likely_host(made(1, offload=True, host=641 * GIB, cluster=stated))


@pytest.mark.parametrize(("rate", "wins"), [(109.0, False), (111.0, True)])
def test_offload_to_a_host_nobody_described_must_be_a_tenth_faster(rate: float, wins: bool) -> None:
    plain, offloaded = made(100.0), made(rate, offload=True, host=100 * GIB)
    assert chosen(plain, offloaded) is (offloaded if wins else plain)


@pytest.mark.parametrize(("rate", "wins"), [(102.0, False), (104.0, True)])
def test_offload_to_a_host_that_was_stated_must_be_clearly_faster(rate: float, wins: bool) -> None:
    cluster = fake_cluster(8, host=1024 * GIB)
    plain, offloaded = made(100.0, cluster=cluster), made(rate, offload=True, host=100 * GIB, cluster=cluster)
    assert chosen(plain, offloaded) is (offloaded if wins else plain)


def test_what_a_host_may_not_hold_is_taken_only_where_nothing_else_fits() -> None:
    large = made(500.0, offload=True, host=1000 * GIB)
    assert chosen(made(100.0), large).tokens_per_second == 100  # type: ignore[union-attr]
    assert chosen(large) is large
    assert chosen(made(900.0, low=True), large) is large, "states in bf16 come after it"


def test_states_in_bf16_come_last() -> None:
    assert chosen(made(900.0, low=True), made(100.0)).tokens_per_second == 100  # type: ignore[union-attr]


def test_real_cards_with_slow_links_take_the_offload() -> None:
    """70B on 32 L40S: without offload there is room for a single sample, which waits for the links."""
    found = recommend(params="70B", gpus=32, gpu="l40s")
    winner = found.recommended
    assert winner is not None
    assert winner.offloads
    assert winner.estimate.host_bytes_per_node < likely_host_bytes(winner.job.cluster)
    without = max(c.tokens_per_second for c in found.candidates if c.fits == "yes" and not c.offloads)
    assert winner.tokens_per_second > 1.1 * without
    needed = figures(found.notes, "host_memory")
    assert (needed["stated_bytes"], needed["gpus_per_node"]) == (None, 8)
    assert needed["assumed_bytes"] == pytest.approx(355.12 * GIB, rel=1e-4)
