"""The measured cases, read as the accuracy benchmark reads them."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

REPO = Path(__file__).parents[2]
MEASURED = REPO / "tests" / "measured"
MIB = 2**20


def load(name: str) -> ModuleType:
    """benchmarks/``name``.py, which is not installed with the package."""
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", REPO / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


accuracy = load("accuracy")
