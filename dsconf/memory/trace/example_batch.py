"""The batch that a live module is traced on: given as an example, or token ids."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dsconf.errors import InputError
from dsconf.memory.autograd.figures import Shape

if TYPE_CHECKING:
    from torch import nn

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and named arguments of a forward."""


def arguments(batch: object) -> Arguments:
    """Return the arguments that ``batch`` is: a mapping of named ones, a tuple of positional ones, or one tensor.

    Raises:
        InputError: no tensor among them.
    """
    import torch

    if isinstance(batch, Mapping):
        found: Arguments = ((), {str(key): value for key, value in batch.items()})
    else:
        found = (tuple(batch) if isinstance(batch, (tuple, list)) else (batch,), {})
    if not any(isinstance(value, torch.Tensor) and value.dim() for value in (*found[0], *found[1].values())):
        raise InputError("batch: holds no tensor; give forward's arguments as a mapping, a tuple or one tensor")
    return found


def sizes(example: Arguments) -> tuple[int, int]:
    """Micro-batch and sequence length: the first tensor's first two sizes; without a sequence its length is 1."""
    import torch

    values = (*example[0], *example[1].values())
    first = next(value for value in values if isinstance(value, torch.Tensor) and value.dim())
    steps = first.dim() > 1 and (first.dim() == 3 or not first.is_floating_point())
    return first.size(0), first.size(1) if steps else 1


def hides(mask: Any) -> bool:
    """Say whether a padding mask with values in it hides something."""
    import torch

    return isinstance(mask, torch.Tensor) and not mask.is_meta and not bool(mask.all())


def token_ids(module: nn.Module, shape: Shape) -> Arguments:
    """Return ``input_ids`` of ``shape``'s size, and ``labels`` where the module's forward knows them; without
    values."""
    import inspect

    import torch

    ids = torch.empty((shape.batch, shape.seq), dtype=torch.int64, device="meta")
    known = inspect.signature(module.forward).parameters
    return (), {"input_ids": ids, "labels": ids} if "labels" in known else {"input_ids": ids}
