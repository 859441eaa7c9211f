"""Writes schemas/ds_config-<version>.schema.json from the installed DeepSpeed and the two tables beside this file.

    DS_ACCELERATOR=cpu python tools/generate_ds_config_schema.py [--check]

``--check`` writes nothing and fails when the file is not what would be written.
"""

from __future__ import annotations

import json
import re
import sys
import types
from enum import Enum
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

from ds_config_blocks import BLOCKS, TOP, Key  # noqa: E402
from ds_config_words import BLOCK_WORDS, EXPERT_PARALLEL, SAME, WORDS  # noqa: E402

from dsconf.config.auto import TRAINER  # noqa: E402
from dsconf.config.coerce import FALSE_TEXT, TRUE_TEXT, WHOLE_TEXT  # noqa: E402

NUMBER_TEXT = r"^\s*[+-]?([0-9]+(_[0-9]+)*\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?\s*$"


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


def _variants() -> dict[str, dict[str, Any]]:
    """The scalars as DeepSpeed's pydantic blocks coerce them, alone, or null, or "auto"."""
    found = {}
    for name, scalar in SCALARS.items():
        found[name] = scalar
        found[f"{name}_or_null"] = {**scalar, "type": [*scalar["type"], "null"]}
        found[f"{name}_or_auto"] = {**scalar, "pattern": f"^auto$|{scalar['pattern']}"}
    return found


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
    """The JSON Schema of what pydantic accepts for ``annotation``."""
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
    """The schema of one field of a model; ``blocks`` names the $defs entry of each model's class."""
    kind, null = _without_null(field.annotation)
    block = blocks.get(getattr(kind, "__name__", ""))
    fragment = {"$ref": f"#/$defs/{block}"} if block else _type_of(field.annotation, auto) | _range(field)
    if null or not block:
        fragment["default"] = _default(field)
    if (field.json_schema_extra or {}).get("deprecated"):
        fragment["deprecated"] = True
    return fragment


def model_block(block: str, model: Any, blocks: dict[str, str], path: str) -> dict[str, Any]:
    """The object schema of pydantic ``model``; unknown keys are refused as DeepSpeed refuses them."""
    properties: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        if name == "dtype":
            continue  # a torch.dtype object, which no JSON value is
        for key in dict.fromkeys((field.alias or name, name)):
            same = SAME.format(name) if key == name and f"stage3_{name}" in properties else None
            description = {"description": same or WORDS[block][name]}
            properties[key] = _property(field, blocks, f"{path}{key}" in TRAINER) | description
    gone = set(WORDS[block]) - set(model.model_fields)
    if gone:
        raise KeyError(f"{block}: DeepSpeed has no {sorted(gone)}")
    return {"type": "object", "properties": properties, "additionalProperties": False}


def plain_property(key: Key) -> dict[str, Any]:
    """One key of a block that DeepSpeed reads without pydantic."""
    kind, default, description = key
    fragment = dict(kind)
    if "$ref" not in fragment:
        fragment["default"] = default
    return fragment | {"description": description}


def plain_block(block: str) -> dict[str, Any]:
    """A block whose unknown keys DeepSpeed ignores; one that begins with an underscore is a comment."""
    return {
        "type": "object",
        "properties": {name: plain_property(key) for name, key in BLOCKS[block].items()},
        "patternProperties": {"^_": {}},
        "additionalProperties": False,
    }


def _models() -> dict[str, tuple[Any, str]]:
    """Name in $defs: (pydantic model, path of its keys in a config)."""
    from deepspeed.comm.config import CommsLoggerConfig
    from deepspeed.compile.config import CompileConfig
    from deepspeed.inference.config import WeightQuantConfig
    from deepspeed.monitor.config import CometConfig, CSVConfig, TensorBoardConfig, WandbConfig
    from deepspeed.runtime.config import HybridEngineConfig
    from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
    from deepspeed.runtime.tensor_parallel.config import TPConfig, TPTrainingConfig
    from deepspeed.runtime.zenflow.zenflow_config import ZenFlowConfig
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from deepspeed.runtime.zero.leaf_module_config import DeepSpeedZeroLeafModuleConfig
    from deepspeed.runtime.zero.offload_config import (
        DeepSpeedZeroOffloadOptimizerConfig,
        DeepSpeedZeroOffloadParamConfig,
    )
    from deepspeed.utils.config import DeepSpeedThroughputTimerConfig

    zero = "zero_optimization."
    return {
        "zero_optimization": (DeepSpeedZeroConfig, zero),
        "offload_param": (DeepSpeedZeroOffloadParamConfig, f"{zero}offload_param."),
        "offload_optimizer": (DeepSpeedZeroOffloadOptimizerConfig, f"{zero}offload_optimizer."),
        "zenflow": (ZenFlowConfig, f"{zero}zenflow."),
        "leaf_module": (DeepSpeedZeroLeafModuleConfig, f"{zero}leaf_module."),
        "bf16": (DeepSpeedBF16Config, "bf16."),
        "fp16": (DeepSpeedFP16Config, "fp16."),
        "tensor_parallel": (TPTrainingConfig, "tensor_parallel."),
        "tp": (TPConfig, "tensor_parallel.tp."),
        "compile": (CompileConfig, "compile."),
        "comms_logger": (CommsLoggerConfig, "comms_logger."),
        "tensorboard": (TensorBoardConfig, "tensorboard."),
        "csv_monitor": (CSVConfig, "csv_monitor."),
        "wandb": (WandbConfig, "wandb."),
        "comet": (CometConfig, "comet."),
        "hybrid_engine": (HybridEngineConfig, "hybrid_engine."),
        "timers_throughput": (DeepSpeedThroughputTimerConfig, "timers.throughput."),
        "weight_quantization": (WeightQuantConfig, "weight_quantization."),
    }


