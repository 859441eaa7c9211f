"""JSON Schema of DeepSpeed's pydantic models, as their fields and as pydantic's lax mode read a config."""

from __future__ import annotations

import types
from enum import Enum
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from dsconf.config.coerce import FALSE_TEXT, TRUE_TEXT, WHOLE_TEXT
from dsconf.config.rules.auto import TRAINER
from tools.schema.old import OLD_WORDS
from tools.schema.words import SAME, WORDS

NUMBER_TEXT = r"^\s*[+-]?([0-9]+(_[0-9]+)*(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?\s*$"


def _either_case(word: str) -> str:
    return "".join(f"[{c}{c.upper()}]" if c.isalpha() else c for c in word)


FLAG_TEXT = "^(" + "|".join(_either_case(word) for word in (*TRUE_TEXT, *FALSE_TEXT)) + ")$"
SCALARS: dict[str, dict[str, Any]] = {
    "flag": {
        "title": "true or false",
        "type": ["boolean", "string", "integer"],
        "pattern": FLAG_TEXT,
        "minimum": 0,
        "maximum": 1,
    },
    "whole": {"title": "a whole number", "type": ["integer", "string"], "pattern": WHOLE_TEXT},
    "number": {"title": "a number", "type": ["number", "string"], "pattern": NUMBER_TEXT},
}


def variants() -> dict[str, dict[str, Any]]:
    """Return the scalars as DeepSpeed's pydantic blocks coerce them, alone, or null, or "auto"."""
    schemas = {}
    for name, scalar in SCALARS.items():
        schemas[name] = scalar
        schemas[f"{name}_or_null"] = {**scalar, "type": [*scalar["type"], "null"]}
        schemas[f"{name}_or_auto"] = {**scalar, "pattern": f"^auto$|{scalar['pattern']}"}
    return schemas


def _without_null(annotation: Any) -> tuple[Any, bool]:
    if get_origin(annotation) in (Union, types.UnionType):
        rest = [arg for arg in get_args(annotation) if arg is not type(None)]
        null = len(rest) < len(get_args(annotation))
        return (rest[0] if len(rest) == 1 else rest), null
    return annotation, False


def _scalar(name: str, null: bool, auto: bool) -> dict[str, Any]:
    return {"$ref": f"#/$defs/{name}{'_or_null' if null else '_or_auto' if auto else ''}"}


def _text(null: bool) -> dict[str, Any]:
    return {"type": ["string", "null"] if null else "string"}


def _enum(annotation: type[Enum], auto: bool) -> dict[str, Any]:
    values = list(dict.fromkeys(member.value for member in annotation))
    texts = [str(value) for value in values if not isinstance(value, str)]
    return {"enum": [*values, *texts, *(["auto"] if auto else [])]}


def _array(annotation: Any, null: bool) -> dict[str, Any]:
    inner = [arg for arg in get_args(annotation) if arg is not ...]
    items = {"items": _type_of(inner[0], False)} if inner else {}
    return {"type": ["array", "null"] if null else "array", **items}


def _type_of(annotation: Any, auto: bool) -> dict[str, Any]:
    """Return the JSON Schema of what pydantic accepts for ``annotation``."""
    kind, null = _without_null(annotation)
    scalars = {bool: "flag", int: "whole", float: "number"}
    if isinstance(kind, list) and set(kind) == {str, int}:
        return _scalar("whole", False, True)
    if kind in scalars:
        return _scalar(scalars[kind], null, auto)
    if kind in (str, Path):
        return _text(null)
    if get_origin(kind) is Literal:
        return {"enum": list(get_args(kind))}
    if isinstance(kind, type) and issubclass(kind, Enum):
        return _enum(kind, auto)
    if kind in (list, tuple) or get_origin(kind) in (list, tuple):
        return _array(kind, null)
    if kind is dict or get_origin(kind) is dict:
        return {"type": ["object", "null"] if null else "object"}
    if kind is object:
        return {}
    raise TypeError(f"no JSON Schema for {annotation}")


def _range(field: Any) -> dict[str, Any]:
    words = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}
    return {words[k]: getattr(m, k) for m in field.metadata for k in words if getattr(m, k, None) is not None}


def _default(field: Any) -> Any:
    value = field.get_default(call_default_factory=True)
    value = value.value if isinstance(value, Enum) else value
    return value if isinstance(value, (bool, int, float, str, list)) or value is None else {}


