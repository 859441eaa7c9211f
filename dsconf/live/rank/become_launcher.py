"""Turns the first process into the launcher that the order names, which starts the ranks as a person's launch line
does.

Only three things of a launcher are used: it passes on standard input and the environment, and gives each rank its
LOCAL_RANK. The ranks meet through a file, so the address and the port that it hands out stay unused.
"""

from __future__ import annotations

import base64
import json
import os
import sys
from pathlib import Path

from dsconf.live.processes.order import Order

RANK = "dsconf.live.rank.worker"


def launch(order: Order, folder: Path) -> None:
    """Start ``order.processes`` ranks and wait until they have ended.

    Raises:
        SystemExit: a rank did not end well; its keeper wrote down how.
    """
    {"torchrun": _torchrun, "deepspeed": _deepspeed}[order.launcher](order, folder)


def _torchrun(order: Order, folder: Path) -> None:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main

    # --standalone takes a free port; the address spares a look-up of the host name, which containers may not resolve.
    words = ["--standalone", "--local-addr=127.0.0.1", f"--nproc-per-node={order.processes}", "--module"]
    try:
        main([*words, RANK, str(folder)])
    except ChildFailedError:
        raise SystemExit(1) from None


def _deepspeed(order: Order, folder: Path) -> None:
    """Run the part of DeepSpeed's launcher that runs on each node.

    ``deepspeed --num_gpus N`` starts the same with the first N GPUs of the machine, whatever CUDA_VISIBLE_DEVICES says
    (launcher/runner.py: main); here it gets those that this process sees.
    """
    from deepspeed.launcher.launch import main

    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    devices = visible[: order.processes] if len(visible) >= order.processes else list(range(order.processes))
    world = base64.urlsafe_b64encode(json.dumps({"localhost": devices}).encode()).decode()
    sys.argv = ["deepspeed", f"--world_info={world}", "--module", "--no_local_rank", RANK, str(folder)]
    main()
