"""What sets one card apart from another beyond its datasheet: how near its peak it gets, and by which instructions."""

from __future__ import annotations

from functools import lru_cache

ACHIEVED = {
    "A100 PCIe": 0.77,
    "A100 SXM": 0.848,
    "A800 SXM": 0.854,
    "B200": 0.754,
    "H100 PCIe": 0.656,
    "H100 SXM": 0.799,
    "H20": 0.96,
    "H200 SXM": 0.799,
    "H800 SXM": 0.799,
    "L4": 0.586,
    "L40S": 0.743,
    "RTX 3090": 1.077,
    "RTX 4090": 0.998,
    "RTX 5090": 1.12,
    "RTX 6000 Ada": 0.743,
    "RTX A6000": 0.797,
    "RTX PRO 6000": 0.82,
    "T4": 0.646,
    "V100 SXM": 0.759,
    "B300": 0.786,
    "GB200": 0.729,
    "GH200": 0.838,
    "MI300X": 0.514,
    "MI325X": 0.604,
}
"""Largest matrix rate measured in 16 bits, of the peak in gpus.json (GeForce cards clock beyond their datasheet).

All but the last five are square products, one program on all cards, the median where several people ran it:
https://github.com/zzc0721/torch-performance-test-data/blob/9d82827637262c4351e3f9483f96b8cff57a601f/database.md (H200
790.29 TFLOP/s, A100 SXM 264.53, RTX 4090 164.81, RTX 5090 234.4 …). The H800 is taken for an H100 SXM, the RTX 6000
Ada for an L40S, which have the same chips. The last five:
https://github.com/stas00/ml-engineering/blob/744d01e18b79512572f64a6bbd8b5f4a725203a7/compute/accelerator/README.md
("maximum achievable matmul FLOPS"; it has 0.803 for H100 and H200, 0.869 for the A100 SXM, 0.776 for the B200)."""

WIDTH = {"GH200": 2, "GB200": 4, "H100": 2, "H200": 2, "H800": 2, "B100": 4, "B200": 4, "B300": 4}
"""Matrix FLOPs a multiprocessor does in a cycle, against the A100's 2048: H100 989.4e12 / (132 · 1.83e9) = 4096, B200
2250e12 / (148 · 1.85e9) = 8200. Only instructions of the card's own generation reach them."""


@lru_cache(maxsize=256)
def sustained(gpu: str, reference: str = "H200 SXM") -> float:
    """Return how near its peak the card called ``gpu`` gets, relative to ``reference``, the card on which a rate was
    measured.

    A card that nobody measured is taken to be like the H200.
    """
    like = ACHIEVED["H200 SXM"]
    return next((share for name, share in ACHIEVED.items() if _called(gpu, name)), like) / ACHIEVED[reference]


@lru_cache(maxsize=256)
def instruction_width(gpu: str) -> int:
    """Return by what factor the card falls behind its peak with kernels written with the A100's instructions."""
    return next((width for name, width in WIDTH.items() if _called(gpu, name)), 1)


def _called(gpu: str, name: str) -> bool:
    """Say whether the whole words of ``name`` are in ``gpu``: an H20 is no H200."""
    return f" {name} " in f" {gpu} "
