"""``dsconf estimate``."""

from __future__ import annotations

from typing import Any

import click

from dsconf.cli.options import WHOLE, cluster_options, format_option, model_options, workload_options
from dsconf.workload import ALLOCATORS


@click.command("estimate")
@model_options
@cluster_options
@click.option("--config", metavar="FILE", help="The ds_config.json; or say --stage and what follows it.")
@click.option("--stage", type=click.IntRange(0, 3), help="ZeRO stage, with DeepSpeed's default buckets.")
@click.option("--precision", type=click.Choice(["bf16", "fp16", "fp32"]), help="Training precision [default: bf16].")
@click.option("--optimizer", metavar="NAME", help="Optimizer's name [default: adamw].")
@click.option("--offload", type=click.Choice(["none", "optimizer", "optimizer+param"]), help="What the host holds.")
@workload_options
@click.option(
    "--allocator",
    type=click.Choice(ALLOCATORS),
    default="expandable",
    show_default=True,
    help="torch's CUDA allocator: with expandable_segments:True, or its default.",
)
@click.option(
    "--sequence-parallel", type=WHOLE, metavar="RANKS", help="Ranks that share each sequence (DeepSpeed's Ulysses)."
)
@click.option(
    "--tiled-loss",
    is_flag=False,
    flag_value="auto",
    metavar="[SHARDS]",
    help="Logits and loss in shards (TiledFusedLogitsLoss): a number, by default as many as take 1 GiB each.",
)
@click.option("--rank", default="fullest", show_default=True, help="Which rank: a number, or the fullest.")
@click.option("--explain", metavar="TERM", help="Show the formula of one term of the peak.")
@format_option("table", "json")
def command(explain: str | None, rank: str, output_format: str, **words: Any) -> int:
    """Say what each GPU and each node will hold, byte by byte, and when.

    \b
    Example: dsconf estimate --model meta-llama/Llama-3.1-8B --gpus 8 --stage 2 --gpu h100
    """
    from dsconf.memory.api import DEFAULT_STAGE, read_job, read_rank
    from dsconf.memory.estimate import estimate

    job = read_job(**words)
    if words["stage"] is None and words["config"] is None:
        click.echo(f"dsconf: no --config and no --stage given, so this is ZeRO stage {DEFAULT_STAGE}", err=True)
    found = estimate(job, read_rank(rank))
    named = words["gpu"] is not None or words["gpu_memory"] is not None
    fits = _verdict(found, job.cluster.gpu) if named else None
    if explain is not None:
        from dsconf.report.estimate import explain_text

        click.echo(explain_text(found, explain, job))
    elif output_format == "json":
        from dsconf.report.as_json import document, estimate_json

        click.echo(document(estimate_json(found, job.model, fits)))
    else:
        from dsconf.report.estimate import estimate_text
        from dsconf.report.model import model_sentence

        click.echo(model_sentence(job.model, sized=words["params"] is not None))
        click.echo(estimate_text(found, fits, job))
    return 1 if fits == "no" else 0


def _verdict(found: Any, gpu: Any) -> str:
    from dsconf.memory.fit import verdict

    return verdict(found, gpu)
