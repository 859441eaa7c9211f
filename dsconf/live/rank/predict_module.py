"""What the memory model says of a person's own module, traced where torch is."""

from __future__ import annotations

from typing import Any

import torch

from dsconf.live.predict import of_estimate
from dsconf.live.processes.order import Order
from dsconf.live.rank.build import factory


def predicted(order: Order) -> dict[str, Any]:
    """The prediction for ``order.module``; that module is made on the meta device, so it takes no memory."""
    from dsconf.api import estimate

    make = factory(order.module)
    with torch.device("meta"):
        module, batch = make()
    found = estimate(
        module=module,
        batch=batch,
        gpus=order.world_size,
        config=order.ds_config,
        seq_len=order.workload.seq_len,
        micro_batch_size=order.workload.micro_batch if batch is None else None,
        gradient_accumulation_steps=order.workload.accumulation,
        load_dtype=order.workload.load_dtype,
        zero_init=order.workload.zero_init,
        rank=order.rank if order.rehearsed else None,
    )
    return of_estimate(found, order.device)._asdict()
