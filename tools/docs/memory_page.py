"""Keeps the tables of docs/memory.md true: the terms, and the accuracy on each file of measured cases.

python -m tools.docs.memory_page            exit 1 and show the difference if the page is stale
python -m tools.docs.memory_page --write    put the tables as they are now into the page
"""

from __future__ import annotations

import re
from pathlib import Path

from tabulate import tabulate

from benchmarks.memory import accuracy
from dsconf.memory.terms import TERMS
from tools.docs.stale import main

REPO = Path(__file__).resolve().parents[2]

PAGE = REPO / "docs" / "memory.md"
TABLE = re.compile(r"(?<=^<!-- table: )([\w.-]+)( -->\n).*?(?=^<!-- end -->$)", re.MULTILINE | re.DOTALL)
WRAPPERS = {
    "zero12": "stages 1, 2",
    "zero3": "stage 3",
    "fp16": "stage 0 in 16 bit",
    "unfused": "stage 0 in 16 bit, not FusedAdam",
    "bf16": "stage 1 with fp32 accumulation",
    "none": "stage 0 in fp32",
    "ddp": "DDP",
}
"""The optimizer wrappers of memory/timeline/resident.py, as a person would name them."""


def terms() -> str:
    """List every term: what it is, and where it is allocated under each wrapper."""
    rows = []
    for name, term in TERMS.items():
        named = [f"{WRAPPERS[wrapper]}: {place}" for wrapper, place in term.places.items() if wrapper]
        other = term.places.get("")
        rows.append([name, term.formula, "; ".join(named + ([f"else {other}" if named else other] if other else []))])
    return _table(["term", "bytes", "allocated in"], rows)


def measured(file: str) -> str:
    """Compute the absolute errors on one file of tests/measured, in percent, beside those of DeepSpeed's estimators."""
    results = [accuracy.result_of(row) for row in accuracy.read(REPO / "tests" / "measured" / file)]
    return _table(list(accuracy.SUMMARY_HEADERS), accuracy.summary(results))


def _table(headers: list[str], rows: list[list[str]]) -> str:
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True) + "\n"


def refreshed(page: str) -> str:
    """Return ``page`` with each table as it is now."""

    def table(block: re.Match[str]) -> str:
        return block[1] + block[2] + (terms() if block[1] == "terms" else measured(block[1]))

    return TABLE.sub(table, page)


if __name__ == "__main__":
    main(PAGE, refreshed, __doc__)
