"""What the memory and speed models say of the very job that was run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dsconf.live.plan import Plan
from dsconf.live.result import NO_FIGURES, Figures

if TYPE_CHECKING:
    from dsconf.memory.estimate import Moment

CUDA_ONLY_TERMS = ("cuBLAS workspaces",)
"""Terms of the memory model that a CPU run does not have."""


def predict(plan: Plan) -> tuple[Figures, dict[str, int]]:
    """The figures predicted, and the peak of each phase: of rank 0 in a rehearsal, else of the fullest rank.

    A CPU run has no caching allocator and no GPU's speed, so these figures are None there.
    """
    from dsconf.memory.estimate import estimate

    found = estimate(plan.job, 0 if plan.order.rehearsed else None)
    on_cpu = plan.order.device == "cpu"
    phases = {moment.phase: _bytes(moment, on_cpu) for moment in found.moments}
    if on_cpu:
        return NO_FIGURES._replace(peak_bytes=_bytes(found.peak, on_cpu)), phases
    from dsconf.speed.step_time import step_time

    return Figures(found.peak_bytes, found.reserved_bytes, step_time(plan.job).seconds), phases


def comparable(plan: Plan) -> bool:
    """False on a CPU with offload: what is offloaded and what is not lie in the same memory there."""
    offloaded = {plan.job.settings.offload_optimizer, plan.job.settings.offload_param} != {"none"}
    return not (plan.order.device == "cpu" and offloaded)


def _bytes(moment: Moment, on_cpu: bool) -> int:
    absent = CUDA_ONLY_TERMS if on_cpu else ()
    return sum(term.num_bytes for term in moment.terms if term.name not in absent)
