"""What the parent and the training processes tell each other: what is there, and what to run."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from dsconf.workload import Workload

ORDER_FILE = "order.json"


class Probe(NamedTuple):
    """What the first training process sees where it runs."""

    cuda_devices: int = 0
    device_name: str = "CPU"
    device_bytes: int = 0
    """Memory of one GPU as torch reports it; 0 without a GPU."""
    fp16: bool = True
    """Whether the device computes in fp16 (not every CPU does)."""
    can_build: bool = True
    """Whether DeepSpeed can build its CPU kernels: a C++ compiler and ninja."""
    versions: dict[str, str] = {}  # noqa: RUF012 (never changed; a NamedTuple default)


class Order(NamedTuple):
    """One short training run, or a function to call on real ranks."""

    device: str
    """``cuda`` or ``cpu``."""
    world_size: int
    processes: int
    rehearsed: bool = False
    """One process as ``rank`` of ``world_size``; the other ranks are torch's ``fake`` process group."""
    steps: int = 0
    workload: Workload = Workload()
    sequence_parallel: int = 1
    """Ranks that share each sequence."""
    lora_rank: int = 0
    ds_config: dict[str, Any] = {}  # noqa: RUF012 (never changed; a NamedTuple default)
    hf_config: dict[str, Any] = {}  # noqa: RUF012
    backend: str = "deepspeed"
    """``deepspeed``, ``ddp`` or ``accelerate``."""
    launcher: str = "direct"
    """One of ``dsconf.request.LAUNCHERS``."""
    rank: int = 0
    """The rank rehearsed; each real process puts its own here."""
    seed: int = 1
    module: str = ""
    """``package.file:factory`` of a model of the person's own, instead of ``hf_config``."""
    cap_bytes: int = 0
    """Most that the process may allocate on its card, as if the card were smaller; 0: all there is."""
    snapshot: str = ""
    """Where torch's memory snapshot goes; empty: none is taken."""
    checkpoint: str = ""
    """Folder of the checkpoint that is saved or resumed from; empty: neither."""
    save_after: int = 0
    """Optimizer steps after which the checkpoint is saved; 0: never."""
    resume_at: int = 0
    """Number of the step to go on with from the checkpoint; 0: from the start."""
    task: str = ""
    """``package.file:function`` that each rank calls in place of a training, in the group of all ranks."""
    words: dict[str, Any] = {}  # noqa: RUF012 (never changed; a NamedTuple default)
    """The keyword arguments of ``task``."""

    @property
    def tokens(self) -> int:
        """Tokens of one optimizer step over all ranks."""
        step = self.workload
        return self.world_size // self.sequence_parallel * step.micro_batch * step.accumulation * step.seq_len

    def write(self, folder: Path) -> None:
        """Put the order where the processes look for it, whole or not at all."""
        draft = folder / f"{ORDER_FILE}.draft"
        draft.write_text(json.dumps(self._asdict() | {"workload": asdict(self.workload)}), encoding="utf-8")
        os.replace(draft, folder / ORDER_FILE)


def read_order(folder: Path) -> Order | None:
    """The order in ``folder``, or None while there is none yet."""
    try:
        fields = json.loads((folder / ORDER_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return Order(**fields | {"workload": Workload(**fields["workload"])})
