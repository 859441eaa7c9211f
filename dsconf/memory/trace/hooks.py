"""Hooks that tell a ledger where a module's forward and backward are, and checkpointing of its blocks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from dsconf.memory.trace.ledger import Ledger


class TracePlan(NamedTuple):
    """What to run, and where its parts begin."""

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    blocks: tuple[tuple[str, str], ...]
    """First and last module of each block, by name; the same where a block is one module."""
    checkpointed: tuple[str, ...]
    """Modules that keep their inputs only."""
    reentrant: bool
    dtype: torch.dtype
    """Type of the weights."""
    autocast: torch.dtype | None
    padded: bool
    """Whether the batch's padding mask hides something."""


def storage(tensor: torch.Tensor) -> int:
    """Return a number that is the storage's own as long as it lives."""
    return int(tensor.untyped_storage()._cdata)


def install(module: nn.Module, plan: TracePlan, ledger: Ledger) -> None:
    """Put hooks on every module, on the blocks' ends and on the parameters."""
    for i, (first, _) in enumerate(plan.blocks):
        module.get_submodule(first).register_forward_pre_hook(_starting(ledger, i), with_kwargs=True)
    for name, child in module.named_modules():
        child.register_forward_pre_hook(_visiting(ledger, name, enter=True))
        child.register_forward_hook(_visiting(ledger, name, enter=False))
    for i, (_, last) in enumerate(plan.blocks):
        module.get_submodule(last).register_forward_hook(_finishing(ledger, i))
    for name in plan.checkpointed:
        _checkpoint(module.get_submodule(name), plan.reentrant)
    for name, param in module.named_parameters():
        if param.requires_grad:
            param.register_post_accumulate_grad_hook(_arriving(ledger, name))


def _visiting(ledger: Ledger, name: str, *, enter: bool) -> Callable[..., None]:
    return lambda *_: ledger.visit(enter, name)


def _starting(ledger: Ledger, block: int) -> Callable[..., None]:
    def hook(_: nn.Module, args: Any, kwargs: Any) -> None:
        ledger.start(block)
        if block == 0 and not ledger.backward:
            _on_gradient((args, kwargs), ledger, -1)

    return hook


def _finishing(ledger: Ledger, block: int) -> Callable[..., None]:
    def hook(_: nn.Module, __: Any, output: Any) -> None:
        ledger.finish(block)
        if not ledger.backward:
            _on_gradient(output, ledger, block)

    return hook


def _on_gradient(values: Any, ledger: Ledger, part: int) -> None:
    """Tell the ledger that backward reaches ``part`` when one of ``values`` has its gradient."""
    for value in tree_leaves(values):
        if isinstance(value, torch.Tensor) and value.requires_grad and not value.is_leaf:
            value.register_hook(_reaching(ledger, part))


def _reaching(ledger: Ledger, part: int) -> Callable[[torch.Tensor | None], None]:
    def hook(gradient: torch.Tensor | None) -> None:
        if gradient is not None:  # an output that the loss does not depend on
            ledger.reach(part, storage(gradient))

    return hook


def _arriving(ledger: Ledger, name: str) -> Callable[[torch.Tensor], None]:
    def hook(param: torch.Tensor) -> None:
        if param.grad is not None:
            ledger.arrived(name, storage(param.grad))
        param.grad = None

    return hook


def _checkpoint(block: nn.Module, reentrant: bool) -> None:
    """Replace ``block``'s forward by one that keeps its inputs and runs again in backward."""
    forward = block.forward

    def kept_inputs(*args: Any, **kwargs: Any) -> Any:
        again = partial(forward, **kwargs)
        if reentrant:
            return checkpoint(again, *args, use_reentrant=True, preserve_rng_state=False)
        return checkpoint(again, *args, use_reentrant=False, preserve_rng_state=False, determinism_check="none")

    block.forward = kept_inputs
