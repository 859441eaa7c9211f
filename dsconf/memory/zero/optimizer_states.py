"""What each optimizer keeps for every element it trains, and what its step makes for a moment.

DeepSpeed's own (FusedAdam, FusedLamb, FusedLion: ops/adam/fused_adam.py:143, ops/lamb/fused_lamb.py:155,
ops/lion/fused_lion.py:103) update in place. torch's take lists of tensors on a GPU (torch/optim/optimizer.py:
_default_to_fused_or_foreach), so that a temporary is as large as all parameters of the step together.
"""

from __future__ import annotations

from typing import NamedTuple

from dsconf.config.settings import Settings
from dsconf.memory.terms import Counting, Product
from dsconf.model.spec import Model


class OptimizerTensors(NamedTuple):
    """Counts of tensors, each with as many elements as the parameters."""

    states: int
    lists: int = 0
    """New lists of tensors alive at once in a step of torch's foreach loop."""
    decayed: int = 0
    """Lists beside them when the weight decay is added to the gradients."""
    loop: int = 2
    """New tensors as large as the largest parameter in torch's plain loop (``foreach: false``)."""
    at_start: bool = False
    """States are made by the constructor, not by the first step."""


# torch 2.13: the functions _multi_tensor_* and _single_tensor_* of each file in torch/optim.
_TENSORS = {
    "adam": OptimizerTensors(2, 1),
    "adamw": OptimizerTensors(2, 1),
    "lamb": OptimizerTensors(2),
    "lion": OptimizerTensors(1),
    "muon": OptimizerTensors(1),
    "sgd": OptimizerTensors(0, decayed=1, loop=0),
    "adagrad": OptimizerTensors(1, 2, loop=1, at_start=True),
    "adadelta": OptimizerTensors(2, 2, decayed=1),
    "adafactor": OptimizerTensors(1, 1),
    "adamax": OptimizerTensors(2, 1),
    "asgd": OptimizerTensors(1, 1),
    "nadam": OptimizerTensors(2, 1, decayed=1),
    "radam": OptimizerTensors(2, 1),
    "rmsprop": OptimizerTensors(1, 1, decayed=1),
    "rprop": OptimizerTensors(2, 1),
    "none": OptimizerTensors(0),
}
_OTHER = {"muadam": "adam", "muadamw": "adamw", "musgd": "sgd"}
"""mup's optimizers are torch's, with other learning rates."""
_FUSED = {name: OptimizerTensors(plain.states, loop=0, at_start=plain.at_start) for name, plain in _TENSORS.items()}
"""DeepSpeed's own, which work in place."""


def states_per_element(settings: Settings) -> OptimizerTensors:
    """Return the tensors of ``settings.optimizer``; of one that is not known as of Adam."""
    name = _OTHER.get(settings.optimizer, settings.optimizer)
    fused = settings.optimizer_fused and settings.offload_optimizer == "none"
    table = _FUSED if fused else _TENSORS
    tensors = table.get(name) or table["adam"]
    options = settings.optimizer_options
    more = 0
    if name in ("sgd", "rmsprop") and settings.momentum:
        more += 1
    if (name == "rmsprop" and "centered" in options) or (name in ("adam", "adamw") and "amsgrad" in options):
        more += 1
    if name == "lion" and settings.offload_optimizer != "none":
        more += 1  # DeepSpeedCPULion has a second moment that it does not use (ops/lion/cpu_lion.py:113-124)
    return tensors._replace(states=tensors.states + more) if more else tensors


def fused_adam(settings: Settings) -> bool:
    """Return whether the optimizer is DeepSpeed's FusedAdam, which alone gets the fused wrapper (engine.py:2555)."""
    fused = settings.optimizer in ("adam", "adamw") and settings.optimizer_fused
    return fused and "torch_adam" not in settings.optimizer_options


def optimizer_temporaries(
    count: Counting, settings: Settings, width: int, elements: int, largest: int | None = None, rounding: int = 0
) -> int:
    """Return what one step over gradients of ``elements`` elements of ``width`` bytes makes and drops.

    ``largest`` are the elements of the largest of them; a slice of ZeRO's flat buffer is a single tensor.
    ``rounding`` are bytes of a list of tensors beyond its elements.
    """
    tensors = states_per_element(settings)
    largest = elements if largest is None else largest
    if not tensors.lists and not tensors.decayed:
        return count.total()
    if "for_loop" in settings.optimizer_options:
        return count.product(tensors.loop * width, largest, "elements of the largest gradient, in torch's plain loop")
    lists = tensors.lists + (tensors.decayed if "weight_decay" in settings.optimizer_options else 0)
    made: list[Product] = [
        (lists * width, elements, "elements of the gradients, in lists of torch's foreach loop"),
        (1, lists * rounding, "of rounding each tensor to the allocator's blocks"),
    ]
    if settings.optimizer == "rprop":
        # Its loop over signs has a product and a mask of bools of one parameter beside its list (torch/optim/rprop.py).
        made.append((width + 1, largest, "elements of the largest gradient: a product and a mask of bools"))
    return count.total(*made)


def whole_states(settings: Settings, model: Model, elements: int) -> int:
    """Return the elements of state where the optimizer sees the parameters themselves, with their shapes.

    Adafactor keeps a row and a column of a matrix instead of the matrix (torch/optim/_adafactor.py).
    """
    if settings.optimizer == "adafactor":
        params = model.parameters
        each = [(p, 1) for p in (*params.before, *params.after)] + [(p, params.layers) for p in params.layer]
        return sum(times * _factors(p.shape) for p, times in each if p.trainable)
    return states_per_element(settings).states * elements


def _factors(shape: tuple[int, ...]) -> int:
    if len(shape) < 2:
        return shape[0] if shape else 1
    matrices = 1
    for length in shape[:-2]:
        matrices *= length
    return matrices * (shape[-2] + shape[-1])
