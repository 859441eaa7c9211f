"""Which units of a card a product runs on."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dsconf.cluster.catalogue import find_gpu
from dsconf.read_job import read_job
from dsconf.speed import rates
from dsconf.speed.kernels import attention, matmul, matrix_rate
from dsconf.speed.step_time import step_time

V100 = find_gpu("v100-32gb")


@pytest.mark.parametrize(
    ("precision", "units"), [("autocast", "matrix"), ("fp16", "matrix"), ("bf16", "plain"), ("fp32", "plain")]
)
def test_a_card_without_bf16_has_matrix_units_for_all_that_is_cast_to_fp16(precision: str, units: str) -> None:
    """125 TFLOP/s in fp16 and 15.7 in fp32 (https://images.nvidia.com/content/technologies/volta/pdf/volta-v100-datasheet-update-us-1165301-r5.pdf)."""
    assert not V100.has_bf16
    assert V100.bf16_flops > 6 * V100.fp32_flops
    assert matrix_rate(V100, precision) == (V100.bf16_flops if units == "matrix" else V100.fp32_flops)


def test_autocast_without_bf16_is_timed_as_fp16_and_not_as_fp32() -> None:
    shape = (4096, 4096, 4096)
    plain = 2 * 4096**3 / (rates.FP32_MATMUL_FRACTION * V100.fp32_flops)
    assert matmul(V100, "fp32", *shape) == pytest.approx(plain)
    assert matmul(V100, "autocast", *shape) == matmul(V100, "fp16", *shape) < plain / 5
    assert attention(V100, "autocast", 1, 2048, 16, 64) == attention(V100, "fp16", 1, 2048, 16, 64)


def test_plain_ddp_on_such_a_card_takes_no_longer_than_matrix_units_need() -> None:
    """A step of DDP trains under autocast: with fp32 products alone it would take longer than all of it does."""
    job = read_job(params="1B", model=None, gpus=1, gpu="v100-32gb", precision="fp16", micro_batch_size=4)
    seconds = {
        precision: step_time(replace(job, settings=replace(job.settings, precision=precision))).parts["matmul"]
        for precision in ("autocast", "fp16", "fp32")
    }
    assert seconds["autocast"] == pytest.approx(seconds["fp16"], rel=0.01)
    assert seconds["fp32"] > 5 * seconds["autocast"]
