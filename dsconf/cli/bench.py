"""``dsconf bench``: parsing and printing only; ``dsconf.live.bench`` does the work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from dsconf.cli.options import finite, format_option, word_options
from dsconf.request import BENCH_DEFAULTS, BenchWords, ModelWords, WorldWords


@click.command(
    "bench",
    epilog="Example: dsconf bench --model Qwen/Qwen2.5-0.5B --strategies single,ddp,zero2 --plot bench.svg. "
    "Exit codes: 0 all ran, 1 one failed, 2 wrong usage, 3 it cannot be run here.",
)
@word_options(
    ModelWords,
    WorldWords,
    BenchWords,
    defaults=BENCH_DEFAULTS,
    helps={
        "gpus": "GPUs of this machine to use [default: all; without any, 2 ranks on the CPU].",
        "seq_len": "Tokens of one sequence.",
        "precision": "Type the model is trained in.",
        "steps": "Optimizer steps of each strategy.",
        "timeout": "Seconds for one strategy.",
    },
)
@click.option("--plot", metavar="FILE", help="Draw speed and memory as PNG or SVG.")
@click.option("--force", is_flag=True, help="Overwrite the plot.")
@format_option("table", "json")
def command(output_format: str, plot: str | None, force: bool, **words: Any) -> int:
    """Compare a single GPU, DDP, ZeRO stages and Accelerate on the same model and data, by running them.

    Every strategy starts from the same random weights and takes the same tokens in each step, so the losses of a
    step can be compared too.
    """
    from dsconf.live.bench import bench
    from dsconf.report.bench import bench_text

    if plot is not None:
        from dsconf.report.plot import drawable

        drawable(Path(plot), force=force)
    result = bench(**words, progress=_progress)
    if output_format == "json":
        click.echo(json.dumps(finite(result.to_json()), indent=2))
    else:
        click.echo(bench_text(result))
    if plot is not None:
        from dsconf.report.plot import draw

        draw(result, Path(plot))
        click.echo(f"Wrote {plot}", err=True)
    for row in result.rows:
        if row.failure is not None:
            click.echo(f"dsconf: {row.strategy}: {row.failure.message}", err=True)
    return result.exit_code


def _progress(line: str) -> None:
    click.echo(f"bench: {line}", err=True)
