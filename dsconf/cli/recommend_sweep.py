"""``dsconf recommend --gpus 8,16,32``: the same question on several numbers of GPUs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dsconf.errors import InputError

if TYPE_CHECKING:
    from dsconf.search.sweep import Sweep

CONFIG = "ds_config.json"


def run_sweep(output: Path | None, force: bool, check: bool, output_format: str, words: dict[str, Any]) -> int:
    """Prints the sweep; with ``output`` each config goes into a folder of its own, since no two need be alike.

    Raises:
        InputError: a word that cannot be used as given, or a file that is there already.
    """
    from dsconf.search.sweep import read_sizes, sweep

    if check:
        raise InputError("--check proves one config: give it a single number of --gpus")
    configs = {size: (output or Path()) / f"{size}-gpus" / CONFIG for size in read_sizes(words["gpus"])}
    if output is not None:
        for path in configs.values():
            _refuse(path, None, force)
    found = sweep(**words)
    files = _write(found, configs, force) if output is not None else {}
    shown = {size: str(path) for size, path in configs.items()}
    if output_format == "json":
        from dsconf.report.as_json import document
        from dsconf.report.sweep import sweep_json

        click.echo(document(sweep_json(found, files, shown)))
    else:
        from dsconf.report.model import model_sentence
        from dsconf.report.sweep import sweep_text

        shape = model_sentence(found.rows[0].found.model, sized=words["params"] is not None)
        click.echo(sweep_text(found, shape, files, shown))
    return 0 if found.fitting else 1


def _refuse(path: Path, text: str | None, force: bool) -> None:
    from dsconf.report.files import check_writable, refuse_other

    check_writable(path.parent)
    refuse_other(path, text, force)


def _write(found: Sweep, configs: dict[int, Path], force: bool) -> dict[int, list[str]]:
    """The files written, by the number of GPUs; none before all are known to be free."""
    from dsconf.report.files import write_whole

    texts = {row.gpus: row.found.config_text for row in found.fitting}
    for size, text in texts.items():
        _refuse(configs[size], text, force)
    for size, text in texts.items():
        write_whole(configs[size], text)
    return {size: [str(configs[size])] for size in texts}
