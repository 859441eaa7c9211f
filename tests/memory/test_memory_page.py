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
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_the_files_it_names_are_there() -> None:
    for path in re.findall(r"`((?:dsconf|tests|benchmarks|tools)/[\w./-]+)`", PAGE):
        assert (REPO / path).exists(), path


def test_it_does_not_repeat_the_layout() -> None:
    """A module that moves is nobody's reason to change the page."""
    prose = re.sub(r"<!-- table.*?<!-- end -->", "", PAGE, flags=re.DOTALL)
    assert re.findall(r"`(?:memory/)?\w+\.py`", prose) == []
