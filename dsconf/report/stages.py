"""The comparison of the stages as a person reads it, and as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from dsconf.config.settings import Settings
from dsconf.read_job import offload_of
from dsconf.report.as_json import cluster_json, estimate_json, model_json
from dsconf.report.table import as_gib, as_rate, table
from dsconf.search.stages import StageComparison, StageRow

HEADERS = ("stage", "shards", "GPU GiB\na rank", "fits", "sent GiB\na GPU, a step", "tokens/s", "take it when")

_BELOW_STAGE_3 = ("reduce_bucket_size", "allgather_bucket_size", "overlap_comm")
_OF_STAGE_3 = (
    "reduce_bucket_size",
    "overlap_comm",
    "stage3_prefetch_bucket_size",
    "stage3_max_live_parameters",
    "stage3_max_reuse_distance",
    "stage3_param_persistence_threshold",
    "sub_group_size",
)


def stages_text(found: StageComparison, shape: str, gpus: str) -> str:
    """Write model, GPUs and the table; ``shape`` and ``gpus`` are the sentences on them."""
    return "\n".join(_lines(found, shape, gpus))


def _lines(found: StageComparison, shape: str, gpus: str) -> Iterator[str]:
    workload = found.workload
    recompute = "with" if workload.checkpointing else "without"
    yield shape
    yield gpus
    yield (
        f"Step: {workload.micro_batch} × {workload.seq_len} tokens a GPU, accumulation {workload.accumulation}, "
        f"{recompute} activation checkpointing, {found.rows[0].candidate.settings.precision}"
    )
    offloads = [row for row in found.rows if row.candidate.offloads]
    if offloads:
        where = ", ".join(str(row.stage) for row in offloads)
        yield f"Offload: {offload_of(offloads[-1].candidate.settings)}, at the stages that allow it: {where}"
    yield ""
    yield table(HEADERS, [_row(row) for row in found.rows], (1, 6))
    yield from _settings(found)
    yield from _alike(found)
    if found.cluster.world_size == 1:
        yield "With one GPU there is nobody to share with: ZeRO shards nothing."


def _settings(found: StageComparison) -> Iterator[str]:
    """Say what a ds_config needs to give the same figures in ``dsconf estimate``."""
    for rows in (found.rows[1:3], found.rows[3:]):
        settings = rows[0].candidate.settings
        names = "stage 3" if settings.stage == 3 else "stages 1 and 2"
        sizes = ", ".join(f"{key} {_shown(value)}" for key, value in settings_json(settings).items())
        yield f"Settings of {names}: {sizes}"
    yield "dsconf estimate --config takes these; --stage alone takes DeepSpeed's defaults, which hold other amounts."


def _alike(found: StageComparison) -> Iterator[str]:
    """Say why stages 1 and 2 are equal where they are (stage_1_and_2.py:958-980, 2284-2295)."""
    one, two = found.rows[1], found.rows[2]
    if one.candidate.estimate.peak_bytes != two.candidate.estimate.peak_bytes or one.sent_bytes != two.sent_bytes:
        return
    overlap = all(row.candidate.settings.overlap_comm for row in (one, two))
    if found.cluster.world_size == 1 or not overlap or found.workload.accumulation > 1:
        return
    yield (
        "Stages 1 and 2 are equal here: with overlap_comm both reduce each bucket while backward runs and keep only "
        "their own gradients, and with accumulation 1 they send them equally often. They differ without overlap_comm, "
        "where stage 1 keeps all gradients through backward, and with more accumulation, where stage 1 keeps them "
        "between micro-batches and stage 2 reduces in each."
    )


def settings_json(settings: Settings) -> dict[str, Any]:
    """List the sizes of ``settings`` that its stage reads, by their names in a ds_config's zero_optimization."""
    keys = {0: (), 3: _OF_STAGE_3}.get(settings.stage, _BELOW_STAGE_3)
    return {key: getattr(settings, key.removeprefix("stage3_")) for key in keys}


def _shown(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:,}"


def _row(row: StageRow) -> list[str]:
    estimate = row.candidate.estimate
    rate = as_rate(row.candidate.tokens_per_second) if row.candidate.fits != "no" else "-"
    return [
        str(row.stage),
        row.shards,
        as_gib(estimate.process_bytes),
        row.candidate.fits,
        as_gib(row.sent_bytes),
        rate,
        row.when,
    ]


def stages_json(found: StageComparison) -> dict[str, Any]:
    """State bytes and seconds; ``sent_bytes`` is what one GPU sends in one optimizer step."""
    workload = found.workload
    return {
        "model": model_json(found.model),
        "cluster": cluster_json(found.cluster),
        "workload": {
            "seq_len": workload.seq_len,
            "micro_batch_size": workload.micro_batch,
            "gradient_accumulation_steps": workload.accumulation,
            "activation_checkpointing": workload.checkpointing,
        },
        "stages": [
            {
                "stage": row.stage,
                "shards": row.shards,
                "estimate": estimate_json(row.candidate.estimate, found.model, row.candidate.fits),
                "fits": row.candidate.fits,
                "offload": offload_of(row.candidate.settings),
                "sent_bytes": row.sent_bytes,
                "settings": settings_json(row.candidate.settings),
                "step_seconds": row.candidate.step.seconds,
                "tokens_per_second": row.candidate.tokens_per_second,
                "when": row.when,
            }
            for row in found.rows
        ],
    }
