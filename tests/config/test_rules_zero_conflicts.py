"""Settings DeepSpeed refuses together, and the neighbours it takes. Verdicts are those of real engines of 0.19.8."""

from __future__ import annotations

import pytest
from rule_rows import BF16, CPU, faults, zero

NORM = ("DS313", "zero_optimization.compute_grad_norm")


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_the_norm_may_be_left_out_at_stages_1_and_2_without_clipping(stage):
    config = zero(stage, compute_grad_norm=False) | BF16
    assert faults(config | {"gradient_clipping": 0}) == ([] if stage in (1, 2) else [NORM])
    assert faults(config) == [NORM]


def test_the_norm_under_offload_and_fp32_accumulation():
    config = zero(2, compute_grad_norm=False, offload_optimizer=CPU) | {"gradient_clipping": 0}
    assert faults(config) == [NORM]
    sums = {"gradient_clipping": 0, "data_types": {"grad_accum_dtype": "fp32"}}
    assert faults(zero(1, compute_grad_norm=False) | BF16 | sums) == [NORM]
    assert faults(zero(2, compute_grad_norm=False) | BF16 | sums) == []


@pytest.mark.parametrize("scaled", [{"prescale_gradients": True}, {"gradient_predivide_factor": 2.0}])
@pytest.mark.parametrize(
    ("stage", "keys", "refused"),
    [(0, {}, False), (1, {}, False), (2, {}, True), (3, {}, True), (2, {"reduce_scatter": False}, False)],
)
def test_scaling_before_a_reduce_scatter(scaled, stage, keys, refused):
    assert faults(zero(stage, **keys) | scaled) == ([("DS314", next(iter(scaled)))] if refused else [])


def test_scaling_before_a_sum_is_taken():
    assert faults(zero(2) | {"prescale_gradients": True, "gradient_allreduce_op": "sum"}) == []


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_odd_buckets_are_refused_where_they_are_aligned(stage):
    found = faults(zero(stage, allgather_bucket_size=1001))
    assert found == ([("DS315", "zero_optimization.allgather_bucket_size")] if stage in (1, 2) else [])


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_the_first_stage_1_is_gone_at_every_stage_but_0(stage):
    found = faults(zero(stage, legacy_stage1=True))
    assert found == ([("DS311", "zero_optimization.legacy_stage1")] if stage else [])


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_accumulation_by_the_script_and_overlap(stage):
    config = zero(stage, overlap_comm=True) | {"managed_gradient_accumulation": False}
    assert faults(config) == ([("DS317", "managed_gradient_accumulation")] if stage < 2 else [])
    assert faults(zero(stage) | {"managed_gradient_accumulation": False}) == []


def test_deepcompile_sums_and_counts_by_itself():
    config = zero(1) | {"compile": {"deepcompile": True}}
    assert faults(config | {"gradient_allreduce_op": "SUM"}) == [("DS316", "gradient_allreduce_op")]
    assert faults(config | {"managed_gradient_accumulation": False}) == [("DS317", "managed_gradient_accumulation")]
