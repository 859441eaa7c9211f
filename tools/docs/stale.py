"""Refreshes the generated parts of a page on ``--write``, or else compares them with what they would be now."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Callable
from pathlib import Path


def main(page: Path, refreshed: Callable[[str], str], description: str | None) -> None:
    """Run the calling script: rewrite ``page``, or end with the difference and exit code 1."""
    root, script = Path(__file__).parents[2], Path(sys.argv[0]).stem
    name = page.relative_to(root).as_posix()
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help=f"refresh {name}")
    write: bool = parser.parse_args().write
    before = page.read_text(encoding="utf-8")
    after = refreshed(before)
    if write:
        page.write_text(after, encoding="utf-8")
    elif after != before:
        rows = difflib.unified_diff(before.splitlines(), after.splitlines(), name, "now", lineterm="")
        sys.exit("\n".join([*rows, f"{name} is stale; refresh it with: python -m tools.docs.{script} --write"]))
