"""``dsconf bench``: parsing and printing only; ``dsconf.live.bench`` does the work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from dsconf.cli.options import REAL, WHOLE, finite, format_option, model_options
from dsconf.workload import ATTENTION_KERNELS


@click.command(
    "bench",
    epilog="Example: dsconf bench --model Qwen/Qwen2.5-0.5B --strategies single,ddp,zero2 --plot bench.svg. "
    "Exit codes: 0 all ran, 1 one failed, 2 wrong usage, 3 it cannot be run here.",
)
@model_options
@click.option("--gpus", type=WHOLE, help="GPUs of this machine to use [default: all; without any, 2 ranks on the CPU].")
@click.option(
    "--strategies",
    metavar="NAMES",
    default="single,ddp,zero1,zero2,zero3,accelerate",
    show_default=True,
    help="What to compare, separated by commas.",
)
@click.option("--seq-len", type=WHOLE, default=1024, show_default=True, help="Tokens of one sequence.")
@click.option("--micro-batch-size", type=WHOLE, default=1, show_default=True, help="Sequences a GPU takes at a time.")
@click.option(
    "--gradient-accumulation-steps", type=WHOLE, default=1, show_default=True, help="Micro-batches of one step."
)
@click.option("--activation-checkpointing", is_flag=True, help="Recompute each layer in backward.")
@click.option("--attention", type=click.Choice(ATTENTION_KERNELS), default="sdpa", show_default=True)
@click.option("--precision", type=click.Choice(["bf16", "fp16", "fp32"]), default="bf16", show_default=True)
@click.option("--learning-rate", type=REAL, default=1e-4, show_default=True, help="The same for all.")
@click.option("--steps", type=WHOLE, default=20, show_default=True, help="Optimizer steps of each strategy.")
@click.option("--resume", is_flag=True, help="Save a checkpoint half-way, resume from it, compare the losses.")
@click.option(
    "--launcher",
    type=click.Choice(["torchrun", "deepspeed", "direct"]),
    help="What starts the ranks [default: torchrun for two or more].",
)
@click.option("--timeout", type=REAL, default=900.0, show_default=True, help="Seconds for one strategy.")
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
