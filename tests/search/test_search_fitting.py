"""What fits is found without asking all about the rest: the same candidates as a whole search has."""

from __future__ import annotations

from itertools import product

import pytest

from dsconf.cluster.read import read_cluster
from dsconf.config.settings import Settings
from dsconf.job import Job
from dsconf.memory.estimate import estimate, never_fits
from dsconf.memory.fit import host_shortfall_bytes, verdict
from dsconf.model.read import read_model
from dsconf.search.candidates import examine, fitting, real_models
from dsconf.search.constraints import Constraints
from dsconf.search.space import combinations
from dsconf.workload import Workload

QUESTIONS = [
    ("70B", 1, {}, Constraints()),
    ("70B", 4, {"host_memory": "1TiB"}, Constraints()),
    ("70B", 16, {}, Constraints(global_batch=64)),
    ("7B", 2, {"gpu_memory": "24GiB", "nvme": "/nvme"}, Constraints(seq_len=4096)),
    ("13B", 8, {"gpu_memory": "16GiB", "host_memory": "256GiB"}, Constraints(optimizer="muon")),
    ("1B", 8, {"gpu_memory": "8GiB"}, Constraints(optimizer="adagrad", global_batch=96)),
]


@pytest.mark.parametrize(("params", "gpus", "cluster", "fixed"), QUESTIONS)
def test_it_is_what_a_whole_search_finds_to_fit(params, gpus, cluster, fixed):
    model, there = read_model(params), read_cluster(gpus, **cluster)
    space = combinations(model, there, fixed)
    found = examine(model, there, space, real_models()).candidates
    assert fitting(model, there, space, real_models()) == [one for one in found if one.fits != "no"]


def test_steps_of_what_does_not_fit_are_not_timed_and_what_never_fits_is_not_estimated():
    model, there = read_model("70B"), read_cluster(4)
    space = combinations(model, there, Constraints())
    asked, timed = [], []
    tools = real_models()
    counting = tools._replace(
        estimate=lambda job: asked.append(job) or tools.estimate(job),
        step_time=lambda job: timed.append(job) or tools.step_time(job),
    )
    found = fitting(model, there, space, counting)
    assert len(timed) == len(found) > 0
    assert not any(never_fits(job) for job in asked)
    assert len(asked) < len(examine(model, there, space, tools).candidates)


def test_what_never_fits_fits_with_no_batch():
    """Over the settings that decide what stays, on cards between far too small and large enough."""
    certain = 0
    model = read_model("1B")
    choices = product(
        (0, 1, 2, 3), ("adamw", "muon", "sgd", "adagrad"), ("bf16", "fp32"), (None, "fp32"), ("none", "cpu"), (1, 4)
    )
    for stage, optimizer, precision, accumulate, offload, gpus in choices:
        if stage == 0 and offload != "none":
            continue
        settings = Settings(
            stage=stage,
            optimizer=optimizer,
            precision=precision,
            grad_accum_dtype=accumulate,
            offload_optimizer=offload,
        )
        for memory, host in product((4, 8, 12, 16, 24), ("4GiB", "16GiB", "64GiB")):
            there = read_cluster(gpus, gpu_memory=f"{memory}GiB", host_memory=host)
            jobs = [Job(model, there, settings, Workload(128, 1, accumulation)) for accumulation in (1, 2)]
            if never_fits(jobs[0]):
                certain += 1
                for job in jobs:
                    found = estimate(job)
                    assert host_shortfall_bytes(found, there) or verdict(found, there.gpu) == "no", (settings, there)
    assert certain > 500
