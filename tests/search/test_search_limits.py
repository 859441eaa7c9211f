"""What limits a step, by hand from the small speed model, and links between real cards."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from search_fakes import FAKES, fake_cluster, fake_model
from search_said import figures

import dsconf
from dsconf.cluster.read import read_cluster
from dsconf.job import Job
from dsconf.resources import text
from dsconf.search.candidates import Candidate, evaluate
from dsconf.search.constraints import Constraints
from dsconf.search.explain.limits import TWICE, limits, with_nvlink
from dsconf.search.space import plain_settings
from dsconf.speed.step_time import step_time
from dsconf.workload import Workload


def candidate(gpus: int, seq_len: int) -> Candidate:
    model, cluster = fake_model(2048, 16), fake_cluster(gpus)
    return evaluate(
        Job(model, cluster, plain_settings(model, cluster, Constraints(), 3), Workload(seq_len=seq_len)), FAKES
    )


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


def test_the_drive_is_named_where_the_step_waits_for_it() -> None:
    """6 GB/s read and 3.5 written, and 12 and 7 of a drive twice as fast."""
    found = dsconf.recommend(params="405B", gpus=8, gpu="h200", host_memory="2TiB", nvme="/disk")
    winner = found.recommended
    assert winner is not None
    assert winner.settings.offload_optimizer == "nvme"
    cluster = replace(winner.job.cluster, nvme_read_bandwidth=12e9, nvme_write_bandwidth=7e9)
    faster = step_time(replace(winner.job, cluster=cluster))
    first = found.limits[0]
    assert (first.resource, first.gain) == ("nvme", pytest.approx(winner.step.seconds / faster.seconds - 1))
    slowest = figures(found.why, "slowest")
    assert (slowest["part"], slowest["waits_for"]) == ("offload", "nvme")
    (change,) = (change for change in found.changes if change.kind == "nvme")
    assert change.tokens_per_second == pytest.approx(faster.tokens_per_second)
    assert change.reason.code == "twice_as_fast"
    assert change.reason.figures == {"resource": "nvme", "bytes_per_second": [12e9, 7e9], "gain": first.gain}


def test_the_schema_lists_every_resource() -> None:
    names = json.loads(text("schemas", "recommend.schema.json"))["$defs"]["single"]["properties"]["limits"]
    assert names["propertyNames"]["enum"] == list(TWICE)
    assert {limit.resource for limit in limits(candidate(8, 512), FAKES)} == set(TWICE)
    assert dict(limits(candidate(8, 512), FAKES))["nvme"] == 0
