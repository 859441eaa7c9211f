"""What ``dsconf recommend`` writes: the options that choose it, and the writing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import click

from dsconf.cli.options import combine
from dsconf.errors import InputError

if TYPE_CHECKING:
    from dsconf.search.answer import Recommendation

F = TypeVar("F", bound=Callable[..., Any])


class _Folder(click.Path):
    """A path, but no empty one, which would be the current folder and is mostly a variable that was not set."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            raise InputError("-o is empty; name a folder, or . for the current one")
        return super().convert(value, param, ctx)


file_options = combine(
    click.option(
        "-o",
        "--output",
        type=_Folder(path_type=Path),
        metavar="DIR",
        help="Write a folder that can be launched: ds_config.json, launch.sh and what they need "
        "[default: nothing is written].",
    ),
    click.option("--slurm", is_flag=True, help="With -o: a script for sbatch, slurm.sh, as well."),
    click.option(
        "--comments",
        is_flag=True,
        help="With -o: ds_config.hjson, a comment on each value, in place of ds_config.json; DeepSpeed reads both.",
    ),
    click.option("--force", is_flag=True, help="Replace files that exist."),
)


class Writing(NamedTuple):
    """What the options say."""

    output: Path | None
    slurm: bool
    comments: bool
    force: bool
    target: str

    def check(self) -> None:
        """Refuse what cannot be meant.

        Raises:
            InputError: --slurm or --comments without a folder, comments for a loader that takes none, a name no script
                can hold.
        """
        from dsconf.search.folder import refuse_comments

        if self.slurm and self.output is None:
            raise InputError("--slurm writes slurm.sh into a folder: name it with -o DIR")
        if self.comments:
            refuse_comments(self.target)
            if self.output is None:
                raise InputError("--comments writes ds_config.hjson into a folder: name it with -o DIR")
        if self.output is not None and not str(self.output).isprintable():
            raise InputError(f"-o: {str(self.output)!r} has characters that cannot stand in a script")

    def config(self, folder: Path) -> Path:
        """Return where the config of ``folder`` is."""
        from dsconf.search.folder import config_name

        return folder / config_name(self.comments)

    def attempt(self, wanted: Mapping[Path, Recommendation]) -> tuple[dict[Path, list[str]], InputError | None]:
        """Write, where -o says so, and return the paths by folder, or why nothing could be written.

        A question that took a search is answered all the same.
        """
        if self.output is None:
            return {}, None
        try:
            return self.write(wanted), None
        except InputError as refused:
            return {}, refused

    def write(self, wanted: Mapping[Path, Recommendation]) -> dict[Path, list[str]]:
        """Write every file of every folder, or none; a file that holds the same may stay. Returns the paths by folder.

        A line on stderr names what an earlier writing for something else has left in the folders.

        Raises:
            InputError: a file is in the way, or cannot be written.
        """
        from dsconf.report.files import write_together

        texts = {folder: self._texts(folder, recommendation) for folder, recommendation in wanted.items()}
        together = {path: text for files in texts.values() for path, text in files.items()}
        self._refuse(together)
        write_together(together)
        self._tell_left(texts)
        return {folder: [str(path) for path in files] for folder, files in texts.items()}

    def _texts(self, folder: Path, recommendation: Recommendation) -> dict[Path, str]:
        from dsconf.report.reasons import sentences
        from dsconf.search.folder import folder_files

        reasons = sentences((*recommendation.why, *recommendation.notes)) if self.comments else []
        files = folder_files(recommendation, str(folder), slurm=self.slurm, comments=self.comments, reasons=reasons)
        return {folder / name: text for name, text in files.items()}

    def _tell_left(self, written: Mapping[Path, Iterable[Path]]) -> None:
        from dsconf.search.folder import every_name

        left = [
            str(folder / name)
            for folder, files in written.items()
            for name in every_name()
            if folder / name not in files and (folder / name).is_file()
        ]
        if left:
            click.echo(f"dsconf: left from an earlier writing, and no part of this one: {', '.join(left)}", err=True)

    def _refuse(self, files: Mapping[Path, str]) -> None:
        from dsconf.report.files import check_writable, refuse_other

        for path, text in files.items():
            check_writable(path.parent)
            refuse_other(path, text, self.force)
