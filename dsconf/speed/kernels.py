"""Seconds of single GPU kernels: a matrix product, causal attention, and anything that only moves memory."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from dsconf.cluster.spec import Gpu
from dsconf.speed import card_efficiency, rates
from dsconf.speed.attention_scores import Scores


def matrix_rate(gpu: Gpu, precision: str) -> float:
    """Return the peak FLOP/s of matrix products in ``precision`` (a ``Settings.precision``).

    fp32 runs on the plain units (torch's default, ``allow_tf32`` off), and so does bf16 on cards without it.
    """
    if precision == "fp32" or (precision == "bf16" and not gpu.has_bf16):
        return gpu.fp32_flops
    return gpu.bf16_flops


def traffic_seconds(gpu: Gpu, num_bytes: float, fraction: float = rates.TRAFFIC_FRACTION) -> float:
    """Compute the seconds that kernels with little arithmetic need to read and write ``num_bytes`` in all."""
    return num_bytes / (fraction * gpu.memory_bandwidth)


class Rate(NamedTuple):
    """The matrix products a card achieves: FLOP/s, and the steps of the inner dimension lost at the ends of each
    tile."""

    flops: float
    ramp: float


@lru_cache(maxsize=1024)
def matmul_rate(gpu: Gpu, precision: str, aligned: bool = True) -> Rate:
    """Return the rate of products in ``precision``; it is low where rows in memory are not ``aligned`` to 16 bytes."""
    peak = matrix_rate(gpu, precision)
    if peak == gpu.fp32_flops:
        return Rate(rates.FP32_MATMUL_FRACTION * peak, 0.0)
    if not aligned:
        return Rate(rates.MATMUL_MISALIGNED_FRACTION * peak, 0.0)
    return Rate(rates.MATMUL_FRACTION * card_efficiency.sustained(gpu.name) * peak, rates.MATMUL_RAMP)


def matmul(gpu: Gpu, precision: str, rows: float, inner: float, columns: float, aligned: bool = True) -> float:
    """Compute the seconds of one product of ``rows`` × ``inner`` by ``inner`` × ``columns``.

    The larger of 2 · rows · (inner + ramp) · columns over the achieved rate and of the three matrices' bytes over the
    memory bandwidth.
    """
    width = 4 if precision == "fp32" else 2
    moved = width * (rows * inner + inner * columns + rows * columns) / gpu.memory_bandwidth
    flops, ramp = matmul_rate(gpu, precision, aligned)
    return max(2 * rows * (inner + ramp) * columns / flops, moved)


def _at_head_size(fractions: tuple[float, float], head_dim: int) -> float:
    """Interpolate between the fractions for heads of 64 and of 128; smaller heads in proportion to 64."""
    small, large = fractions
    if head_dim < 64:
        return small * head_dim / 64
    return small + (large - small) * (min(head_dim, 128) - 64) / 64


def attention_fractions(gpu: Gpu, kernel: str, head_dim: int) -> tuple[float, float]:
    """Return the fraction of the peak that flash attention reaches over long sequences, forward and backward.

    ``sdpa`` is the card's own kernel (cuDNN's on Hopper), as fast as FlashAttention-3. ``flash`` is FlashAttention-2,
    written with the A100's instructions: on an H100 it reaches 335 TFLOP/s forward (0.34 of the peak, 0.32 here) and
    322 backward (0.33, 0.28 here), where cuDNN reaches 539 and 516 (https://arxiv.org/abs/2407.08608, figures 5, 6).
    Clock and power hold attention as far below the peak as they hold products.

    ``masked`` is what SDPA runs when it is handed a mask: it computes every score, while the causal kernels skip half,
    so its fraction of the useful FLOPs is half of what it reaches. Hopper and later cards have cuDNN's kernel for it,
    older ones the memory-efficient one.
    """
    if kernel == "masked":
        return _masked_fractions(gpu, head_dim)
    old = kernel == "flash1"
    forward = rates.FLASH_1_FORWARD if old else rates.ATTENTION_FORWARD
    backward = rates.FLASH_1_BACKWARD if old else rates.ATTENTION_BACKWARD
    factor = card_efficiency.sustained(gpu.name, "A100 SXM" if old else "H200 SXM")
    if kernel != "sdpa":
        factor /= card_efficiency.instruction_width(gpu.name)
    return factor * _at_head_size(forward, head_dim), factor * _at_head_size(backward, head_dim)


def _masked_fractions(gpu: Gpu, head_dim: int) -> tuple[float, float]:
    hopper_or_later = card_efficiency.instruction_width(gpu.name) > 1
    forward = rates.MASKED_FORWARD if hopper_or_later else rates.EFFICIENT_FORWARD
    backward = rates.MASKED_BACKWARD if hopper_or_later else rates.EFFICIENT_BACKWARD
    factor = card_efficiency.sustained(gpu.name, "H200 SXM") / 2
    return factor * _at_head_size(forward, head_dim), factor * _at_head_size(backward, head_dim)


class AttentionShape(NamedTuple):
    """What one layer's attention computes: ``head_dim`` is in elements, ``seq_len`` in tokens."""

    sequences: int
    seq_len: int
    heads: int
    head_dim: int


def attention(gpu: Gpu, precision: str, shape: AttentionShape, kernel: str = "sdpa") -> tuple[float, float]:
    """Compute the seconds of one layer's causal attention by a fused kernel, forward and backward.

    Forward is 2 · seq_len² · head_dim FLOPs a head (two products, half of each masked); backward is five products,
    2.5 times as many (https://arxiv.org/abs/2307.08691, section 4.1).
    """
    sequences, seq_len, heads, head_dim = shape
    flops = 2.0 * sequences * heads * seq_len**2 * head_dim
    peak = matrix_rate(gpu, precision)
    forward, backward = attention_fractions(gpu, kernel, head_dim)
    forward_ramp, backward_ramp = attention_ramps(kernel)
    return (
        flops / (peak * forward) * (1 + forward_ramp / seq_len),
        2.5 * flops / (peak * backward) * (1 + backward_ramp / seq_len),
    )


def attention_ramps(kernel: str) -> tuple[float, float]:
    """Return the sequence length at which ``kernel`` runs at half of its fraction, forward and backward."""
    if kernel == "masked":
        return rates.MASKED_FORWARD_RAMP, rates.MASKED_BACKWARD_RAMP
    return rates.ATTENTION_FORWARD_RAMP, rates.ATTENTION_BACKWARD_RAMP


def eager_attention(gpu: Gpu, precision: str, shape: AttentionShape, scores: Scores) -> tuple[float, float]:
    """Compute the seconds of one layer's attention that writes its scores to memory, forward and backward.

    Both products over all seq_len² scores, twice as many in backward, and the bytes that ``scores`` moves for each.
    """
    sequences, seq_len, heads, head_dim = shape
    number = float(sequences) * heads * seq_len**2
    flops, ramp = matmul_rate(gpu, precision)
    wide = rates.FP32_MATMUL_FRACTION * gpu.fp32_flops
    each = (1 - scores.in_fp32) * (head_dim + ramp) / flops + scores.in_fp32 * head_dim / wide
    product = 4 * number * each
    return product + traffic_seconds(gpu, scores.forward * number), 2 * product + traffic_seconds(
        gpu, scores.backward * number
    )
