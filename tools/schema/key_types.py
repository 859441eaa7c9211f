"""The types of hand-read keys, as JSON Schema fragments, and how one key is described."""

from __future__ import annotations

from typing import Any, NamedTuple

from tools.schema.reads import UNSET


class Key(NamedTuple):
    """One key that DeepSpeed reads without pydantic."""

    kind: dict[str, Any]
    words: str
    default: Any = UNSET
    """Only where DeepSpeed's parser gives none with its look-up."""
    seen: tuple[str, str] | None = None
    """For a key that the parser does not look up: a source file and the text in it that reads the key."""


BOOL = {"type": "boolean"}
TEXT = {"type": "string"}
FOLDER = {"title": "the name of a folder", "type": "string", "pattern": "."}
TEXT_OR_NULL = {"type": ["string", "null"]}
OBJECT = {"type": "object"}
COUNT = {"type": "integer", "minimum": 1}
COUNT_OR_NULL = {"type": ["integer", "null"], "minimum": 1}
WHOLE = {"type": "integer", "minimum": 0}
REAL = {"type": "number"}
SHARE = {"type": "number", "minimum": 0, "maximum": 1}
ANY: dict[str, Any] = {}
BATCH = {"title": "a positive whole number", "type": ["integer", "string"], "minimum": 1, "pattern": "^auto$"}
RATE_AUTO = {"title": "a number of at least 0", "type": ["number", "string"], "minimum": 0, "pattern": "^auto$"}
RATES_AUTO = {**RATE_AUTO, "type": ["number", "string", "array"], "items": {"type": "number"}}
DTYPE = {"enum": ["bf16", "bfloat16", "fp16", "float16", "half", "fp32", "float32", "float", None]}
DTYPE_TORCH = {
    "enum": [
        *("bf16", "bfloat16", "torch.bfloat16", "fp16", "float16", "half", "torch.float16"),
        *("fp32", "float32", "float", "torch.float32"),
    ]
}
WIRE = {
    "title": "one of bf16, fp16, fp32",
    "type": ["string", "null"],
    "pattern": "^([bB][fF]16|[fF][pP]16|[fF][pP]32)$",
}
NAMES = {"type": "array", "items": {"type": "string"}}
LIST = {"type": "array"}
WHOLE_OR_NULL = {"type": ["integer", "null"], "minimum": 0}
RATES = {"title": "a number of at least 0", "type": ["number", "array"], "minimum": 0, "items": {"type": "number"}}
BETAS = {
    "title": "a list of two numbers",
    "type": ["array", "string"],
    "items": {"type": "number"},
    "minItems": 2,
    "maxItems": 2,
    "pattern": "^auto$",
}
METRICS = {"type": "object", "additionalProperties": {"$ref": "#/$defs/curriculum_metric"}}

EDITORS = ("", "")
DATA_SAMPLER = ("runtime/data_pipeline/data_sampling/data_sampler.py", "CURRICULUM_LEARNING_CLUSTER_PATH")
METRICS_PATH = (
    "runtime/data_pipeline/data_sampling/variable_batch_size_and_lr.py",
    "batching_config[DYNAMIC_BATCHING_METRICS_PATH]",
)
LTD_SCHEDULER = ("runtime/data_pipeline/data_routing/scheduler.py", "RANDOM_LTD_TOTAL_LAYER_NUM")
LTD_LAYER = ("runtime/data_pipeline/data_routing/basic_layer.py", "RANDOM_LTD_HIDDEN_STATE_ORDER")
