"""What limits a step, by hand from the small speed model, and links between real cards."""

from __future__ import annotations

import pytest
from search_fakes import FAKES, fake_cluster, fake_model

from dsconf.cluster.read import read_cluster
from dsconf.job import Job
from dsconf.search.candidates import Candidate, evaluate
from dsconf.search.limits import limits, with_nvlink
from dsconf.search.space import plain_settings
from dsconf.search.wish import Wish
from dsconf.workload import Workload


def candidate(gpus: int, seq_len: int) -> Candidate:
    model, cluster = fake_model(2048, 16), fake_cluster(gpus)
    return evaluate(Job(model, cluster, plain_settings(model, cluster, Wish(), 3), Workload(seq_len=seq_len)), FAKES)


def test_each_resource_twice_as_fast_halves_its_part() -> None:
    one = candidate(8, 512)
    computed, sent = one.step.parts["compute"], one.step.parts["communication"]
    assert computed > 0
    assert sent > 0
    gains = dict(limits(one, FAKES))
    assert gains["matrix_products"] == pytest.approx((computed + sent) / (computed / 2 + sent) - 1)
    assert gains["link_in_node"] == pytest.approx((computed + sent) / (computed + sent / 2) - 1)
    assert gains["network_between_nodes"] == gains["link_to_host"] == gains["host_cpu"] == 0


def test_the_one_that_would_gain_most_comes_first() -> None:
    assert limits(candidate(8, 16), FAKES)[0].resource == "link_in_node"
    assert limits(candidate(8, 16384), FAKES)[0].resource == "matrix_products"
    assert dict(limits(candidate(1, 512), FAKES))["link_in_node"] == 0


@pytest.mark.parametrize(
    ("gpu", "speed"), [("rtx-4090", 300e9), ("h100-pcie", 300e9), ("h100-80gb", None), ("gh200", None), ("a800", None)]
)
def test_nvlink_is_offered_to_cards_on_pcie_alone(gpu: str, speed: float | None) -> None:
    linked = with_nvlink(read_cluster(8, gpu))
    assert (linked.gpu.link_bandwidth if linked is not None else None) == speed
