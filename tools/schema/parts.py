"""The parts of a config that DeepSpeed reads after its parser, in classes of their own."""

from __future__ import annotations

import contextlib
from typing import Any

from tools.schema.key_types import (
    BOOL,
    COUNT,
    LIST,
    NAMES,
    REAL,
    TEXT,
    Key,
)
from tools.schema.reads import Reads, Watched

SAMPLER = "runtime/data_pipeline/data_sampling/data_sampler.py"
SPEC = {"$ref": "#/$defs/partition_layer"}
AXIS = {"type": "integer"}
AXIS_OR_NULL = {"type": ["integer", "null"]}
PARTITION = {
    "title": "one of row, column, skip",
    "type": "string",
    "pattern": "^([rR][oO][wW]|[cC][oO][lL][uU][mM][nN]|[sS][kK][iI][pP])$",
}

PARTS: dict[str, dict[str, Key]] = {
    "partition_config": {
        "layer_specs": Key({"type": "array", "items": SPEC}, "How the layers are split; the first match counts."),
        "tp_size": Key(COUNT, "Ranks; autotp_size is what counts."),
        "embedding_partition_dim": Key(AXIS, "Axis along which embeddings are split."),
        "lm_head_patterns": Key(NAMES, "Names of output layers."),
        "use_default_specs": Key(BOOL, "Splits layers without a match as DeepSpeed would."),
        "strict_mode": Key(BOOL, "Refuses layers without a match."),
    },
    "partition_layer": {
        "patterns": Key(NAMES, "Regular expressions for names of parameters."),
        "partition_type": Key(PARTITION, "How the layer is split."),
        "gather_output": Key(BOOL, "Gathers the layer's output."),
        "grad_allreduce": Key(BOOL, "Sums the gradients over the ranks."),
        "shape": Key({"type": ["array", "null"]}, "Sizes of the parts of a fused weight."),
        "partition_dim": Key(AXIS_OR_NULL, "Axis, where the type does not tell."),
        "model_types": Key({"type": ["array", "null"], "items": TEXT}, "Only for these model types."),
    },
    "curriculum_metric": {
        "index_to_sample_path": Key(TEXT, "Samples by difficulty.", None, (SAMPLER, "CURRICULUM_LEARNING_SAMPLE_PATH")),
        "index_to_metric_path": Key(TEXT, "Difficulties.", None, (SAMPLER, "CURRICULUM_LEARNING_METRIC_PATH")),
        "difficulty_type": Key(
            {"enum": ["value", "percentile"]}, "What min and max are.", None, (SAMPLER, "LEARNING_DIFFICULTY_TYPE")
        ),
        "clustering_type": Key(TEXT, "single_cluster: no index.", None, (SAMPLER, "LEARNING_CLUSTERING_TYPE")),
        "min_difficulty": Key(REAL, "Difficulty at the start; needed.", None),
        "max_difficulty": Key(REAL, "Difficulty at the end; needed.", None),
        "schedule_type": Key(
            {"enum": ["fixed_linear", "fixed_root", "fixed_discrete", "custom"]}, "Shape of the schedule; needed.", None
        ),
        "schedule_config": Key({"$ref": "#/$defs/curriculum_schedule"}, "Arguments of the schedule."),
    },
    "curriculum_schedule": {
        "total_curriculum_step": Key(COUNT, "fixed_linear, fixed_root: steps to full difficulty.", None),
        "difficulty_step": Key(COUNT, "fixed_linear, fixed_root: difficulties are multiples of it.", None),
        "root_degree": Key(COUNT, "fixed_root: degree of the root.", None),
        "difficulty": Key(LIST, "fixed_discrete: the difficulties.", None),
        "max_step": Key(LIST, "fixed_discrete: last step of each but the last.", None),
    },
    "random_ltd_schedule": {
        "min_value": Key(COUNT, "Tokens kept at the start.", None),
        "max_value": Key(COUNT, "Tokens kept at the end.", None),
        "schedule_type": Key({"enum": ["fixed_linear"]}, "Shape of the schedule.", None),
        "schedule_config": Key({"$ref": "#/$defs/random_ltd_steps"}, "Arguments of the schedule."),
    },
    "random_ltd_steps": {
        "require_steps": Key(COUNT, "Steps from start to end.", None),
        "seq_per_step": Key(COUNT, "Tokens kept are multiples of it.", None),
    },
}
LINKS = {("tensor_parallel", "partition_config"): "partition_config"}
"""Keys of pydantic models that the models declare as any object."""
_CURRICULUM = ("data_efficiency", "data_sampling", "curriculum_learning", "curriculum_metrics", "*")
_LTD = ("data_efficiency", "data_routing", "random_ltd")
_STEPS = {"total_curriculum_step": 8, "difficulty_step": 8, "root_degree": 2, "difficulty": [1, 2], "max_step": [1]}


def part_reads() -> Reads:
    """Record what the later readers look up, watching them as the parser is watched."""
    from deepspeed.runtime.data_pipeline.curriculum_scheduler import CurriculumScheduler
    from deepspeed.runtime.data_pipeline.data_routing.scheduler import RandomLTDScheduler

    reads: Reads = {}
    for kind in ("fixed_linear", "fixed_root", "fixed_discrete", "custom"):
        metric = {"min_difficulty": 1, "max_difficulty": 8, "schedule_type": kind, "schedule_config": _STEPS}
        scheduler = CurriculumScheduler(Watched(metric, reads, _CURRICULUM))
        if kind != "custom":
            scheduler.get_difficulty(1)
    steps = {"min_value": 8, "max_value": 16, "schedule_type": "fixed_linear"}
    steps["schedule_config"] = {"require_steps": 2, "seq_per_step": 8}
    whole: dict[str, Any] = {"total_layer_num": 2, "random_ltd_layer_num": 1, "global_batch_size": 1}
    whole |= {"random_ltd_schedule": steps, "layer_token_lr_schedule": {"enabled": False}}
    RandomLTDScheduler(Watched(whole, reads, _LTD)).update_seq(1)
    with contextlib.suppress(ImportError):
        from deepspeed.module_inject.autotp_config import AutoTPConfig

        path = ("tensor_parallel", "partition_config")
        specs = [Watched({"shape": None}, reads, (*path, "layer_specs", "*"))]
        AutoTPConfig.from_dict(Watched({"layer_specs": specs}, reads, path))
    return reads
