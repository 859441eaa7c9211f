"""DeepSpeed config generator and memory estimator.

``estimate``, ``recommend``, ``validate`` and ``check`` take the same words as the command line's options. ``sweep``
asks ``recommend`` on several numbers of GPUs; ``plan`` and ``Planner`` answer many jobs in a row. What a person can get
wrong is an ``InputError``, which is a ``DsconfError``.
They are loaded on first use, so that ``import dsconf`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dsconf.api import estimate, validate
    from dsconf.errors import DsconfError, InputError
    from dsconf.live.check import check
    from dsconf.search.plan import PlannedJob, Planner, plan
    from dsconf.search.recommend import recommend
    from dsconf.search.sweep import sweep

__version__ = "0.1.0"
__all__ = [
    "DsconfError",
    "InputError",
    "PlannedJob",
    "Planner",
    "check",
    "estimate",
    "plan",
    "recommend",
    "sweep",
    "validate",
]

_HOMES = {
    "DsconfError": "dsconf.errors",
    "InputError": "dsconf.errors",
    "PlannedJob": "dsconf.search.plan",
    "Planner": "dsconf.search.plan",
    "check": "dsconf.live.check",
    "estimate": "dsconf.api",
    "plan": "dsconf.search.plan",
    "recommend": "dsconf.search.recommend",
    "sweep": "dsconf.search.sweep",
    "validate": "dsconf.api",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'dsconf' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
