"""Seconds of single GPU kernels: a matrix product, causal attention, and anything that only moves memory."""

from __future__ import annotations

from dsconf.cluster.spec import Gpu
from dsconf.speed import rates


def matrix_rate(gpu: Gpu, precision: str) -> float:
    """Peak FLOP/s of matrix products in ``precision`` (a ``Settings.precision``).

    fp32 runs on the plain units (torch's default, ``allow_tf32`` off), and so does bf16 on cards without it.
    """
    if precision == "fp32" or (precision in ("bf16", "autocast") and not gpu.has_bf16):
        return gpu.fp32_flops
    return gpu.bf16_flops


def traffic(gpu: Gpu, num_bytes: float) -> float:
    """Seconds to read and write ``num_bytes`` in all by kernels that do little arithmetic."""
    return num_bytes / (rates.TRAFFIC_FRACTION * gpu.memory_bandwidth)


def matmul(gpu: Gpu, precision: str, rows: float, inner: float, columns: float, aligned: bool = True) -> float:
    """Seconds of one product of ``rows`` × ``inner`` by ``inner`` × ``columns``.

    The larger of 2 · rows · inner · columns over the achieved rate and of the three matrices' bytes over the memory
    bandwidth. The achieved rate is a fraction of the peak, times inner / (inner + MATMUL_RAMP), and a small one
    where the matrices' rows in memory are not ``aligned`` to 16 bytes.
    """
    flops = 2 * rows * inner * columns
    width = 4 if precision == "fp32" else 2
    moved = width * (rows * inner + inner * columns + rows * columns) / gpu.memory_bandwidth
    peak = matrix_rate(gpu, precision)
    if peak == gpu.fp32_flops:
        fraction = rates.FP32_MATMUL_FRACTION
    elif not aligned:
        fraction = rates.MATMUL_MISALIGNED_FRACTION
    else:
        fraction = rates.MATMUL_FRACTION * inner / (inner + rates.MATMUL_RAMP)
    return max(flops / (fraction * peak), moved)


def _at_head_size(fractions: tuple[float, float], head_dim: int) -> float:
    """Between the fractions for heads of 64 and of 128, in a straight line; smaller heads in proportion to 64."""
    small, large = fractions
    if head_dim < 64:
        return small * head_dim / 64
    return small + (large - small) * (min(head_dim, 128) - 64) / 64


def attention(gpu: Gpu, precision: str, sequences: int, seq_len: int, heads: int, head_dim: int) -> tuple[float, float]:
    """Seconds of one layer's causal flash attention, forward and backward.

    Forward is 2 · seq_len² · head_dim FLOPs a head (two products, half of each masked); backward is five products,
    2.5 times as many (https://arxiv.org/abs/2307.08691, section 4.1).
    """
    flops = 2.0 * sequences * heads * seq_len**2 * head_dim
    peak = matrix_rate(gpu, precision)
    forward = peak * _at_head_size(rates.ATTENTION_FORWARD, head_dim)
    backward = peak * _at_head_size(rates.ATTENTION_BACKWARD, head_dim)
    return (
        flops / forward * (1 + rates.ATTENTION_FORWARD_RAMP / seq_len),
        2.5 * flops / backward * (1 + rates.ATTENTION_BACKWARD_RAMP / seq_len),
    )


def eager_attention(
    gpu: Gpu, precision: str, sequences: int, seq_len: int, heads: int, head_dim: int
) -> tuple[float, float]:
    """Seconds of one layer's attention that writes its scores to memory, forward and backward.

    Both products over all seq_len² scores, and for each score the bytes of: the product's result, scaling, mask,
    fp32 softmax, cast, read by the second product (24); in backward 34 (``eager_attention_forward``, transformers).
    """
    scores = float(sequences) * heads * seq_len**2
    peak = matrix_rate(gpu, precision) * rates.MATMUL_FRACTION * head_dim / (head_dim + rates.MATMUL_RAMP)
    product = 4 * scores * head_dim / peak
    return product + traffic(gpu, 24 * scores), 2 * product + traffic(gpu, 34 * scores)
