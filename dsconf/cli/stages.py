"""``dsconf stages``."""

from __future__ import annotations

from typing import Any

import click

from dsconf.cli.options import format_option, word_options
from dsconf.request import ModelWords, StagesWords, WorldWords


@click.command("stages")
@word_options(ModelWords, WorldWords, StagesWords, required=["gpus"])
@format_option("table", "json")
def command(output_format: str, **words: Any) -> None:
    """Compare ZeRO stages 0 to 3 side by side: what each shards, holds and sends.

    \b
    Example: dsconf stages --params 7B --gpus 8 --gpu-memory 80GiB
    """
    from dsconf.search.stages import stages

    found = stages(**words)
    if output_format == "json":
        from dsconf.report.as_json import document
        from dsconf.report.stages import stages_json

        click.echo(document(stages_json(found)))
        return
    from dsconf.report.model import model_sentence
    from dsconf.report.recommendation import cluster_sentence
    from dsconf.report.stages import stages_text

    shape = model_sentence(found.model, sized=words["params"] is not None)
    click.echo(stages_text(found, shape, cluster_sentence(found.cluster)))
