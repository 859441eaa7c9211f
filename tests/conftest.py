"""What the tests of every part share."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from runpy import run_path
from typing import Any

import pytest
from hypothesis import settings

# benchmarks/ and tools/ are not installed; at the end of the path, so that the installed dsconf stays the one tested.
sys.path.append(str(Path(__file__).parents[1]))

# Nothing may ask a hub for a model, and a slow machine is no reason for a property to fail.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
settings.register_profile("dsconf", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("dsconf")

COMPILER = Path(__file__).parents[1] / "tools" / "compile_kernels.py"
KERNELS: Path = run_path(str(COMPILER))["FOLDER"]
OWN_KERNELS = os.access(KERNELS.parent, os.W_OK)
if OWN_KERNELS:  # those that another environment compiles at the same time would be waited for
    os.environ["TORCH_EXTENSIONS_DIR"] = str(KERNELS)


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip the tests marked ``cuda`` where there is no CUDA device; torch is imported only if there are any.

    Where tests run side by side, those that start training processes follow one another, since each takes every core.
    They begin first: nothing else takes as long as all of them.
    """
    launching = [item for item in items if item.get_closest_marker("launch")]
    for item in launching:
        item.add_marker(pytest.mark.xdist_group("launch"))
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: item.get_closest_marker("launch") is None)
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


@pytest.hookimpl(tryfirst=True)  # before xdist hears that this worker is ready, which the others wait for
def pytest_collection_finish(session: pytest.Session) -> None:
    """Compile what the tests that train will load, once for this environment and before any test's limit begins."""
    first = os.environ.get("PYTEST_XDIST_WORKER", "gw0") == "gw0"
    wanted = any(item.get_closest_marker("launch") for item in session.items)
    if OWN_KERNELS and first and wanted and not session.config.option.collectonly:
        subprocess.run([sys.executable, COMPILER], check=False)  # a test that lacks one says so


def pytest_runtest_setup() -> None:
    """Compute on one core: torch's threads spin for the others, and where those are busy take many times as long."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With ``--dist loadgroup`` one worker runs all of a file that is in no group: it makes its fixtures once."""
    from xdist.scheduler import LoadGroupScheduling

    class ByFile(LoadGroupScheduling):
        def _split_scope(self, nodeid: str) -> str:
            group: str = super()._split_scope(nodeid)
            return nodeid.partition("::")[0] if group == nodeid else group

    if config.getoption("dist") != "loadgroup":
        return None
    config.option.loadscopereorder = False  # it would put what has most tests first
    return ByFile(config, log)
