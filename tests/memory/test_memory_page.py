"""docs/memory.md tells the truth."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).parents[2]
PAGE = (REPO / "docs" / "memory.md").read_text(encoding="utf-8")


def test_the_tables_are_what_the_model_says() -> None:
    command = [sys.executable, "-m", "tools.docs.memory_page"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=REPO)
    assert done.returncode == 0, done.stderr


def test_the_files_it_names_are_there() -> None:
    named = set(re.findall(r"`(?:memory/)?(\w+\.py)`", PAGE))
    assert {name for name in named if not (REPO / "dsconf" / "memory" / name).exists()} == set()
    for path in re.findall(r"`((?:tests|benchmarks|tools)/[\w./-]+)`", PAGE):
        assert (REPO / path).exists(), path
