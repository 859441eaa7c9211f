"""The comparison of the stages as a person reads it, and as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from dsconf.report.as_json import cluster_json, estimate_json, model_json
from dsconf.report.table import as_gib, as_rate, table
from dsconf.search.stages import StageComparison, StageRow

HEADERS = ("stage", "shards", "GPU GiB\na rank", "fits", "sent GiB\na GPU, a step", "tokens/s", "take it when")


def stages_text(found: StageComparison, shape: str, gpus: str) -> str:
    """Model, GPUs and the table; ``shape`` and ``gpus`` are the sentences on them."""
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
    yield ""
    yield table(HEADERS, [_row(row) for row in found.rows], (1, 6))
    if found.cluster.world_size == 1:
        yield "With one GPU there is nobody to share with: ZeRO shards nothing."


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
    """Bytes and seconds; ``sent_bytes`` is what one GPU sends in one optimizer step."""
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
                "sent_bytes": row.sent_bytes,
                "step_seconds": row.candidate.step.seconds,
                "tokens_per_second": row.candidate.tokens_per_second,
                "when": row.when,
            }
            for row in found.rows
        ],
    }
