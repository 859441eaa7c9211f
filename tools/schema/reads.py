"""Finds what DeepSpeed's own parser looks up in a config, and its default for it, by watching it read."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterator, KeysView
from typing import Any

Path = tuple[str, ...]
Reads = dict[Path, dict[str, Any]]
"""For each block, the keys looked up in it and the default given with them."""


class Unset:
    """The default of a look-up that gave none."""


UNSET = Unset()

_METRICS = {"m": {}}
_RANDOM_LTD = {"enabled": True, "random_ltd_schedule": {}}
_SAMPLING = {"enabled": True, "curriculum_learning": {"enabled": True, "curriculum_metrics": _METRICS}}
_BATCHING = {"enabled": True, "dynamic_batching": {"enabled": True, "max_tokens": 1}}
_TECHNIQUES = ("weight_quantization", "activation_quantization", "sparse_pruning")
_TECHNIQUES += ("row_pruning", "head_pruning", "channel_pruning")
_SWITCHED = ("amp", "curriculum_learning", "expert_parallel", "nebula", "progressive_layer_drop", "torch_autocast")
_SWITCHED += ("elasticity", "fp16", "bf16", "flops_profiler", "autotuning", "quantize_training", "eigenvalue")
_BLOCKS = ("activation_checkpointing", "aio", "checkpoint", "data_efficiency", "data_types", "datastates_ckpt")
_BLOCKS += ("optimizer", "pipeline", "scheduler", "timers", "fp16", "bf16")
_SPARSE_MODES = ("dense", "fixed", "variable", "bigbird", "bslongformer")
_ELASTIC = {"enabled": True, "max_train_batch_size": 10, "micro_batch_sizes": [1], "version": 0.1}
_NAMED = {"type": "Adam", "params": {}}


def probes() -> Iterator[dict[str, Any]]:
    """Yield configs that between them lead the parser into every block; some end in an error of DeepSpeed's, late
    enough."""
    yield {}
    yield from ({name: {}} for name in _BLOCKS)
    yield from ({name: {"enabled": True}} for name in _SWITCHED)
    yield {"zero_optimization": True}
    yield {"optimizer": _NAMED, "scheduler": _NAMED}
    yield {"checkpoint": {"parallel_write": {}, "writer": {}}}
    yield {"autotuning": {"enabled": True, "model_info": {}}}
    yield {
        "data_efficiency": {"data_sampling": _SAMPLING, "data_routing": {"enabled": True, "random_ltd": _RANDOM_LTD}}
    }
    yield {"data_efficiency": {"data_sampling": _BATCHING}}
    yield {"elasticity": _ELASTIC}
    yield from ({"sparse_attention": {"mode": mode}} for mode in _SPARSE_MODES)
    yield {"compression_training": {"layer_reduction": {"enabled": True}}}
    yield from ({"compression_training": {name: {"shared_parameters": {"enabled": True}}}} for name in _TECHNIQUES)
    # 0.16 looks for a second key only where the first is there.
    yield {"fp16": {"enabled": True, "hysteresis": 2}}


class Watched(dict[str, Any]):
    """A dict that notes in ``reads`` what is looked up in it and in the dicts it holds."""

    def __init__(self, values: dict[str, Any], reads: Reads, path: Path = ()) -> None:
        inner = {
            key: Watched(value, reads, (*path, key)) if isinstance(value, dict) else value
            for key, value in values.items()
        }
        super().__init__(inner)
        self._reads, self._path = reads, path

    def _note(self, key: Any, default: Any = UNSET) -> None:
        noted = self._reads.setdefault(self._path, {})
        if noted.get(key, UNSET) is UNSET:
            noted[key] = default

    def get(self, key: Any, default: Any = None) -> Any:
        self._note(key, default)
        return super().get(key, default)

    def __getitem__(self, key: Any) -> Any:
        self._note(key)
        return super().__getitem__(key)

    def __contains__(self, key: object) -> bool:
        self._note(key)
        return super().__contains__(key)

    def pop(self, key: Any, *default: Any) -> Any:
        self._note(key)
        return super().pop(key, *default)

    def keys(self) -> Any:
        return _WatchedKeys(self)

    def __copy__(self) -> Watched:
        return Watched(dict(self.items()), self._reads, self._path)


class _WatchedKeys(KeysView[str]):
    """Notes ``key in config.keys()``, which is a look-up too."""

    def __init__(self, owner: Watched) -> None:
        super().__init__(owner)
        self._owner = owner

    def __contains__(self, key: object) -> bool:
        return key in self._owner

    def __iter__(self) -> Iterator[str]:
        return dict.__iter__(self._owner)


def watched_reads(blocks: set[Path]) -> Reads:
    """Record every look-up of the installed DeepSpeed's parser in ``blocks``, over all probes."""
    from deepspeed.runtime.config import DeepSpeedConfig

    reads: Reads = defaultdict(dict)
    for probe in probes():
        with contextlib.suppress(Exception):
            DeepSpeedConfig(Watched({"train_batch_size": 1, **probe}, reads))
    return {path: noted for path, noted in reads.items() if path in blocks}


def takes(config: dict[str, Any]) -> bool:
    """Say whether the installed DeepSpeed parses ``config``."""
    from deepspeed.runtime.config import DeepSpeedConfig

    try:
        DeepSpeedConfig({"train_batch_size": 1, **config})
    except Exception:
        return False
    return True


def signature_reads() -> Reads:
    """Return the arguments, with their defaults, that DeepSpeed's Adam and its schedulers take from ``params``, and
    what a pipeline block is filled up with."""
    from inspect import signature

    from deepspeed.ops.adam import FusedAdam
    from deepspeed.runtime import lr_schedules
    from deepspeed.runtime.config import get_pipeline_config

    schedulers = [getattr(lr_schedules, name) for name in lr_schedules.VALID_LR_SCHEDULES]
    reads: Reads = {("pipeline",): get_pipeline_config({})}
    for block, classes in (("optimizer", [FusedAdam]), ("scheduler", schedulers)):
        noted: dict[str, Any] = {}
        for kind in classes:
            for name, parameter in signature(kind).parameters.items():
                default = UNSET if parameter.default is parameter.empty else parameter.default
                noted.setdefault(name, default)
        reads[block, "params"] = {
            name: default for name, default in noted.items() if name not in ("params", "optimizer")
        }
    return reads
