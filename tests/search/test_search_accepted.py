"""Every config that the search can recommend is one that DeepSpeed takes, and means what was estimated."""

from __future__ import annotations

import json
import os
import random
from typing import Any

import pytest
from search_fakes import FAKES, fake_cluster, fake_model

from dsconf.config.render import render
from dsconf.config.resolve import resolve
from dsconf.config.validate import validate
from dsconf.search.candidates import Candidate
from dsconf.search.constraints import CPU_OPTIMIZERS, OPTIMIZERS, Constraints
from dsconf.search.question import Question
from dsconf.search.recommend import answer
from dsconf.units import GIB

JOBS = 200


def random_candidate(seed: int) -> Candidate:
    """A candidate of a random job on GPUs so large that each one fits, and so may be recommended somewhere."""
    dice = random.Random(seed)
    gpus = dice.choice([1, 2, 4, 8, 12, 16, 64, 512])
    stage = dice.choice([None, 0, 1, 2, 3])
    optimizer = dice.choice(OPTIMIZERS)
    offloads = ["none", "optimizer"] if stage and optimizer in CPU_OPTIMIZERS else ["none"]
    if stage == 3 and optimizer in CPU_OPTIMIZERS:
        offloads += ["optimizer+param", "nvme"]
    fixed = Constraints(
        seq_len=dice.choice([128, 2048, 100_000]),
        global_batch=gpus * dice.randint(1, 200) if dice.random() < 0.5 else None,
        precision=dice.choice([None, "bf16", "fp16", "fp32"]),
        optimizer=optimizer,
        stage=stage,
        offload=dice.choice([*offloads, None]),
        checkpointing=dice.choice([None, True, False]),
    )
    model = fake_model(128 * dice.randint(1, 128), dice.randint(1, 120), dice.choice([512, 32_000, 256_000]))
    cluster = fake_cluster(gpus, 10**5 * GIB, nvme="/nvme")
    found = answer(Question(model, cluster, fixed, 8, FAKES, lambda rank: model), "deepspeed", False).candidates
    return dice.choice([candidate for candidate in found if candidate.settings.engine == "deepspeed"])


@pytest.fixture(scope="module")
def candidates() -> list[Candidate]:
    return [random_candidate(seed) for seed in range(JOBS)]


@pytest.fixture(scope="module")
def deepspeed_config() -> Any:
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    return pytest.importorskip("deepspeed.runtime.config")


def test_the_random_jobs_reach_every_corner(candidates: list[Candidate]) -> None:
    assert {candidate.settings.stage for candidate in candidates} == {0, 1, 2, 3}
    assert {candidate.settings.offload_optimizer for candidate in candidates} == {"none", "cpu", "nvme"}
    assert {candidate.settings.offload_param for candidate in candidates} == {"none", "cpu", "nvme"}
    assert {candidate.settings.precision for candidate in candidates} == {"bf16", "fp16", "fp32"}
    assert {candidate.settings.optimizer for candidate in candidates} == set(OPTIMIZERS)
    assert max(candidate.workload.accumulation for candidate in candidates) > 1


def test_deepspeed_accepts_them_all(
    candidates: list[Candidate], deepspeed_config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for candidate in candidates:
        world = candidate.job.cluster.world_size
        monkeypatch.setattr(deepspeed_config.dist, "get_rank", lambda: 0)
        monkeypatch.setattr(deepspeed_config.dist, "get_world_size", lambda *_, world=world: world)
        parsed = deepspeed_config.DeepSpeedConfig(json.loads(render(candidate.settings, "deepspeed")))
        # The ranks that share a sequence count as one.
        assert parsed.world_size == world // candidate.settings.sequence_parallel
        assert parsed.train_batch_size == candidate.global_batch
        assert parsed.train_micro_batch_size_per_gpu == candidate.workload.micro_batch
        assert parsed.gradient_accumulation_steps == candidate.workload.accumulation
        assert parsed.zero_config.stage == candidate.settings.stage


@pytest.mark.parametrize("target", ["deepspeed", "hf", "accelerate"])
def test_the_schema_and_the_rules_accept_them_all(candidates: list[Candidate], target: str) -> None:
    for candidate in candidates:
        config = json.loads(render(candidate.settings, target))
        report = validate(config, candidate.job.cluster.world_size, target).files[0]
        assert report.valid, report.findings
        assert [finding for finding in report.findings if finding.severity == "warning"] == []


def test_what_is_written_reads_back_as_what_was_estimated(candidates: list[Candidate]) -> None:
    for candidate in candidates:
        config = json.loads(render(candidate.settings, "deepspeed"))
        assert resolve(config, candidate.job.cluster.world_size, "deepspeed") == candidate.settings
