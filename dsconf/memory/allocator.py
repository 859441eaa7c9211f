"""What torch's allocators make of a request, and what the driver adds.

On the GPU: c10/cuda/CUDACachingAllocator.cpp. Pinned host memory: ATen/core/CachingHostAllocator.h.
"""

from __future__ import annotations

MIB = 2**20
CUBLAS_WORKSPACE = 32 * MIB
"""cuBLAS workspace of one thread on Hopper (aten/src/ATen/cuda/CublasHandlePool.cpp: parseChosenWorkspaceSize);
forward and backward run in two threads, and each keeps its own after its first matrix product."""

CONTEXT_BYTES = 840 * MIB
"""CUDA context and loaded kernels of one process, outside torch's allocator: 836 MiB measured on an H200 after three
steps of a small Llama (driver 580, CUDA 13, torch 2.11)."""


def block(size: int) -> int:
    """Return the bytes that the allocator hands out for a lone request of ``size`` bytes.

    Requests are rounded to 512 bytes; above 10 MiB a segment of whole 2 MiB is taken, and a rest of at most 1 MiB
    stays with the block (kRoundLarge, kSmallSize, should_split).
    """
    rounded = -(-size // 512) * 512
    if rounded <= 10 * MIB:
        return rounded
    segment = -(-rounded // (2 * MIB)) * 2 * MIB
    return segment if segment - rounded <= MIB else rounded


def pinned_block(size: int) -> int:
    """Return the bytes of a pinned block for ``size`` bytes: a power of two."""
    return 1 << max(0, size - 1).bit_length() if size else 0
