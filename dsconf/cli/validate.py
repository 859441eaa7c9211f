"""``dsconf validate``: parsing of the command line and printing, nothing else."""

from __future__ import annotations

import json

import click

from dsconf.cli.options import WHOLE, format_option


@click.command(
    "validate",
    epilog="Exit codes: 0 valid, 1 at least one error was found, 2 a file cannot be read.\n\n"
    "Example: dsconf validate ds_config.json --gpus 8",
)
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option("--gpus", type=WHOLE, help="World size: checks that the batch sizes fit it.")
@click.option(
    "--for",
    "target",
    type=click.Choice(["deepspeed", "hf", "accelerate"]),
    help='Who loads the files [default: hf for a file that holds "auto", else deepspeed].',
)
@format_option("text", "json")
@click.pass_context
def command(
    ctx: click.Context, files: tuple[str, ...], gpus: int | None, target: str | None, output_format: str
) -> None:
    """Check ds_config files against DeepSpeed's own rules; - reads standard input.

    An error is what DeepSpeed rejects, silently ignores or silently turns into something else.
    """
    from dsconf.config.validate import validate
    from dsconf.report.findings import findings_json, findings_text

    report = validate(files, gpus, target)
    text = json.dumps(findings_json(report), indent=2) if output_format == "json" else findings_text(report)
    click.echo(text.encode("utf-8", "backslashreplace").decode("utf-8"))
    ctx.exit(0 if report.valid else 1 if report.readable else 2)
