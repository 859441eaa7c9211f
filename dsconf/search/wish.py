"""What a person fixes before a search, and the words for it."""

from __future__ import annotations

from typing import NamedTuple

OFFLOADS = {
    "none": (("none", "none"),),
    "optimizer": (("cpu", "none"),),
    "param": (("cpu", "cpu"),),
    "nvme": (("nvme", "none"), ("nvme", "nvme")),
}
"""What ``--offload`` says → (optimizer device, parameter device)."""
OPTIMIZERS = ("adamw", "adam", "adagrad", "lamb", "lion", "muon", "sgd")
"""What ``--optimizer`` takes: what the templates can write."""
CPU_OPTIMIZERS = ("adam", "adamw", "lion")
"""Optimizers that DeepSpeed runs on the host (engine.py:2342-2346 refuses the others under offload)."""


class Wish(NamedTuple):
    """What the person fixed; None leaves it to the search. Batch sizes are in sequences."""

    seq_len: int = 2048
    global_batch: int | None = None
    micro_batch: int | None = None
    precision: str | None = None
    optimizer: str = "adamw"
    stage: int | None = None
    offload: str | None = None
    checkpointing: bool | None = None
    attention: str = "sdpa"
    quantize: str | None = None
    low_states: bool | None = None
    """bf16 master weights and optimizer states; None: only where nothing else fits."""
    sequence_parallel: int | None = None
    """Ranks that share a sequence (Ulysses); None: up to a node for long sequences."""
