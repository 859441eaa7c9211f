"""Whether a checkpoint has room on the disk, asked before minutes are spent on what it saves."""

from __future__ import annotations

import shutil
from pathlib import Path

from dsconf.errors import UnavailableError
from dsconf.live.plan import Plan
from dsconf.units import format_bytes

BYTES_PER_PARAMETER = 16
"""At most: Adam's two moments and the fp32 weights, and DeepSpeed's module file once more in the type trained in."""


def room_note(plan: Plan) -> str | None:
    """What the checkpoint of ``plan`` takes at most, and where; None where none is saved.

    Raises:
        UnavailableError: there is less room than that.
    """
    order = plan.order
    if not order.save_after or plan.job is None:
        return None
    folder = Path(order.checkpoint).parent
    needed, free = BYTES_PER_PARAMETER * plan.job.model.num_params, shutil.disk_usage(folder).free
    if needed > free:
        raise UnavailableError(
            f"--resume: a checkpoint takes up to {format_bytes(needed)}, and {folder} has {format_bytes(free)} left; "
            "set TMPDIR to a folder on a larger disk"
        )
    return f"a checkpoint of at most {format_bytes(needed)} will be written to {folder} and deleted again"
