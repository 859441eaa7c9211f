"""``dsconf recommend --gpus 8,16,32``: the same question on several numbers of GPUs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dsconf.errors import InputError

if TYPE_CHECKING:
    from dsconf.cli.recommend_files import Writing


def run_sweep(writing: Writing, check: bool, output_format: str, words: dict[str, Any]) -> int:
    """Print the sweep; with -o each recommendation goes into a folder of its own, since no two need be alike.

    Raises:
        InputError: a word that cannot be used as given, or a file that is there already.
    """
    from dsconf.search.sweep import read_sizes, sweep

    if check:
        raise InputError("--check proves one config: give it a single number of --gpus")
    folders = {size: (writing.output or Path()) / f"{size}-gpus" for size in read_sizes(words["gpus"])}
    found = sweep(**words)
    written, refused = writing.attempt({folders[row.gpus]: row.found for row in found.fitting})
    files = {row.gpus: written[folders[row.gpus]] for row in found.fitting if written}
    shown = {size: str(writing.config(folder)) for size, folder in folders.items()}
    if output_format == "json":
        from dsconf.report.as_json import document
        from dsconf.report.sweep import sweep_json

        click.echo(document(sweep_json(found, files, shown)))
    else:
        from dsconf.report.model import model_sentence
        from dsconf.report.sweep import sweep_text

        shape = model_sentence(found.rows[0].found.model, sized=words["params"] is not None)
        click.echo(sweep_text(found, shape, files, shown))
    if refused is not None:
        raise refused
    return 0 if found.fitting else 1
