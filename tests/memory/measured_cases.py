"""The measured cases, read as the accuracy benchmark reads them."""

from __future__ import annotations

from pathlib import Path

REPO = Path(__file__).parents[2]
MEASURED = REPO / "tests" / "measured"
MIB = 2**20
