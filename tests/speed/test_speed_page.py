"""docs/speed.md tells the truth."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from dsconf.speed import rates

REPO = Path(__file__).parents[2]
PAGE = (REPO / "docs" / "speed.md").read_text(encoding="utf-8")


def test_the_tables_are_what_the_model_says() -> None:
    command = [sys.executable, "-m", "tools.docs.speed_page"]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_every_constant_is_in_the_table_with_its_source() -> None:
    names = {name for name in vars(rates) if name.isupper()}
    listed = {name for cell in re.findall(r"^\| `([A-Z_0-9, ]+)`", PAGE, re.MULTILINE) for name in cell.split(", ")}
    assert listed == names


def test_the_files_it_names_are_there() -> None:
    named = set(re.findall(r"`(?:dsconf/speed/)?(\w+\.py)`", PAGE))
    assert {name for name in named if not (REPO / "dsconf" / "speed" / name).exists()} == set()
    for path in re.findall(r"`((?:tests|benchmarks|tools|dsconf)/[\w./-]+)`", PAGE):
        assert (REPO / path).exists(), path


def test_the_readme_has_the_same_figures() -> None:
    readme = (REPO / "README.md").read_text(encoding="utf-8")
    short = re.findall(r"^\| (?:own|published).*\| (\d+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", readme, re.MULTILINE)
    row = r"^\| set: (?:own|published)[^|]*\| +(\d+) \| +([\d.]+) \| +([\d.]+) \| +([\d.]+) \|"
    assert len(short) == 5
    assert sorted(short) == sorted(re.findall(row, PAGE, re.MULTILINE))


def test_its_example_runs() -> None:
    (example,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    done = subprocess.run([sys.executable, "-c", example], capture_output=True, text=True, timeout=60, cwd=REPO)
    assert done.returncode == 0, done.stderr
    assert "tokens/s" in done.stdout
