"""Return the page of a rule, docs/rules/CODE.md, as data."""

from __future__ import annotations

from typing import NamedTuple


class RulePage(NamedTuple):
    """A code, its page's heading in plain words, and the page as Markdown."""

    code: str
    title: str
    text: str


def rule_page(code: str) -> RulePage:
    """Return the page of ``code``; a code without one has itself as the title."""
    from dsconf.resources import text

    try:
        page = text("rules", f"{code}.md")
    except FileNotFoundError:
        return RulePage(code, code, "")
    heading = page.partition("\n")[0].lstrip("# ").strip()
    return RulePage(code, heading.removeprefix(code).lstrip(":. —-") or code, page)
