"""What a rule looks at, and safe ways to look: a config may hold anything, since its types are for the schema to
check."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from dsconf.config.coerce import as_bool, as_dtype, as_int
from dsconf.config.names import RELEASES
from dsconf.errors import InputError


class Case(NamedTuple):
    """A config, who loads it, and what else is known about the run (None: nobody said)."""

    config: Mapping[str, Any]
    target: str
    gpus: int | None
    """The world size."""
    model_params: int | None = None
    """Parameters of the model, in elements."""
    resume_gpus: int | None = None
    """The world size that wrote the checkpoint to go on from."""
    release: str = RELEASES[-1]
    """The known release of DeepSpeed that runs."""
    version: str = RELEASES[-1]
    """The version that was named; ``release`` is the known one that stands for it."""

    @property
    def zero(self) -> Mapping[str, Any]:
        """Return the zero_optimization block, empty where there is none."""
        return block(self.config, "zero_optimization")

    @property
    def stage(self) -> int | None:
        """Return the ZeRO stage, 0 by default; None where it cannot be determined."""
        return stage(self.config)


def block(config: Mapping[str, Any], *path: str) -> Mapping[str, Any]:
    """Return the object at ``path``, or an empty one where there is none."""
    for key in path:
        inner = config.get(key)
        if not isinstance(inner, dict):
            return {}
        config = inner
    return config


def whole(value: Any) -> int | None:
    """Read ``value`` as DeepSpeed's pydantic blocks read a whole number, or return None."""
    try:
        return as_int("", value)
    except InputError:
        return None


def flag(value: Any) -> bool | None:
    """Read ``value`` as DeepSpeed's pydantic blocks read a boolean, or return None."""
    try:
        return as_bool("", value)
    except InputError:
        return None


def number(value: Any) -> float | None:
    """Return a JSON number as it is; None for anything else, booleans and strings included."""
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def stage(config: Mapping[str, Any]) -> int | None:
    """Read the ZeRO stage, 0 by default; None where it cannot be determined ("auto", or no stage at all)."""
    zero = config.get("zero_optimization", {})
    return int(zero) if isinstance(zero, bool) else whole(block(config, "zero_optimization").get("stage", 0))


def device(case: Case, name: str) -> object:
    """Return where the offload block ``name`` puts things: ``none`` by default."""
    offload = case.zero.get(name)
    if not isinstance(offload, dict):
        old = {"offload_optimizer": "cpu_offload", "offload_param": "cpu_offload_param"}[name]
        return "cpu" if flag(case.zero.get(old, False)) else "none"
    return offload.get("device", "none")


def offloads_optimizer(case: Case) -> bool:
    """Say whether the optimizer runs on the host (runtime/engine.py:1562-1565)."""
    return device(case, "offload_optimizer") in ("cpu", "nvme")


def bf16_name(config: Mapping[str, Any]) -> str:
    """Return the name of the bf16 block that counts (runtime/precision_config.py:34-38)."""
    return "bf16" if config.get("bf16") is not None or "bfloat16" not in config else "bfloat16"


def precision(case: Case) -> str | None:
    """Return the type of the model's parameters: ``bf16``, ``fp16`` or ``fp32``; None where "auto" or a mistake hides
    it."""
    on = {}
    for name, key in (("fp16", "fp16"), ("bf16", bf16_name(case.config))):
        value = block(case.config, key).get("enabled", False)
        if value == "auto" and case.target == "deepspeed":
            value = False
        on[name] = flag(value)
    if None in on.values():
        return None
    return "fp16" if on["fp16"] else "bf16" if on["bf16"] else "fp32"


def dtype(value: Any) -> str | None:
    """Read ``bf16``, ``fp16`` or ``fp32`` under any name that DeepSpeed knows, or return None."""
    try:
        return as_dtype("", value)
    except InputError:
        return None
