"""The space is complete, and holds nothing DeepSpeed would refuse."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from search_fakes import fake_cluster, fake_model

from dsconf.config import render
from dsconf.errors import InputError
from dsconf.search.constraints import OPTIMIZERS, Constraints
from dsconf.search.space import Combination, combinations
from dsconf.search.strategies import buckets


def found(fixed: Constraints, **cluster: object) -> list[Combination]:
    return combinations(fake_model(), fake_cluster(**cluster), fixed)  # type: ignore[arg-type]


def kinds(fixed: Constraints, **cluster: object) -> list[tuple[str, int, str, str, bool]]:
    """Strategy by strategy, what refines it left out."""
    every = found(fixed, **cluster)
    strategies = [(s.engine, s.stage, s.offload_optimizer, s.offload_param, w[0].checkpointing) for s, w in every]
    return list(dict.fromkeys(strategies))


def test_no_combination_comes_twice() -> None:
    every = found(Constraints(seq_len=65536), gpus=16, nvme="/nvme")
    assert len({(settings, workloads[0]) for settings, workloads in every}) == len(every)


def test_the_optimizer_is_offloaded_in_parts_at_stage_3_alone() -> None:
    parts = {(s.stage, s.offload_param, s.offload_optimizer_ratio) for s, _ in found(Constraints(offload="optimizer"))}
    assert parts == {(1, "none", 1), (2, "none", 1)} | {(3, "none", ratio) for ratio in (1, 0.8, 0.6, 0.4, 0.2)}
    assert {s.offload_optimizer_ratio for s, _ in found(Constraints(offload="optimizer+param"))} == {1}
    small = combinations(fake_model(512, 4), fake_cluster(), Constraints(offload="optimizer"))
    assert {s.offload_optimizer_ratio for s, _ in small} == {1}  # 13 M parameters: one sub-group
    assert {s.offload_optimizer_ratio for s, _ in found(Constraints(offload="optimizer", optimizer="lion"))} == {1}


def test_bf16_states_need_bf16_and_an_adam_on_the_gpu() -> None:
    low = {(s.stage, s.offload_optimizer) for s, _ in found(Constraints()) if s.bf16_optimizer_states}
    assert low == {(1, "none"), (2, "none"), (3, "none")}
    assert all(s.bf16_master == s.bf16_optimizer_states for s, _ in found(Constraints()))
    for fixed in (
        Constraints(low_states=False),
        Constraints(precision="fp16"),
        Constraints(optimizer="lion"),
        Constraints(offload="optimizer"),
    ):
        assert not any(s.bf16_optimizer_states for s, _ in found(fixed))
    assert all(s.bf16_optimizer_states for s, _ in found(Constraints(low_states=True)))


def test_a_secondary_partition_between_nodes_alone() -> None:
    assert {s.hpz_partition_size for s, _ in found(Constraints())} == {1}
    several = {(s.stage, s.offload_param, s.hpz_partition_size) for s, _ in found(Constraints(), gpus=16)}
    assert {key for key in several if key[2] > 1} == {(3, "none", 8)}
    assert {s.hpz_partition_size for s, _ in found(Constraints(), gpus=12)} == {1}  # the world must be a multiple


def test_long_sequences_are_split_between_the_ranks_of_a_node() -> None:
    assert {s.sequence_parallel for s, _ in found(Constraints(seq_len=8192))} == {1}
    long = {(s.stage > 0, s.sequence_parallel) for s, _ in found(Constraints(seq_len=65536), gpus=16)}
    assert long == {(False, 1), (True, 1), (True, 2), (True, 4), (True, 8)}
    assert {s.sequence_parallel for s, _ in found(Constraints(seq_len=65536), gpus=6)} == {1, 2}
    assert {s.sequence_parallel for s, _ in found(Constraints(sequence_parallel=4))} == {4}
    assert {s.sequence_parallel for s, _ in found(Constraints(seq_len=65536, attention="eager"))} == {1}


def test_the_loss_is_tiled_where_ranks_share_a_sequence_and_may_be_for_long_ones() -> None:
    def tiled(fixed: Constraints, tied: bool = False) -> set[tuple[bool, bool]]:
        model = replace(fake_model(), tied=tied)
        space = combinations(model, fake_cluster(), fixed)
        return {(s.sequence_parallel > 1, w[0].loss_shards is not None) for s, w in space}

    assert tiled(Constraints()) == {(False, False)}
    assert tiled(Constraints(seq_len=65536)) == {(False, False), (False, True), (True, True)}
    assert tiled(Constraints(sequence_parallel=2)) == {(True, True)}
    # DeepSpeed loses the gradient of a tied embedding, or stops.
    assert tiled(Constraints(seq_len=65536), tied=True) == {(False, False), (True, False)}


def test_ranks_that_share_a_sequence_count_as_one_in_the_batch() -> None:
    for settings, workloads in found(Constraints(seq_len=65536, global_batch=16, sequence_parallel=4), gpus=16):
        batch = {w.micro_batch * w.accumulation * 16 // settings.sequence_parallel for w in workloads}
        assert batch == {16}


def test_the_whole_space() -> None:
    plain = [("ddp", 0, "none", "none")] + [("deepspeed", stage, "none", "none") for stage in range(4)]
    host = [("deepspeed", stage, "cpu", "none") for stage in (1, 2, 3)] + [("deepspeed", 3, "cpu", "cpu")]
    disk = [("deepspeed", 3, "nvme", "none"), ("deepspeed", 3, "nvme", "nvme")]
    twice = [(*kind, switch) for kind in plain + host for switch in (False, True)]
    assert sorted(kinds(Constraints())) == sorted(twice)
    assert sorted(kinds(Constraints(), nvme="/nvme")) == sorted(
        twice + [(*kind, s) for kind in disk for s in (False, True)]
    )


def test_every_combination_gets_every_micro_batch() -> None:
    for _, workloads in combinations(fake_model(), fake_cluster(8), Constraints(global_batch=96)):
        pairs = [(workload.micro_batch, workload.accumulation) for workload in workloads]
        assert pairs == [(1, 12), (2, 6), (3, 4), (4, 3), (6, 2), (12, 1)]


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_stage_asked_for_is_the_only_one(stage: int) -> None:
    assert {kind[1] for kind in kinds(Constraints(stage=stage))} == {stage}


def test_wishes_restrict() -> None:
    assert {kind[4] for kind in kinds(Constraints(checkpointing=True))} == {True}
    assert {kind[2:4] for kind in kinds(Constraints(offload="optimizer+param"))} == {("cpu", "cpu")}
    assert {kind[2:4] for kind in kinds(Constraints(optimizer="sgd"))} == {("none", "none")}
    assert 3 not in {kind[1] for kind in kinds(Constraints(quantize="8bit"))}


@pytest.mark.parametrize(
    ("fixed", "told"),
    [
        (Constraints(offload="nvme"), "--offload nvme needs --nvme PATH, a path on a fast local disk"),
        (Constraints(offload="optimizer", stage=0), "--offload optimizer needs --stage 1, 2 or 3, not --stage 0"),
        (Constraints(offload="optimizer+param", stage=2), "--offload optimizer+param needs --stage 3, not --stage 2"),
        (
            Constraints(offload="optimizer", optimizer="sgd"),
            "--optimizer sgd cannot be offloaded; use one of adam, adamw, lion",
        ),
        (
            Constraints(quantize="8bit", stage=3),
            "--quantize 8bit cannot be partitioned at stage 3; use --quantize 4bit or --stage 2",
        ),
        (
            Constraints(low_states=True, offload="optimizer"),
            "--optimizer-states bf16 needs bf16, ZeRO stage 1 to 3, Adam or AdamW, and no offload",
        ),
        (
            Constraints(sequence_parallel=3),
            "--sequence-parallel 3: 3 does not divide the 8 GPUs",
        ),
        (
            Constraints(offload="optimizer+param", quantize="4bit"),
            "--offload optimizer+param cannot hold --quantize 4bit weights; use --offload optimizer",
        ),
    ],
)
def test_an_empty_space_says_what_emptied_it(fixed: Constraints, told: str) -> None:
    with pytest.raises(InputError) as error:
        kinds(fixed)
    assert str(error.value) == told


def test_precision_follows_the_card() -> None:
    assert {s.precision for s, _ in combinations(fake_model(), fake_cluster(), Constraints())} == {"bf16", "autocast"}
    old = fake_cluster(bf16=False)
    assert {s.precision for s, _ in combinations(fake_model(), old, Constraints())} == {"fp16", "autocast"}
    assert {s.precision for s, _ in combinations(fake_model(), old, Constraints(precision="fp32"))} == {"fp32"}
    with pytest.raises(InputError, match="--precision bf16: fake-gpu has no bf16; use --precision fp16"):
        combinations(fake_model(), old, Constraints(precision="bf16"))


def test_the_templates_can_write_every_optimizer() -> None:
    assert sorted(OPTIMIZERS) == sorted(render._OPTIMIZERS)


@given(
    hidden=st.sampled_from([128, 1024, 4096, 16384]),
    layers=st.integers(1, 120),
    stage=st.integers(0, 3),
    lean=st.booleans(),
)
def test_no_bucket_is_larger_than_the_model(hidden: int, layers: int, stage: int, lean: bool) -> None:
    model = fake_model(hidden, layers)
    sizes = buckets(model, stage, lean=lean)
    assert all(size <= buckets(model, stage)[name] for name, size in sizes.items())
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
