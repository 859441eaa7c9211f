"""The space is complete, and holds nothing DeepSpeed would refuse."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from search_fakes import fake_cluster, fake_model

from dsconf.config import render
from dsconf.errors import InputError
from dsconf.search.buckets import buckets
from dsconf.search.space import OPTIMIZERS, Wish, combinations


def kinds(wish: Wish, **cluster: object) -> list[tuple[str, int, str, str, bool]]:
    found = combinations(fake_model(), fake_cluster(**cluster), wish)  # type: ignore[arg-type]
    return [
        (s.engine, s.stage, s.offload_optimizer, s.offload_param, workloads[0].checkpointing) for s, workloads in found
    ]


def test_the_whole_space() -> None:
    plain = [("ddp", 0, "none", "none")] + [("deepspeed", stage, "none", "none") for stage in range(4)]
    host = [("deepspeed", stage, "cpu", "none") for stage in (1, 2, 3)] + [("deepspeed", 3, "cpu", "cpu")]
    disk = [("deepspeed", 3, "nvme", "none"), ("deepspeed", 3, "nvme", "nvme")]
    twice = [(*kind, switch) for kind in plain + host for switch in (False, True)]
    assert sorted(kinds(Wish())) == sorted(twice)
    assert sorted(kinds(Wish(), nvme="/nvme")) == sorted(twice + [(*kind, s) for kind in disk for s in (False, True)])


def test_every_combination_gets_every_micro_batch() -> None:
    for _, workloads in combinations(fake_model(), fake_cluster(8), Wish(global_batch=96)):
        pairs = [(workload.micro_batch, workload.accumulation) for workload in workloads]
        assert pairs == [(1, 12), (2, 6), (3, 4), (4, 3), (6, 2), (12, 1)]


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_stage_asked_for_is_the_only_one(stage: int) -> None:
    assert {kind[1] for kind in kinds(Wish(stage=stage))} == {stage}


def test_wishes_restrict() -> None:
    assert {kind[4] for kind in kinds(Wish(checkpointing=True))} == {True}
    assert {kind[2:4] for kind in kinds(Wish(offload="param"))} == {("cpu", "cpu")}
    assert {kind[2:4] for kind in kinds(Wish(optimizer="sgd"))} == {("none", "none")}
    assert 3 not in {kind[1] for kind in kinds(Wish(quantize="8bit"))}


@pytest.mark.parametrize(
    ("wish", "told"),
    [
        (Wish(offload="nvme"), "--offload nvme needs --nvme PATH, a path on a fast local disk"),
        (Wish(offload="optimizer", stage=0), "--offload optimizer needs --stage 1, 2 or 3, not --stage 0"),
        (Wish(offload="param", stage=2), "--offload param needs --stage 3, not --stage 2"),
        (
            Wish(offload="optimizer", optimizer="sgd"),
            "--optimizer sgd cannot be offloaded; use one of adam, adamw, lion",
        ),
        (
            Wish(quantize="8bit", stage=3),
            "--quantize 8bit cannot be partitioned at stage 3; use --quantize 4bit or --stage 2",
        ),
        (
            Wish(offload="param", quantize="4bit"),
            "--offload param cannot hold --quantize 4bit weights; use --offload optimizer",
        ),
    ],
)
def test_an_empty_space_says_what_emptied_it(wish: Wish, told: str) -> None:
    with pytest.raises(InputError) as error:
        kinds(wish)
    assert str(error.value) == told


def test_precision_follows_the_card() -> None:
    assert {s.precision for s, _ in combinations(fake_model(), fake_cluster(), Wish())} == {"bf16", "autocast"}
    old = fake_cluster(bf16=False)
    assert {s.precision for s, _ in combinations(fake_model(), old, Wish())} == {"fp16", "autocast"}
    assert {s.precision for s, _ in combinations(fake_model(), old, Wish(precision="fp32"))} == {"fp32"}
    with pytest.raises(InputError, match="--precision bf16: fake-gpu has no bf16; use --precision fp16"):
        combinations(fake_model(), old, Wish(precision="bf16"))


def test_the_templates_can_write_every_optimizer() -> None:
    assert sorted(OPTIMIZERS) == sorted(render._OPTIMIZERS)


@given(hidden=st.sampled_from([128, 1024, 4096, 16384]), layers=st.integers(1, 120), stage=st.integers(0, 3))
def test_no_bucket_is_larger_than_the_model(hidden: int, layers: int, stage: int) -> None:
    model = fake_model(hidden, layers)
    sizes = buckets(model, stage)
    assert sizes.pop("allgather_bucket_size", 0) % 2 == 0
    assert sizes.pop("max_reuse_distance", 0) <= 2 * model.num_params
    assert all(0 < size <= model.num_params for size in sizes.values())


def test_stage_3_buckets_of_a_wide_model_follow_the_auto_rule() -> None:
    assert buckets(fake_model(8192, 80), 3) == {
        "reduce_bucket_size": 67_108_864,
        "prefetch_bucket_size": 60_397_977,
        "param_persistence_threshold": 81_920,
        "max_live_parameters": 1_000_000_000,
        "max_reuse_distance": 1_000_000_000,
        "sub_group_size": 100_000_000,
    }
