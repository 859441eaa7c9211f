"""What sets one card apart from another beyond its datasheet: how near its peak it gets, and by which instructions."""

from __future__ import annotations

from functools import lru_cache

from dsconf.speed import rates

ACHIEVED = (
    ("A100 SXM", 0.869),
    ("A800 SXM", 0.869),
    ("A100 PCIe", 0.811),
    ("GH200", 0.838),
    ("GB200", 0.729),
    ("H100", 0.803),
    ("H200", 0.803),
    ("H800", 0.803),
    ("B200", 0.776),
    ("B300", 0.786),
    ("MI300X", 0.514),
    ("MI325X", 0.604),
)
"""Largest matrix rate that a search over shapes found, of the peak in bf16, as published in
https://github.com/stas00/ml-engineering/blob/744d01e18b79512572f64a6bbd8b5f4a725203a7/compute/accelerator/README.md
("maximum achievable matmul FLOPS"). The first name that occurs in a card's counts; others are taken to be like the
H200. The A800 is an A100, the H200 and the H800 are an H100, with other memory or links."""

REFERENCE = 0.803
"""The same of the H200, on which ``rates.MATMUL_FRACTION`` was profiled."""

WIDTH = (("GH200", 2), ("GB200", 4), ("H100", 2), ("H200", 2), ("H800", 2), ("B100", 4), ("B200", 4), ("B300", 4))
"""Matrix FLOPs a multiprocessor does in a cycle, against the A100's 2048: H100 989.4e12 / (132 · 1.83e9) = 4096, B200
2250e12 / (148 · 1.85e9) = 8200. Only instructions of the card's own generation reach them."""


@lru_cache(maxsize=256)
def matmul_fraction(gpu: str) -> float:
    """Of the peak of the card called ``gpu`` that large matrix products reach."""
    achieved = next((share for name, share in ACHIEVED if name in gpu), REFERENCE)
    return rates.MATMUL_FRACTION * achieved / REFERENCE


@lru_cache(maxsize=256)
def instruction_width(gpu: str) -> int:
    """By what factor the card falls behind its peak with kernels that are written with the A100's instructions."""
    return next((width for name, width in WIDTH if name in gpu), 1)
