"""What each optimizer keeps for every element it trains, and what its step makes for a moment.

DeepSpeed's own (FusedAdam, FusedLamb, FusedLion: ops/adam/fused_adam.py:143, ops/lamb/fused_lamb.py:155,
ops/lion/fused_lion.py:103) update in place. torch's take lists of tensors on a GPU (torch/optim/optimizer.py:
_default_to_fused_or_foreach), so that a temporary is as large as all parameters of the step together.
"""

from __future__ import annotations

from typing import NamedTuple

from dsconf.config.settings import Settings
from dsconf.model.spec import Model


class Kept(NamedTuple):
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
_KEPT = {
    "adam": Kept(2, 1),
    "adamw": Kept(2, 1),
    "lamb": Kept(2),
    "lion": Kept(1),
    "muon": Kept(1),
    "sgd": Kept(0, decayed=1, loop=0),
    "adagrad": Kept(1, 2, loop=1, at_start=True),
    "adadelta": Kept(2, 2, decayed=1),
    "adafactor": Kept(1, 1),
    "adamax": Kept(2, 1),
    "asgd": Kept(1, 1),
    "nadam": Kept(2, 1, decayed=1),
    "radam": Kept(2, 1),
    "rmsprop": Kept(1, 1, decayed=1),
    "rprop": Kept(2, 1),
    "none": Kept(0),
}
_OTHER = {"muadam": "adam", "muadamw": "adamw", "musgd": "sgd"}
"""mup's optimizers are torch's, with other learning rates."""
_FUSED = {name: Kept(one.states, loop=0, at_start=one.at_start) for name, one in _KEPT.items()}
"""DeepSpeed's own, which work in place."""


def kept(settings: Settings) -> Kept:
    """Tensors of ``settings.optimizer``; of one that is not known as of Adam."""
    name = _OTHER.get(settings.optimizer, settings.optimizer)
    fused = settings.optimizer_fused and settings.offload_optimizer == "none"
    table = _FUSED if fused else _KEPT
    found = table.get(name) or table["adam"]
    options = settings.optimizer_options
    more = 0
    if name in ("sgd", "rmsprop") and settings.momentum:
        more += 1
    if (name == "rmsprop" and "centered" in options) or (name in ("adam", "adamw") and "amsgrad" in options):
        more += 1
    if name == "lion" and settings.offload_optimizer != "none":
        more += 1  # DeepSpeedCPULion has a second moment that it does not use (ops/lion/cpu_lion.py:113-124)
    return found._replace(states=found.states + more) if more else found


def fused_adam(settings: Settings) -> bool:
    """Whether the optimizer is DeepSpeed's FusedAdam, which alone gets the fused 16-bit wrapper (engine.py:2555)."""
    fused = settings.optimizer in ("adam", "adamw") and settings.optimizer_fused
    return fused and "torch_adam" not in settings.optimizer_options


def temporaries(settings: Settings, gradient: int, largest: int | None = None) -> int:
    """Bytes that one step over gradients of ``gradient`` bytes makes and drops.

    ``largest`` are the bytes of the largest of them; a slice of ZeRO's flat buffer is a single tensor.
    """
    found = kept(settings)
    if not found.lists and not found.decayed:
        return 0
    largest = gradient if largest is None else largest
    if "for_loop" in settings.optimizer_options:
        return found.loop * largest
    lists = found.lists + (found.decayed if "weight_decay" in settings.optimizer_options else 0)
    # Rprop's loop over signs has a product and a mask of bools of one parameter beside its list (torch/optim/rprop.py).
    more = largest * 5 // 4 if settings.optimizer == "rprop" else 0
    return lists * gradient + more


def whole_states(settings: Settings, model: Model, total: int) -> int:
    """Elements of state where the optimizer sees the parameters themselves, with their shapes.

    Adafactor keeps a row and a column of a matrix instead of the matrix (torch/optim/_adafactor.py).
    """
    if settings.optimizer == "adafactor":
        params = model.parameters
        each = [(p, 1) for p in (*params.before, *params.after)] + [(p, params.layers) for p in params.layer]
        return sum(times * _factors(p.shape) for p, times in each if p.trainable)
    return kept(settings).states * total


def _factors(shape: tuple[int, ...]) -> int:
    if len(shape) < 2:
        return shape[0] if shape else 1
    matrices = 1
    for length in shape[:-2]:
        matrices *= length
    return matrices * (shape[-2] + shape[-1])
