"""Runs one forward and backward of a live module on fake tensors and books every storage in a ledger.

Fake tensors have sizes and no contents: nothing is computed, no memory is taken, no GPU is needed. The module is
copied with fake parameters, so that it stays as it is.
"""

from __future__ import annotations

import sys
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from dsconf.errors import InputError
from dsconf.memory.trace.cuda_kernels import CudaKernels, as_on_cuda, scratch
from dsconf.memory.trace.hooks import TracePlan, install, storage
from dsconf.memory.trace.ledger import Ledger, Trace


def run(plan: TracePlan) -> Trace:
    """Trace one forward and backward of ``plan.module``.

    Raises:
        InputError: the module cannot be copied, or fails on the batch.
    """
    ledger = Ledger(len(plan.blocks))
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with fake, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = _copied(plan)
        args, kwargs = tree_map(_faked(fake, plan), (plan.args, plan.kwargs))
        install(module, plan, ledger)
        watch = _StorageWatch(
            ledger, _storages([*module.parameters(), *module.buffers(), *tree_leaves((args, kwargs))])
        )
        with _explained(plan.module), _full_rows(plan.padded), watch, CudaKernels():
            loss = _forward(module, args, kwargs, plan, ledger)
            ledger.start_backward(storage(loss))
            _backward(loss)
    return ledger.trace()


@contextmanager
def _explained(module: nn.Module) -> Iterator[None]:
    """Return one line for whatever the person's own code raises; a trace cannot know which exceptions those are."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"
        if isinstance(error, (DataDependentOutputException, DynamicOutputShapeException)):
            reason = f"what it does depends on a tensor's values, which a trace has not ({reason})"
        raise InputError(f"module: {type(module).__name__} cannot be traced on this batch: {reason}") from error


@contextmanager
def _full_rows(padded: bool) -> Iterator[None]:
    """Fill rows: transformers looks into position ids and padding masks, and takes fake ones for packed and padded.

    That would add an attention mask, and with it another kernel, which training on rows without padding has not
    (transformers/masking_utils.py).
    """
    masking = sys.modules.get("transformers.masking_utils")
    replaced: dict[str, Any] = {}
    for name in ("find_packed_sequence_indices", "_ignore_causal_mask_sdpa", "_ignore_bidirectional_mask_sdpa"):
        looking = getattr(masking, name, None)
        if looking is not None and not (padded and name.startswith("_ignore")):
            replaced[name] = looking
            setattr(masking, name, _blind(looking) if name.startswith("_ignore") else lambda *_, **__: None)
    try:
        yield
    finally:
        for name, looking in replaced.items():
            setattr(masking, name, looking)


def _blind(ignores: Callable[..., bool]) -> Callable[..., bool]:
    """Say whether a mask can be left out, for a padding mask that hides nothing."""

    def ignored(padding_mask: Any = None, *args: Any, **kwargs: Any) -> bool:
        return ignores(None, *args, **kwargs)

    return ignored


def _copied(plan: TracePlan) -> nn.Module:
    """Return the module with fake parameters and buffers of the training type, in training mode."""
    memo: dict[int, Any] = {}
    for tensor in (*plan.module.parameters(), *plan.module.buffers()):
        dtype = plan.dtype if tensor.is_floating_point() else tensor.dtype
        fresh = torch.empty_strided(tensor.shape, tensor.stride(), dtype=dtype)
        is_param = isinstance(tensor, nn.Parameter)
        memo[id(tensor)] = nn.Parameter(fresh, requires_grad=tensor.requires_grad) if is_param else fresh
    with _explained(plan.module):
        module = deepcopy(plan.module, memo)
    config: Any = getattr(module, "config", None)
    if getattr(config, "use_cache", False):
        config.use_cache = False  # training reads no cache, and the outputs would hold all keys and values
    return module.train()


def _faked(fake: FakeTensorMode, plan: TracePlan) -> Callable[[Any], Any]:
    """Return a batch's tensors without contents, on the CPU; floating-point ones in the training type."""

    def one(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        dtype = plan.dtype if value.is_floating_point() else value.dtype
        with fake:
            return torch.empty(value.shape, dtype=dtype)

    return one


def _storages(values: list[Any]) -> set[int]:
    return {storage(value) for value in values if isinstance(value, torch.Tensor)}


class _StorageWatch(TorchDispatchMode):
    """Books the storages that operations make, and their end."""

    def __init__(self, ledger: Ledger, outside: set[int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._ledger = ledger
        self._outside = outside
        self._endings: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and book what it made."""
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.prim.device.default:
            return out
        out = as_on_cuda(func, out)
        for value in tree_leaves(out):
            if isinstance(value, torch.Tensor):
                self._book(value.untyped_storage())
        self._ledger.ran(scratch(func, args))
        return out

    def _book(self, made: torch.UntypedStorage) -> None:
        key = int(made._cdata)
        if key in self._outside or self._ledger.knows(key):
            return
        self._ledger.made(key, made.nbytes())

        def ended(_: Any) -> None:
            del self._endings[key]
            self._ledger.gone(key)

        self._endings[key] = weakref.ref(made, ended)


def _forward(module: nn.Module, args: Any, kwargs: Any, plan: TracePlan, ledger: Ledger) -> torch.Tensor:
    """Return the loss; the rest of the module's output is gone on return."""

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        ledger.save(storage(tensor))
        return tensor

    with ExitStack() as stack:
        stack.enter_context(torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor))
        if plan.autocast is not None:
            stack.enter_context(torch.autocast("cpu", dtype=plan.autocast))
        output = module(*args, **kwargs)
        loss = _loss(output)
    ledger.end_forward(_storages(tree_leaves(_plain(output))), storage(loss))
    return loss


def _backward(loss: torch.Tensor) -> None:
    """Do as ``torch.autograd.backward`` without its handling of torch-function modes, which switches them off
    meanwhile.

    Checkpointed modules run their forward again in backward, and it has to take the same kernels.
    """
    engine: Any = torch.autograd.Variable._execution_engine
    start = torch.ones_like(loss)
    engine.run_backward((loss,), (start,), False, False, (), allow_unreachable=True, accumulate_grad=True)


def _plain(output: Any) -> Any:
    """Model outputs of transformers are ordered dicts that tree functions need not know."""
    return dict(output) if hasattr(output, "items") else output


def _loss(output: Any) -> torch.Tensor:
    """Return the output's ``loss``; the output where it is one number; else the sum of its floating-point tensors."""
    loss = getattr(output, "loss", None)
    if loss is None and isinstance(output, dict):
        loss = output.get("loss")
    if loss is None:
        tensors = [t for t in tree_leaves(_plain(output)) if isinstance(t, torch.Tensor) and t.requires_grad]
        if not tensors:
            raise InputError("module: nothing in its output depends on a trained parameter, so there is no backward")
        loss = tensors[0] if len(tensors) == 1 and tensors[0].numel() == 1 else sum(t.sum() for t in tensors)
    if not isinstance(loss, torch.Tensor) or not loss.requires_grad:
        raise InputError("module: its loss does not depend on a trained parameter, so there is no backward")
    return loss.reshape(())
