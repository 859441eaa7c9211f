"""Seconds of the NVMe drive, by hand from the cluster's rates."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dsconf.job import Job
from dsconf.read_job import read_job
from dsconf.speed.offload import nvme_parameters, nvme_step
from dsconf.speed.step_time import step_time


def job(gpus: int = 8, params: str = "none") -> Job:
    one = read_job(params="8B", model=None, gpus=gpus, gpu="h100-80gb", nvme="/disk", stage=3)
    return replace(one, settings=replace(one.settings, offload_optimizer="nvme", offload_param=params))


def test_states_go_both_ways_at_the_rates_of_the_nodes_drive() -> None:
    """Sixteen bytes of each parameter are read and sixteen written, of each node its share."""
    one, two = job(), job(gpus=16)
    params = one.model.num_params
    assert nvme_step(one) == pytest.approx(16 * params / 6.0e9 + 16 * params / 3.5e9)
    assert nvme_step(two) == pytest.approx(nvme_step(one) / 2)
    slow = replace(one, cluster=replace(one.cluster, nvme_read_bandwidth=1e9, nvme_write_bandwidth=0.5e9))
    assert nvme_step(slow) == pytest.approx(16 * params / 1e9 + 16 * params / 0.5e9)


def test_parameters_are_read_for_each_pass_and_written_after_the_step() -> None:
    one = job(gpus=1, params="nvme")
    cluster = replace(one.cluster, nvme_read_bandwidth=1e9, nvme_write_bandwidth=0.5e9)
    size = 2 * one.model.num_params
    assert nvme_parameters(replace(one, cluster=cluster)) == pytest.approx((size / 1e9, size / 1e9, size / 0.5e9))


def test_a_step_that_waits_for_no_drive_does_not_know_its_rates() -> None:
    one = read_job(params="1B", model=None, gpus=8, gpu="h100-80gb", stage=3, offload="optimizer")
    fast = replace(one, cluster=replace(one.cluster, nvme_read_bandwidth=1e12, nvme_write_bandwidth=1e12))
    assert step_time(fast) == step_time(one)
