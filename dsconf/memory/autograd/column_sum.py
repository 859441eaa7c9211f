"""The scratch memory of summing a gradient's rows, as torch's reduction kernel takes it."""

from __future__ import annotations

from typing import NamedTuple

SM_COUNT = 132
"""Streaming multiprocessors of an H100 or H200; torch sizes the scratch of a column sum by it."""


class ColumnSum(NamedTuple):
    """A rows × columns gradient summed into one of ``columns``: of a bias, of a norm's weight."""

    rows: int
    columns: int

    @property
    def scratch(self) -> int:
        """Bytes torch takes for it.

        Blocks of 32 × 4 threads, 4 columns a thread; a column's rows are shared by several blocks once each thread has
        256 of them or more, and then every block stores its partial sums in fp32
        (torch: aten/src/ATen/native/cuda/Reduce.cuh, setReduceConfig and ReduceConfig::global_memory_size).
        """
        rows, columns = self
        width = min(32, 1 << max(0, (max(1, columns // 4)).bit_length() - 1))
        height = max(1, 128 // width)
        per_thread = -(-rows // height)
        if per_thread < 256:
            return 0
        grid = -(-columns // (4 * width))
        blocks = max(min(-(-SM_COUNT * 16 // grid), -(-per_thread // 16)), -(-per_thread // 256))
        return 4 * columns * blocks * 4 * width if blocks > 1 else 0
