"""Counts the bytes of live tensors on the CPU, which has no allocator counter."""

from __future__ import annotations

import weakref
from functools import partial
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class LiveTensors(TorchDispatchMode):
    """Sums the storages of all CPU tensors that operations under this mode made and that are still alive.

    A storage shared by several views counts once. Workspaces inside a kernel (matrix products, gloo) are not seen.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = 0
        self.peak = 0
        self._sizes: dict[int, int] = {}
        self._watches: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_iter(result):
            if isinstance(value, torch.Tensor):
                self._see(value)
        return result

    def reset_peak(self) -> None:
        """Start a new measurement from what is alive now."""
        self.peak = self.now

    def _see(self, tensor: torch.Tensor) -> None:
        if tensor.device.type != "cpu" or tensor.layout != torch.strided:
            return
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self._sizes:
            self._watches[key] = weakref.ref(storage, partial(self._forget, key))
        self.now += size - self._sizes.get(key, 0)
        self._sizes[key] = size
        self.peak = max(self.peak, self.now)

    def _forget(self, key: int, _: object) -> None:
        self.now -= self._sizes.pop(key, 0)
        self._watches.pop(key, None)
