"""``dsconf estimate``."""

from __future__ import annotations

from typing import Any

import click

from dsconf.cli.options import format_option, word_options
from dsconf.request import JobWords, ModelWords, RankWords, WorldWords


@click.command("estimate")
@word_options(ModelWords, WorldWords, JobWords, RankWords, required=["gpus"])
@click.option("--explain", metavar="TERM", help="Show the formula of one term of the peak.")
@format_option("table", "json")
def command(explain: str | None, rank: int | None, output_format: str, **words: Any) -> int:
    """Say what each GPU and each node will hold, byte by byte, and when.

    \b
    Example: dsconf estimate --model meta-llama/Llama-3.1-8B --gpus 8 --stage 2 --gpu h100
    """
    from dsconf.memory.estimate import estimate
    from dsconf.read_job import DEFAULT_STAGE, read_job

    job = read_job(**words)
    if words["stage"] is None and words["config"] is None:
        click.echo(f"dsconf: no --config and no --stage given, so this is ZeRO stage {DEFAULT_STAGE}", err=True)
    found = estimate(job, rank)
    named = words["gpu"] is not None or words["gpu_memory"] is not None
    fits = _verdict(found, job.cluster.gpu) if named else None
    if explain is not None:
        from dsconf.report.estimate import explain_text

        text = explain_text(found, explain, job)
        if output_format == "json":
            from dsconf.report.as_json import document

            text = document({"term": explain, "lines": text.splitlines()})
        click.echo(text)
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
