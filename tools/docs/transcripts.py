"""Keeps the README honest: runs the commands of its ``console`` blocks and compares what they print.

    python -m tools.docs.transcripts            exit 1 and show the difference if the README is stale
    python -m tools.docs.transcripts --write    put what the commands print now into the README

A ``console`` block is shell lines that begin with ``$ ``, each followed by what it prints on either stream.
All blocks run in one empty folder, in order, so that a later one can use the files of an earlier one.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from tools.docs.stale import main

REPO = Path(__file__).resolve().parents[2]
README = REPO / "README.md"
BLOCK = re.compile(r"(?<=^```console\n).*?(?=^```$)", re.MULTILINE | re.DOTALL)


def _environment(folder: Path) -> dict[str, str]:
    """Return the caller's environment, with a ``dsconf`` that is this checkout under this Python, and 80 plain
    columns."""
    script = folder / "dsconf"
    script.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m dsconf "$@"\n', encoding="utf-8")
    script.chmod(0o755)
    path = os.pathsep.join([str(folder), os.environ["PATH"]])
    return {**os.environ, "PATH": path, "PYTHONPATH": str(REPO), "COLUMNS": "80", "LC_ALL": "C.UTF-8"}


def replay(text: str) -> str:
    """Replace the output of every ``console`` command in ``text`` by what it prints now."""
    with tempfile.TemporaryDirectory() as work, tempfile.TemporaryDirectory() as scripts:
        environment = _environment(Path(scripts))

        def run_block(block: re.Match[str]) -> str:
            commands = [line for line in block[0].splitlines() if line.startswith("$ ")]
            return "".join(_transcript(command, work, environment) for command in commands)

        return BLOCK.sub(run_block, text)


def _transcript(line: str, folder: str, environment: dict[str, str]) -> str:
    done = subprocess.run(
        ["bash", "-c", line.removeprefix("$ ")],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )
    printed = "".join(f"{row.rstrip()}\n" for row in done.stdout.splitlines())
    return f"{line}\n{printed}"


if __name__ == "__main__":
    main(README, replay, __doc__)