def _expert_parallel() -> dict[str, Any]:
    """AutoEP's settings: names and defaults of its dataclass, whose values are checked much later."""
    from dataclasses import fields

    from deepspeed.module_inject.auto_ep_presets.base import AutoEPConfig

    defaults = {f.name: f.default for f in fields(AutoEPConfig) if f.init}
    properties = {
        name: {"default": value if isinstance(value, (bool, int, float, str)) else None}
        | {"description": EXPERT_PARALLEL[name]}
        for name, value in defaults.items()
    }
    return {
        "type": "object",
        "properties": properties,
        "patternProperties": {"^_": {}},
        "additionalProperties": False,
    }


def _nullable(defs: dict[str, Any]) -> None:
    """Where DeepSpeed takes null, or the old boolean, in a block's place."""
    for block in ("offload_param", "offload_optimizer", "zenflow", "bf16", "aio", "leaf_module"):
        defs[block]["type"] = ["object", "null"]
    defs["zero_optimization"]["type"] = ["object", "boolean"]
    leaf = defs["leaf_module"]["properties"]
    for key in leaf:
        leaf[key]["type"] = ["array", "string"]


def _special(defs: dict[str, Any]) -> None:
    """What DeepSpeed checks in validators that the fields do not show."""
    fp16 = defs["fp16"]["properties"]
    fp16["loss_scale"]["minimum"] = 0
    zenflow = defs["zenflow"]["properties"]
    zenflow["select_strategy"] = {"enum": ["auto", "step", "epoch"]} | {
        k: v for k, v in zenflow["select_strategy"].items() if k != "type"
    }
    zenflow["update_interval"]["minimum"] = 1
    defs["offload_param"]["properties"]["nvme_path"]["type"] = ["string", "null"]


def build() -> dict[str, Any]:
    """The whole schema."""
    import deepspeed

    models = _models()
    blocks = {model.__name__: name for name, (model, _) in models.items()}
    defs = _variants()
    defs |= {name: model_block(name, model, blocks, path) for name, (model, path) in models.items()}
    defs |= {name: plain_block(name) for name in BLOCKS}
    defs["expert_parallel"] = _expert_parallel()
    _nullable(defs)
    _special(defs)
    inner = {name for name in defs if f"#/$defs/{name}'" in str(defs)}
    defs = {name: part for name, part in defs.items() if name not in _variants() or name in inner}
    top = [name for name in defs if name not in inner]
    properties = {name: plain_property(key) for name, key in TOP.items()}
    properties |= {name: {"$ref": f"#/$defs/{name}", "description": BLOCK_WORDS[name]} for name in top}
    properties["bfloat16"] = {"$ref": "#/$defs/bf16", "deprecated": True, "description": "Old name of bf16."}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"https://dsconf.invalid/schemas/ds_config-{deepspeed.__version__}.schema.json",
        "title": f"ds_config of DeepSpeed {deepspeed.__version__}",
        "type": "object",
        "properties": properties,
        "patternProperties": {"^_": {}},
        "additionalProperties": False,
        "$defs": defs,
    }


def _compact(text: str) -> str:
    """Lists and objects that hold no other one on one line, if it is short enough to read."""

    def join(match: re.Match[str]) -> str:
        line = re.sub(r"\s*\n\s*", " ", match[0])
        line = re.sub(r"([\[{]) ", r"\1", re.sub(r" ([\]}])", r"\1", line))
        return line if len(line) < 150 else match[0]

    for pattern in (r"\[[^\[\]{}]*\]", r"\{[^{}]*\}"):
        text = re.sub(pattern, join, text)
    return text


def main() -> int:
    """Writes the schema, or compares it with ``--check``."""
    schema = build()
    version = schema["title"].rpartition(" ")[2]
    target = ROOT / "schemas" / f"ds_config-{version}.schema.json"
    text = _compact(json.dumps(schema, indent=2, ensure_ascii=False)) + "\n"
    if "--check" in sys.argv[1:]:
        same = target.exists() and target.read_text(encoding="utf-8") == text
        print(f"{target.name} is {'up to date' if same else 'stale: run this without --check'}")
        return 0 if same else 1
    target.write_text(text, encoding="utf-8")
    print(f"wrote {target.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
