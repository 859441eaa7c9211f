"""Seconds that the CPU needs to run a training step's Python and to launch its kernels; the GPU waits where they are
more than its own.

All of it grows with the number of modules, operations and tensors and not with their size: it is what a small
micro-batch waits for.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from dsconf.job import Job
from dsconf.model.spec import Model, Param
from dsconf.speed import rates
from dsconf.speed.communication import gathers
from dsconf.speed.elementwise import Traffic
from dsconf.speed.optimizer import trained

CONTAINERS = 4
"""Modules of a layer without parameters that its forward calls: layer, attention, feed-forward, activation."""
ADAPTER_MODULES = 2
"""peft's wrapper of a layer and its dropout, which have no parameters."""


class ModuleCounts(NamedTuple):
    """How many modules and tensors one layer has, or what comes before and after all layers."""

    called: int
    owners: int
    """Modules with parameters of their own."""
    trained: int
    """Tensors that get a gradient."""


def modules(params: tuple[Param, ...], containers: int = CONTAINERS) -> ModuleCounts:
    """Count what a part of a model calls, from the names of its parameters: ``mlp.up_proj.weight`` belongs to a
    module."""
    owners = {p.name.rpartition(".")[0] for p in params}
    adapted = sum(name.endswith(".base_layer") for name in owners)
    called = len(owners) + containers + ADAPTER_MODULES * adapted
    return ModuleCounts(called, len(owners), sum(p.trainable for p in params))


def launches(
    traffic: Traffic, products: int, counts: ModuleCounts, precision: str, compiled: bool
) -> tuple[float, float]:
    """Return the seconds that the CPU needs in forward and in backward, in plain PyTorch."""
    forward, backward = traffic.forward_operations + products, traffic.backward_operations + 2 * products
    if compiled:
        return forward * rates.COMPILED_OPERATION_SECONDS, backward * rates.COMPILED_OPERATION_SECONDS
    if precision == "autocast":
        forward, backward = (count + rates.AUTOCAST_OPERATIONS * products for count in (forward, backward))
    return (
        forward * rates.OPERATION_SECONDS + counts.called * rates.MODULE_SECONDS,
        backward * rates.BACKWARD_OPERATION_SECONDS + counts.trained * rates.GRADIENT_SECONDS,
    )


class Engine(NamedTuple):
    """Seconds of DeepSpeed's, or torch's, own Python: in forward, in backward, in recomputation and in the step."""

    forward: float
    backward: float
    recompute: float
    step: float


def engine(job: Job) -> Engine:
    """Compute what the wrapper of ``job`` adds to plain PyTorch."""
    tensors = trained(job.model)[1]
    stage = job.settings.stage
    if job.settings.engine != "deepspeed":
        return Engine(0.0, 0.0, 0.0, tensors * rates.PLAIN_STEP_SECONDS)
    hooks = tensors * rates.HOOK_SECONDS if stage else 0.0
    # At stages 1 and 2 a rank keeps the gradients of the tensors in its slice alone, at stage 3 a piece of each.
    kept = tensors / job.cluster.world_size if stage in (1, 2) else tensors
    step = kept * rates.STEP_SECONDS[stage]
    if stage < 3:
        return Engine(0.0, hooks, 0.0, step)
    layer, ends = _owners(job.model)
    layers, fetches = layer * rates.FETCH_SECONDS, (layer + ends) * rates.FETCH_SECONDS
    forward, backward = (times * gathered(job) * rates.GATHER_SECONDS for times in gathers(job))
    return Engine(fetches + forward, fetches + backward + hooks, layers if job.workload.checkpointing else 0.0, step)


def gathered(job: Job) -> int:
    """Count the tensors that stage 3 gathers for each pass: those too large to stay."""
    return _above(job.model, job.settings.param_persistence_threshold)


@lru_cache(maxsize=256)
def _above(model: Model, elements: int) -> int:
    params = model.parameters
    layer, ends = (
        sum(param.numel > elements for param in part) for part in (params.layer, (*params.before, *params.after))
    )
    return params.layers * layer + ends


@lru_cache(maxsize=256)
def _owners(model: Model) -> tuple[int, int]:
    """Count the modules with parameters of their own, in all layers and outside of them."""
    params = model.parameters
    return params.layers * modules(params.layer).owners, modules((*params.before, *params.after)).owners
