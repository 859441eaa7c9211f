"""What the tests of every part share."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from hypothesis import settings

# benchmarks/ and tools/ are not installed; at the end of the path, so that the installed dsconf stays the one tested.
sys.path.append(str(Path(__file__).parents[1]))

# Nothing may ask a hub for a model, and a slow machine is no reason for a property to fail.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
settings.register_profile("dsconf", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("dsconf")


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests marked ``cuda`` where there is no CUDA device; torch is imported only if there are any.

    Where tests run side by side, those that start training processes follow one another: each takes every core, and
    they share the folder of DeepSpeed's compiled kernels.
    """
    for item in items:
        if item.get_closest_marker("launch"):
            item.add_marker(pytest.mark.xdist_group("launch"))
    marked = [item for item in items if item.get_closest_marker("cuda")]
    if not marked or _cuda_devices():
        return
    for item in marked:
        item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def _cuda_devices() -> int:
    try:
        from torch.cuda import device_count
    except ImportError:
        return 0
    return device_count()
