"""One training process: ``python -m dsconf.live.rank.worker FOLDER [first]``, a rank by its LOCAL_RANK.

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

from dsconf.live.processes.journal import FIRST, Journal, rank_name
from dsconf.live.processes.order import Order, Probe, read_order
from dsconf.live.rank import guard
from dsconf.live.rank.become_launcher import launch

if TYPE_CHECKING:
    from dsconf.live.rank.backends import Trainer
    from dsconf.live.rank.gauge import Gauge

NEEDED = ("torch", "deepspeed", "transformers")
USUAL_ARCH_LIST = re.compile(r"\d+\.\d(\+PTX)?([; ]+\d+\.\d(\+PTX)?)*")


def main() -> None:
    """Run the order found in FOLDER; every way to fail ends as one ``failure`` event."""
    folder, first = Path(sys.argv[1]), sys.argv[2:] == [FIRST]
    rank = 0 if first else int(os.environ["LOCAL_RANK"])
    journal = guard.keep(folder, FIRST if first else rank_name(rank))
    try:
        order = _first(journal) if first else read_order(folder)
        if order is None:
            return
        _prepare_environment(order)
        if first and order.launcher != "direct":
            journal.enter("launch")
            launch(order, folder)
        else:
            _run(order, rank, journal)
    except Exception as error:
        from dsconf.live.rank.failure import describe

        journal.write("failure", phase=journal.phase, **describe(error))
        raise


def _first(journal: Journal) -> Order | None:
    """Report what the machine has and wait for what to run; return None where a package is missing."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        journal.write("failure", phase="start", kind="missing", message=f"{missing[0]} is not installed")
        return None
    journal.enter("import")
    journal.write("probe", **_probe()._asdict())
    journal.enter("plan")
    while (order := read_order(journal.folder)) is None:
        time.sleep(0.01)
    return order


def _run(order: Order, rank: int, journal: Journal) -> None:
    journal.enter("import")
    if not order.rehearsed:
        order = order._replace(rank=rank)
    guard.watch_build_locks(journal)
    if order.task:
        _call(order, rank, journal)
    else:
        _train(order, rank, journal)


def _call(order: Order, local_rank: int, journal: Journal) -> None:
    """Journal what the order's function returns on this rank."""
    import torch

    from dsconf.live.rank.build import function_of
    from dsconf.live.rank.group import join, leave

    if order.device == "cuda":
        torch.cuda.set_device(local_rank)
    join(order, local_rank, journal.folder)
    journal.enter("task")
    journal.write("answer", answer=function_of(order.task)(**order.words))
    journal.write("done")
    leave()


def _probe() -> Probe:
    """Look at the devices without making a context on a GPU, which a launcher, as which this process may go on, must
    not have."""
    import torch

    versions = {name: version(name) for name in NEEDED}
    if torch.cuda.is_available():
        card = torch.cuda.get_device_properties(0)
        return Probe(torch.cuda.device_count(), card.name, int(card.total_memory), versions=versions)
    return Probe(fp16=_cpu_has_fp16(), can_build=_can_build(), versions=versions)


def _cpu_has_fp16() -> bool:
    """Ask what DeepSpeed's own CPU accelerator asks before it accepts fp16."""
    import torch

    try:
        return bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
    except (AttributeError, RuntimeError):
        return False


def _can_build() -> bool:
    compiler = os.environ.get("CXX") or "c++"
    return shutil.which(compiler) is not None and shutil.which("ninja") is not None


def _prepare_environment(order: Order) -> None:
    """Set what must be set before deepspeed is imported; the ranks of a launcher inherit it.

    Each rank gets a fair share of the cores: torchrun would give it a single one, other launchers all of them to every
    rank.
    """
    os.environ["DS_ACCELERATOR"] = order.device
    os.environ.setdefault("OMP_NUM_THREADS", str(_cores(order)))
    if order.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # DeepSpeed's launcher names devices where there are none, too
        return
    arch_list = os.environ.get("TORCH_CUDA_ARCH_LIST", "")
    if not USUAL_ARCH_LIST.fullmatch(arch_list.strip()):
        import torch

        major, minor = torch.cuda.get_device_capability()
        os.environ["TORCH_CUDA_ARCH_LIST"] = f"{major}.{minor}"


def _cores(order: Order) -> int:
    """Return how many cores each of the processes may keep busy."""
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, here // order.processes)


def _threads(order: Order) -> int:
    """Return what OMP_NUM_THREADS says, which torch does not read again once it is imported."""
    threads = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    return max(1, int(threads)) if threads.isdecimal() else _cores(order)


def _train(order: Order, local_rank: int, journal: Journal) -> None:
    import torch

    from dsconf.live.rank.build import build
    from dsconf.live.rank.data import Tokens, endless
    from dsconf.live.rank.gauge import CpuGauge, CudaGauge, host_peak_bytes
    from dsconf.live.rank.group import join, leave
    from dsconf.live.rank.predict_module import predicted
    from dsconf.live.rank.steps import train

    if order.device == "cuda":
        torch.cuda.set_device(local_rank)
    else:
        torch.set_num_threads(_threads(order))
    gauge: Gauge = CudaGauge() if order.device == "cuda" else CpuGauge()
    gauge.cap(order.cap_bytes)
    gauge.record(order.snapshot)
    join(order, local_rank, journal.folder)
    journal.enter("build")
    if order.module and local_rank == 0:
        journal.write("predicted", **predicted(order))
    torch.manual_seed(order.seed)
    built = build(order)
    journal.write("built", attention=built.attention)
    torch.manual_seed(order.seed + order.rank)
    try:
        trainer = _initialize(order, built.model, gauge, journal)
        tokens = Tokens(order, built.vocab)
        batches = repeat(built.batch) if built.batch else endless(trainer.loader(tokens), trainer.device, order)
        journal.enter("train")
        train(trainer, order, gauge, journal, batches)
    finally:  # a snapshot tells most where memory ran out
        if local_rank == 0 and gauge.save(order.snapshot):
            journal.write("snapshot", file=order.snapshot)
    journal.write("done", source=gauge.source, host_peak_bytes=host_peak_bytes())
    leave()


def _initialize(order: Order, model: Any, gauge: Gauge, journal: Journal) -> Trainer:
    import torch

    from dsconf.live.rank.backends import start

    journal.enter("init")
    gauge.reset()
    trainer = start(order, model)
    peak = gauge.peak_bytes()
    if order.device == "cuda":
        torch.cuda.empty_cache()
    if order.resume_at:
        journal.enter("load")
        trainer.load(Path(order.checkpoint))
    journal.write("initialized", init_bytes=peak, after_init_bytes=gauge.now_bytes())
    return trainer


if __name__ == "__main__":
    main()
