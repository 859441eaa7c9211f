"""Draws a bench with matplotlib, where that is installed."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from dsconf.errors import InputError, UnavailableError
from dsconf.report.files import write_whole
from dsconf.units import GIB

if TYPE_CHECKING:
    from dsconf.live.bench import BenchResult

KINDS = (".png", ".svg")


def drawable(path: Path, *, force: bool) -> None:
    """Make sure that the plot can be written, asked before minutes are spent on what it shows.

    Raises:
        InputError: neither PNG nor SVG, there already, or in a folder that does not exist.
        UnavailableError: matplotlib is not installed.
    """
    from importlib.util import find_spec

    if path.suffix.lower() not in KINDS:
        raise InputError(f"--plot: {path} is neither a .png nor a .svg file")
    if path.exists() and not force:
        raise InputError(f"--plot: {path} exists; use --force to overwrite it")
    if not path.absolute().parent.is_dir():
        raise InputError(f"--plot: the folder {path.absolute().parent} does not exist")
    if find_spec("matplotlib") is None:
        raise UnavailableError("--plot needs matplotlib: pip install 'dsconf[plot]'")


def draw(result: BenchResult, path: Path) -> None:
    """Draw two bar charts beside each other, tokens a second and peak memory, written whole or not at all."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = [row.strategy for row in result.rows]
    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    speed, memory = figure.subplots(1, 2)
    bars = speed.bar(names, [row.tokens_per_second or 0 for row in result.rows])
    speed.bar_label(bars, fmt="{:,.0f}")
    speed.set_title("tokens a second")
    bars = memory.bar(names, [(row.peak_bytes or 0) / GIB for row in result.rows])
    memory.bar_label(bars, fmt="{:.2f}")
    memory.set_title("peak memory of the fullest rank, GiB")
    for axes in (speed, memory):
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(y=0.15)
    figure.suptitle(f"{result.global_batch} sequences of {result.seq_len} tokens a step on {result.device}")
    drawn = BytesIO()
    figure.savefig(drawn, format=path.suffix.lower().removeprefix("."))
    write_whole(path, drawn.getvalue())