def _property(field: Any, blocks: dict[str, str], auto: bool) -> dict[str, Any]:
    """Return the schema of one field of a model; ``blocks`` names the $defs entry of each model's class."""
    block = blocks.get(getattr(_without_null(field.annotation)[0], "__name__", ""))
    fragment = {"$ref": f"#/$defs/{block}"} if block else _type_of(field.annotation, auto) | _range(field)
    fragment["default"] = _default(field)
    if (field.json_schema_extra or {}).get("deprecated"):
        fragment["deprecated"] = True
    return fragment


def model_block(block: str, model: Any, blocks: dict[str, str], path: str, newest: bool) -> dict[str, Any]:
    """Return the object schema of pydantic ``model``; unknown keys are refused as DeepSpeed refuses them.

    Raises:
        KeyError: a field without words; or, in the newest release, words without a field.
    """
    words = WORDS[block] if newest else {**WORDS[block], **OLD_WORDS.get(block, {})}
    fields = {name: field for name, field in model.model_fields.items() if name not in _NO_JSON}
    unsaid, gone = sorted(set(fields) - set(words)), sorted(set(words) - set(fields))
    if unsaid or (newest and gone):
        raise KeyError(f"{block}: say in tools/schema/words.py what {unsaid} do; DeepSpeed has no {gone}")
    properties: dict[str, Any] = {}
    for name, field in fields.items():
        for key in dict.fromkeys((field.alias or name, name)):
            same = SAME.format(name) if key == name and f"stage3_{name}" in properties else None
            description = {"description": same or words[name]}
            properties[key] = _property(field, blocks, f"{path}{key}" in TRAINER) | description
    return {"type": "object", "properties": properties, "additionalProperties": False}


_NO_JSON = ("dtype",)
"""A torch.dtype object, which no JSON value is."""
_ZERO = "zero_optimization"
_MODELS = {
    _ZERO: ("runtime.zero.config", "DeepSpeedZeroConfig", (_ZERO,)),
    "offload_param": ("runtime.zero.offload_config", "DeepSpeedZeroOffloadParamConfig", (_ZERO, "offload_param")),
    "offload_optimizer": (
        *("runtime.zero.offload_config", "DeepSpeedZeroOffloadOptimizerConfig"),
        (_ZERO, "offload_optimizer"),
    ),
    "zenflow": ("runtime.zenflow.zenflow_config", "ZenFlowConfig", (_ZERO, "zenflow")),
    "leaf_module": ("runtime.zero.leaf_module_config", "DeepSpeedZeroLeafModuleConfig", (_ZERO, "leaf_module")),
    "bf16": ("runtime.precision_config", "DeepSpeedBF16Config", ("bf16",)),
    "fp16": ("runtime.precision_config", "DeepSpeedFP16Config", ("fp16",)),
    "tensor_parallel": ("runtime.tensor_parallel.config", "TPTrainingConfig", ("tensor_parallel",)),
    "tp": ("runtime.tensor_parallel.config", "TPConfig", ("tensor_parallel", "tp")),
    "compile": ("compile.config", "CompileConfig", ("compile",)),
    "comms_logger": ("comm.config", "CommsLoggerConfig", ("comms_logger",)),
    "tensorboard": ("monitor.config", "TensorBoardConfig", ("tensorboard",)),
    "csv_monitor": ("monitor.config", "CSVConfig", ("csv_monitor",)),
    "wandb": ("monitor.config", "WandbConfig", ("wandb",)),
    "comet": ("monitor.config", "CometConfig", ("comet",)),
    "hybrid_engine": ("runtime.config", "HybridEngineConfig", ("hybrid_engine",)),
    "timers_throughput": ("utils.config", "DeepSpeedThroughputTimerConfig", ("timers", "throughput")),
    "weight_quantization": ("inference.config", "WeightQuantConfig", ("weight_quantization",)),
}


def models() -> dict[str, tuple[Any, tuple[str, ...]]]:
    """Return name in $defs: (pydantic model, path in a config), for those that the installed DeepSpeed has."""
    present = {}
    for block, (module, name, path) in _MODELS.items():
        try:
            present[block] = (getattr(import_module(f"deepspeed.{module}"), name), path)
        except (ImportError, AttributeError):
            continue
    return present
