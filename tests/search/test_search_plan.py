"""Many jobs in a row: quick, and to the byte what one at a time says.

The yardstick is a small JSON document written and read between the same two moments: a noisy machine slows both. It
takes some 36 us; 200 us a job, which is 100 000 jobs in 20 s, are 5.5 of them.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from dataclasses import asdict
from itertools import islice, product
from pathlib import Path
from statistics import median
from time import perf_counter

import pytest

import dsconf
from dsconf.errors import InputError
from dsconf.model.read import read_model
from dsconf.model.spec import Model
from dsconf.read_job import read_job
from dsconf.search import plan as plan_module
from dsconf.search.plan import PlannedJob, Planner
from dsconf.speed.step_time import step_time
from dsconf.units import GIB

ROOT = Path(__file__).parents[2]
DOCUMENT = [{"name": f"layer {i}", "sizes": list(range(i, i + 12)), "bytes": 2.5e9 + i} for i in range(12)]
SIZES = ("500M", "2B", "7B", "13B")
GPUS = (*range(1, 9), *range(16, 528, 16))[:25]
LENGTHS = range(512, 10_752, 512)
JOBS = 2000
CARD = {"gpu": "h100-80gb", "activation_checkpointing": True}


@pytest.fixture(scope="module")
def planned() -> list[PlannedJob]:
    return list(dsconf.plan(params=SIZES, gpus=GPUS, seq_len=LENGTHS, **CARD))


def by_estimate(job: PlannedJob, stage: int) -> tuple[str, int, int, int]:
    """Verdict and bytes of ``job`` at ``stage``, asked for on its own."""
    found = dsconf.estimate(params=job.model, gpus=job.gpus, seq_len=job.seq_len, stage=stage, **CARD)
    cluster = read_job(params=job.model, model=None, gpus=job.gpus, **CARD).cluster
    peak = max(found.peak_bytes, found.init_peak_bytes) + found.process_bytes - found.reserved_bytes
    memory = cluster.gpu.memory_bytes
    fits = "yes" if found.process_bytes <= memory else "tight" if peak <= memory else "no"
    return fits, found.peak_bytes, found.process_bytes, found.host_bytes_per_node


def test_every_combination_in_order(planned: list[PlannedJob]) -> None:
    assert len(planned) == JOBS
    assert [(job.model, job.gpus, job.seq_len) for job in planned] == list(product(SIZES, GPUS, LENGTHS))
    assert {job.gpu for job in planned} == {"H100 SXM 80GB"}
    assert {job.stage for job in planned} == {0, 1, 2, 3}
    assert {job.fits for job in planned} == {"yes", "tight", "no"}


def test_figures_are_those_of_estimate_and_of_the_smallest_stage_that_fits(planned: list[PlannedJob]) -> None:
    for job in random.Random(7).sample(planned, 40):
        found = {stage: by_estimate(job, stage) for stage in range(4)}
        stages = [stage for verdict in ("yes", "tight") for stage in range(4) if found[stage][0] == verdict]
        assert job.stage == (stages[0] if stages else 3)
        assert (job.fits, job.peak_bytes, job.process_bytes, job.host_bytes_per_node) == found[job.stage]
        words = {"params": job.model, "model": None, "gpus": job.gpus, "seq_len": job.seq_len, "stage": job.stage}
        step = step_time(read_job(**words, **CARD))
        assert (job.step_seconds, job.tokens_per_second) == (step.seconds, step.tokens_per_second)


def test_a_job_takes_no_longer_than_a_few_small_json_documents() -> None:
    """In slices of 100 jobs, nearly all of them new to the caches, each beside 100 of the yardstick."""
    jobs = dsconf.plan(params=SIZES, gpus=GPUS, seq_len=LENGTHS, **CARD)
    next(jobs)
    ratios = []
    for _ in range(JOBS // 100):
        start = perf_counter()
        list(islice(jobs, 100))
        between = perf_counter()
        for _ in range(100):
            json.loads(json.dumps(DOCUMENT))
        ratios.append((between - start) / (perf_counter() - between))
    assert median(ratios) < 8


def test_the_host_and_the_words_count() -> None:
    words = {"params": "7B", "gpus": 8, "micro_batch_size": 2, "gradient_accumulation_steps": 4}
    enough, short = (Planner(offload="optimizer", host_memory=size, **CARD).job(**words) for size in ("1TiB", "8GiB"))
    assert enough.fits == "yes"
    assert short.fits == "no"
    assert enough.host_bytes_per_node > 12 * 7e9
    found = dsconf.estimate(stage=1, offload="optimizer", **words, **CARD)
    assert (enough.stage, enough.peak_bytes) == (1, found.peak_bytes)
    assert Planner(gpu="h100-80gb", lora_rank=8).job("7B", gpus=8).peak_bytes < 40 * GIB


def test_network_and_hosts_count_and_a_host_has_its_limit() -> None:
    words = {"params": "8B", "gpus": 16, "stage": 2}
    near, far = (Planner(network=rate, **CARD).job(**words) for rate in (None, "10Gbit/s"))
    assert far.step_seconds > near.step_seconds
    many, few = (Planner(cpu_cores=cores, offload="optimizer", **CARD).job("8B", gpus=8) for cores in (None, 8))
    assert few.step_seconds > many.step_seconds
    large = {"gpu": "h200", "offload": "optimizer+param", "activation_checkpointing": True}
    unknown, stated = (Planner(host_memory=size, **large).job("405B", gpus=8) for size in (None, "12TiB"))
    assert (unknown.fits, stated.fits) == ("no", "yes")
    assert 9 < unknown.host_bytes_per_node / 2**40 < 10


def test_models_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Embedding and head 2 · 1000 · 512, four layers of 4 · 512² + 3 · 512 · 1024 + 2 · 512, a norm of 512."""
    config = {"model_type": "llama", "hidden_size": 512, "num_hidden_layers": 4, "num_attention_heads": 8}
    config |= {"intermediate_size": 1024, "vocab_size": 1000, "max_position_embeddings": 2048}
    read: list[object] = []

    def reading(params: object, model: object, lora_rank: object) -> Model:
        read.append(model or params)
        return read_model(params, model, lora_rank)  # type: ignore[arg-type]

    monkeypatch.setattr(plan_module, "read_model", reading)
    planner = Planner(gpu="h100-80gb")
    jobs = [planner.job(model=model, gpus=gpus) for model in (config, "gpt2") for gpus in (2, 4)]
    assert [job.parameters for job in jobs] == [11_514_368, 11_514_368, 124_439_808, 124_439_808]
    assert read == [config, "gpt2"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ({"params": "seventy"}, "'seventy' is not a count"),
        ({}, "give either --params SIZE or --model NAME_OR_PATH"),
        ({"params": "7B", "model": "gpt2"}, "not both"),
        ({"params": []}, "--params: give at least one"),
        ({"model": []}, "--model: give at least one"),
        ({"params": "7B", "gpus": []}, "--gpus: give at least one"),
        ({"params": "7B", "seq_len": ()}, "--seq-len: give at least one"),
        ({"params": "7B", "micro_batch_size": iter(())}, "--micro-batch-size: give at least one"),
        ({"params": "7B", "gpus": [8, 0]}, "--gpus: 0 is not a positive whole number"),
        ({"params": "7B", "seq_len": 0}, "--seq-len: 0 is not a positive whole number"),
        ({"params": "7B", "stage": 4}, "--stage: 4 is not one of 0, 1, 2, 3"),
        ({"params": "7B", "offload": "all"}, "--offload: 'all' is not one of"),
        ({"params": "7B", "gpu": "h10-80gb"}, "did you mean"),
    ],
)
def test_a_mistake_names_the_word(words: dict[str, object], told: str) -> None:
    with pytest.raises(InputError, match=told):
        list(dsconf.plan(**words))  # type: ignore[arg-type]


def test_the_example_runs_without_torch(tmp_path: Path) -> None:
    program = ROOT / "examples" / "plan_cluster.py"
    start = "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__'); "
    done = subprocess.run(
        [sys.executable, "-c", f"{start}print('torch' in sys.modules)", program, "--every", "40", "--jsonl", "jobs"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    lines = done.stdout.splitlines()
    assert lines[-1] == "False"
    assert lines[-2].startswith("2,500 jobs (2,500 fit) in ")
    jobs = [json.loads(line) for line in (tmp_path / "jobs").read_text().splitlines()]
    assert len(jobs) == 2500
    first = next(dsconf.plan(params=jobs[0]["model"], gpus=8, seq_len=512, **CARD))
    assert asdict(first) == jobs[0]
