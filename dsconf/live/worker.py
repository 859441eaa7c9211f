"""One training process: ``python -m dsconf.live.worker FOLDER RANK``.

Needs torch, deepspeed, transformers and the standard library. Reports through its journal; see ``launcher``.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import time
from importlib.metadata import version
from importlib.util import find_spec
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsconf.live import guard
from dsconf.live.journal import Journal
from dsconf.live.order import Order, Probe, read_order

if TYPE_CHECKING:
    from dsconf.live.backends import Trainer
    from dsconf.live.gauge import Gauge

NEEDED = ("torch", "deepspeed", "transformers")
USUAL_ARCH_LIST = re.compile(r"\d+\.\d(\+PTX)?([; ]+\d+\.\d(\+PTX)?)*")


def main() -> None:
    """Run the order found in FOLDER as RANK; every way to fail ends as one ``failure`` event."""
    journal = Journal(Path(sys.argv[1]), int(sys.argv[2]))
    locks = guard.watch_parent(journal)
    try:
        _run(journal, locks)
    except Exception as error:
        from dsconf.live.failure import describe

        journal.write("failure", phase=journal.phase, **describe(error))
        raise


def _run(journal: Journal, locks: set[str]) -> None:
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        journal.write("failure", phase="start", kind="missing", message=f"{missing[0]} is not installed")
        return
    journal.enter("import")
    if journal.rank == 0:
        journal.write("probe", **_probe()._asdict())
    order = _wait_for_order(journal)
    if not order.rehearsed:
        order = order._replace(rank=journal.rank)
    _prepare_environment(order)
    guard.watch_build_locks(journal, locks)
    _train(order, journal)


def _probe() -> Probe:
    import torch

    versions = {name: version(name) for name in NEEDED}
    if torch.cuda.is_available():
        total = int(torch.cuda.mem_get_info()[1])
        return Probe(torch.cuda.device_count(), torch.cuda.get_device_name(0), total, versions=versions)
    return Probe(fp16=_cpu_has_fp16(), can_build=_can_build(), versions=versions)


def _cpu_has_fp16() -> bool:
    """The question DeepSpeed's own CPU accelerator asks before it accepts fp16."""
    import torch

    try:
        return bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
    except (AttributeError, RuntimeError):
        return False


def _can_build() -> bool:
    compiler = os.environ.get("CXX") or "c++"
    return shutil.which(compiler) is not None and shutil.which("ninja") is not None


def _wait_for_order(journal: Journal) -> Order:
    while (order := read_order(journal.folder)) is None:
        time.sleep(0.02)
    return order


def _prepare_environment(order: Order) -> None:
    """What must be set before deepspeed is imported."""
    import torch

    os.environ["DS_ACCELERATOR"] = order.device
    if order.device == "cpu":
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // order.processes))
        return
    arch_list = os.environ.get("TORCH_CUDA_ARCH_LIST", "")
    if not USUAL_ARCH_LIST.fullmatch(arch_list.strip()):
        major, minor = torch.cuda.get_device_capability()
        os.environ["TORCH_CUDA_ARCH_LIST"] = f"{major}.{minor}"


def _train(order: Order, journal: Journal) -> None:
    import torch

    from dsconf.live.build import build
    from dsconf.live.data import Tokens, endless
    from dsconf.live.gauge import CpuGauge, CudaGauge, host_peak_bytes
    from dsconf.live.group import join, leave
    from dsconf.live.own import predicted
    from dsconf.live.steps import train

    if order.device == "cuda":
        torch.cuda.set_device(journal.rank)
    gauge: Gauge = CudaGauge() if order.device == "cuda" else CpuGauge()
    gauge.cap(order.cap_bytes)
    gauge.record(order.snapshot)
    join(order, journal.rank, journal.folder)
    journal.enter("build")
    if order.module and journal.rank == 0:
        journal.write("predicted", **predicted(order))
    torch.manual_seed(order.seed)
    built = build(order)
    torch.manual_seed(order.seed + order.rank)
    try:
        trainer = _initialize(order, built.model, gauge, journal)
        tokens = Tokens(order, built.vocab)
        batches = repeat(built.batch) if built.batch else endless(trainer.loader(tokens), trainer.device)
        journal.enter("train")
        train(trainer, order, gauge, journal, batches)
    finally:  # a snapshot tells most where memory ran out
        if journal.rank == 0 and gauge.save(order.snapshot):
            journal.write("snapshot", file=order.snapshot)
    journal.write("done", source=gauge.source, host_peak_bytes=host_peak_bytes())
    leave()


def _initialize(order: Order, model: Any, gauge: Gauge, journal: Journal) -> Trainer:
    import torch

    from dsconf.live.backends import start

    journal.enter("init")
    gauge.reset()
    trainer = start(order, model)
    peak = gauge.peak_bytes()
    if order.device == "cuda":
        torch.cuda.empty_cache()
    if order.resume_at:
        trainer.load(Path(order.checkpoint))
    journal.write("initialized", init_bytes=peak, after_init_bytes=gauge.now_bytes())
    return trainer


if __name__ == "__main__":
    main()
