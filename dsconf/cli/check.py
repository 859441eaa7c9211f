"""``dsconf check FILE``: parsing and printing only; ``dsconf.live.check`` does the work."""

from __future__ import annotations

import json
from typing import Any

import click

from dsconf.cli.options import finite, format_option, word_options
from dsconf.request import CheckWords, ModelWords, WorldWords


@click.command(
    "check",
    epilog="Example: dsconf check ds_config.json --model Qwen/Qwen2.5-0.5B --gpus 8. "
    "Exit codes: 0 it ran, 1 it failed or the config is invalid, 2 wrong usage, 3 it cannot be run here.",
)
@click.argument("file")
@word_options(
    ModelWords,
    WorldWords,
    CheckWords,
    required=["gpus"],
    helps={
        "gpu": "A smaller card to stand in for: torch gets no more memory than it has.",
        "gpu_memory": "Memory of the card to stand in for, e.g. 24GiB.",
        "timeout": "Seconds until the run is ended.",
    },
)
@format_option("table", "json")
def command(file: str, output_format: str, **words: Any) -> int:
    """Prove the ds_config FILE by running a short real DeepSpeed training.

    With as many CUDA GPUs here as asked for, every rank is real. With fewer, one GPU rehearses the fullest
    rank of all: its allocations are real, the other ranks are not there. With none, two real ranks train a
    scaled-down model on the CPU. The weights are random.
    """
    from dsconf.live.check import check

    result = check(file, **words, progress=_progress)
    if output_format == "json":
        click.echo(json.dumps(finite(result.to_json()), indent=2))
    elif result.measured.peak_bytes is not None:
        from dsconf.report.check import check_text

        click.echo(check_text(result))
    if result.failure is not None:
        click.echo(f"dsconf: {result.failure.message}", err=True)
    return result.exit_code


def _progress(line: str) -> None:
    click.echo(f"check: {line}", err=True)
