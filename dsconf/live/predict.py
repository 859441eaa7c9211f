"""What the memory and speed models say of the very job that was run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from dsconf.live.plan import RunPlan
    from dsconf.memory.estimate import Estimate

CUDA_ONLY_TERMS = ("cuBLAS workspaces",)
"""Terms of the memory model that a CPU run does not have."""


class Prediction(NamedTuple):
    """Bytes of one rank, plain enough to be journalled; what a CPU run has not is None."""

    phases: Mapping[str, Mapping[str, int]] = {}
    """The terms of the highest moment of ``forward``, ``backward`` and ``step``."""
    stays: Mapping[str, int] = {}
    """The terms that are there between two steps."""
    init_bytes: int | None = None
    reserved_bytes: int | None = None
    process_bytes: int | None = None
    step_seconds: float | None = None

    @property
    def peak_bytes(self) -> int | None:
        """The highest of all phases."""
        return max((sum(terms.values()) for terms in self.phases.values()), default=None)


def of_estimate(found: Estimate, device: str) -> Prediction:
    """Return ``found`` without what ``device`` does not have: the CPU knows no caching allocator and no cuBLAS."""
    on_cpu = device == "cpu"
    absent = CUDA_ONLY_TERMS if on_cpu else ()
    phases: dict[str, dict[str, int]] = {}
    for moment in found.moments:
        terms = phases.setdefault(moment.phase, {})
        for term in moment.terms:
            if term.name not in absent:
                terms[term.name] = terms.get(term.name, 0) + term.num_bytes
    stays = {name: size for name, size in found.stays if name not in absent}
    if on_cpu:
        return Prediction(phases, stays)
    return Prediction(phases, stays, found.init_peak_bytes, found.reserved_bytes, found.process_bytes)


def predict(plan: RunPlan, journalled: Mapping[str, Any] | None) -> Prediction:
    """Return the figures for the rank that is rehearsed, else for the fullest.

    ``journalled`` is what a training process found out about a person's own model, which only it can trace.
    """
    from dsconf.memory.estimate import estimate

    if plan.job is None:
        known = journalled or {}
        return Prediction(**{name: known[name] for name in Prediction._fields if name in known})
    found = estimate(plan.job, plan.order.rank if plan.order.rehearsed else None)
    prediction = of_estimate(found, plan.order.device)
    if plan.order.device == "cpu":
        return prediction
    from dsconf.speed.step_time import step_time

    return prediction._replace(step_seconds=step_time(plan.job).seconds)


def comparable(plan: RunPlan) -> bool:
    """Say no on a CPU with offload: what is offloaded and what is not lie in the same memory there."""
    from dsconf.config.resolve import resolve

    settings = resolve(plan.order.ds_config, plan.order.world_size, "deepspeed")
    offloaded = {settings.offload_optimizer, settings.offload_param} != {"none"}
    return not (plan.order.device == "cpu" and offloaded)
