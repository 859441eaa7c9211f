"""``dsconf validate``: parsing of the command line and printing, nothing else."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from dsconf.cli.options import format_option, word_options
from dsconf.config.names import TARGETS
from dsconf.errors import InputError
from dsconf.request import ValidateWords, WorldWords

if TYPE_CHECKING:
    from dsconf.config.finding import FileReport, Report
    from dsconf.config.validate import ValidationOptions


@click.command(
    "validate",
    epilog="Exit codes: 0 valid, 1 at least one error was found, 2 a file cannot be read.\n\n"
    "Example: dsconf validate ds_config.json --gpus 8",
)
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@word_options(WorldWords, helps={"gpus": "World size: checks that the batch sizes fit it."})
@click.option(
    "--for",
    "target",
    type=click.Choice(TARGETS),
    help='Who loads the files [default: hf for a file that holds "auto", else deepspeed].',
)
@click.option("--fix", is_flag=True, help="Repair what has one safe answer, after showing the change.")
@click.option("--diff", is_flag=True, help="Show what --fix would change, and write nothing.")
@word_options(ValidateWords)
@format_option("text", "json", "sarif")
def command(files: tuple[str, ...], fix: bool, diff: bool, output_format: str, **words: Any) -> int:
    """Check ds_config files against DeepSpeed's own rules; - reads standard input.

    An error is what DeepSpeed rejects, silently ignores or silently turns into something else. With --model or
    --params and --gpus, one more finding says whether the job fits.
    """
    from dsconf.api import read_asked
    from dsconf.config.validate import listed, validate

    asked = read_asked(**words)
    if fix or diff:
        report = _repair([str(file) for file in listed(files)], asked, output_format, writes=fix and not diff)
    else:
        report = validate(files, options=asked)
    if not (fix and "-" in files):
        _print(_shown(report, output_format))
    return 0 if report.valid else 1 if report.readable else 2


def _shown(report: Report, output_format: str) -> str:
    if output_format == "text":
        from dsconf.report.findings import findings_text

        return findings_text(report)
    if output_format == "json":
        from dsconf.report.findings import findings_json

        return json.dumps(findings_json(report), indent=2)
    from dsconf import __version__
    from dsconf.report.sarif import sarif

    return json.dumps(sarif(report, __version__), indent=2)


def _print(text: str, err: bool = False, nl: bool = True) -> None:
    """Print ``text``, whose names and keys may hold what no terminal can show."""
    click.echo(text.encode("utf-8", "backslashreplace").decode("utf-8"), err=err, nl=nl)


def _repair(files: list[str], asked: ValidationOptions, output_format: str, writes: bool) -> Report:
    """Show every change and, if it ``writes``, make it; the report is of the files as they are then."""
    from dsconf.config.finding import Report
    from dsconf.report.repair import after, repairs, write

    piped = writes and "-" in files
    if piped and (len(files) > 1 or output_format != "text"):
        raise InputError("--fix -: prints the repaired file; name no other file and no --format")
    reports: list[FileReport] = []
    for one in repairs(files, asked):
        _print(one.diff, err=piped or output_format != "text", nl=False)
        if writes and one.repair is not None and one.source != "-":
            write(one)
        reports.append(after(one, asked) if writes else one.report)
        if writes and one.repair is not None and one.repair.repaired:
            click.echo(f"dsconf: repaired {', '.join(one.repair.repaired)}", err=True)
        if piped and one.repair is not None:
            _print(one.repair.after, nl=False)
    report = Report(tuple(reports))
    if piped:
        _print(_shown(report, "text"), err=True)
    return report
