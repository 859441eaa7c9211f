"""Keeps the tables of docs/speed.md true: the constants, and the accuracy on measured and published step times.

python -m tools.docs.speed_page            exit 1 and show the difference if the page is stale
python -m tools.docs.speed_page --write    put the tables as they are now into the page
"""

from __future__ import annotations

import re
from pathlib import Path

from benchmarks.memory import accuracy
from benchmarks.speed import accuracy as speed
from dsconf.speed import rates
from tools.docs.stale import main

REPO = Path(__file__).resolve().parents[2]

PAGE = REPO / "docs" / "speed.md"
TABLE = re.compile(r"(?<=^<!-- table: )(\w+)( -->\n).*?(?=^<!-- end -->$)", re.MULTILINE | re.DOTALL)
CONSTANT = re.compile(r'^([A-Z][A-Z_0-9, ]*) = ([^\n]*)\n"""(.*?)"""', re.MULTILINE | re.DOTALL)


def constants() -> str:
    """List every figure of ``rates.py`` with the source it names there."""
    text = Path(str(rates.__file__)).read_text(encoding="utf-8")
    rows = [[f"`{name}`", value, " ".join(says.split())] for name, value, says in CONSTANT.findall(text)]
    return accuracy.table(("constant", "value", "what it is, and from where"), rows, "github") + "\n"


def errors() -> str:
    """Compute the absolute errors of step times, in percent."""
    results = [speed.result_of(row) for path in speed.FILES for row in accuracy.read(path) if speed.timed(row)]
    return accuracy.table(speed.SUMMARY_HEADERS, speed.summary(results), "github") + "\n"


TABLES = {"constants": constants, "errors": errors}


def refreshed(page: str) -> str:
    """Return ``page`` with each table as it is now."""
    return TABLE.sub(lambda block: block[1] + block[2] + TABLES[block[1]](), page)


if __name__ == "__main__":
    main(PAGE, refreshed, __doc__)
