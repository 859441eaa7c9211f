"""The pages of docs/rules, read for tests: each shows a config that is reported and one that is not."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "rules"


class Page(NamedTuple):
    """What a page says about its code."""

    code: str
    title: str
    severities: tuple[str, ...]
    """The first is that of the example."""
    words: tuple[str, ...]
    """Options of ``dsconf validate`` in the example."""
    before: str
    after: str


def read_page(path: Path) -> Page:
    """The page at ``path``; a ValueError or StopIteration where it has not the form of the others."""
    text = path.read_text()
    code, title = re.match(r"# (DS\d{3}): (.+)\n", text).groups()  # type: ignore[union-attr]
    severities = re.search(r"^Severity: (.+)$", text, re.M)[1].replace("*", "").split(", ")  # type: ignore[index]
    command = re.search(rf"^`(dsconf validate ds_config\.json.*?)` reports {code} for$", text, re.M)[1]  # type: ignore[index]
    before, after = re.findall(r"^```(?:json|text)\n(.*?)^```$", text, re.M | re.S)
    if re.findall(r"^## (.+)$", text, re.M) != ["Why", "How to fix it", "Example"]:
        raise ValueError(f"{path}: other headings")
    return Page(code, title, tuple(severities), tuple(shlex.split(command)[3:]), before, after)


PAGES = [read_page(path) for path in sorted(FOLDER.glob("DS*.md"))]
