"""docs/rules: a page for each code, and each page is true of the tool and of DeepSpeed's parser."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from rule_pages import FOLDER, PAGES

import dsconf
from dsconf.cli.validate import command

PACKAGE = Path(dsconf.__file__).parent
SOURCES = [*(PACKAGE / "config").rglob("*.py"), PACKAGE / "api.py"]
ONLY_SEVERITY = ("DS901",)
"""Codes that are always reported: what changes is how bad it is."""
IDS = [page.code for page in PAGES]


def emitted() -> set[str]:
    """Every code that stands in the source as a string of its own."""
    nodes = [node for path in SOURCES for node in ast.walk(ast.parse(path.read_text()))]
    texts = [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return {text for text in texts if re.fullmatch(r"DS\d{3}", text)}


def with_severities() -> set[tuple[str, str]]:
    """Every (code, severity) that the source makes with both written out."""
    found = set()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("Problem", "Finding"):
                values = [arg.value for arg in node.args[:2] if isinstance(arg, ast.Constant)]
                found |= {tuple(values)} if len(values) == 2 else set()
    return found


def validate(folder, text, words):
    (folder / "ds_config.json").write_text(text)
    result = CliRunner().invoke(command, [str(folder / "ds_config.json"), *words, "--format", "json"])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.output
    return [(found["code"], found["severity"]) for found in json.loads(result.stdout)["files"][0]["findings"]]


def test_every_code_has_a_page_and_every_page_a_code():
    assert [path.stem for path in sorted(FOLDER.glob("DS*.md"))] == IDS
    assert emitted() == set(IDS)


def test_every_severity_is_on_its_page():
    documented = {(page.code, severity) for page in PAGES for severity in page.severities}
    assert with_severities() - documented == set()


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_the_first_example_is_reported_and_the_second_is_not(page, tmp_path):
    """Beside its code an example may have notes, but no other error or warning."""
    found = validate(tmp_path, page.before, page.words)
    assert (page.code, page.severities[0]) in found
    assert {code for code, severity in found if severity != "note"} <= {page.code}
    found = validate(tmp_path, page.after, page.words)
    assert [severity for _, severity in found if severity != "note"] == []
    assert page.code not in [code for code, _ in found] or page.code in ONLY_SEVERITY


def test_the_index_lists_every_page():
    rows = re.findall(
        r"^\| \[(DS\d{3})\]\((DS\d{3})\.md\) \| (.+?) \| (.+?) \|$", (FOLDER / "README.md").read_text(), re.M
    )
    assert rows == [(page.code, page.code, ", ".join(page.severities), page.title) for page in PAGES]


REFUSED_WHEN_READ = (
    *("DS001", "DS002", "DS003", "DS102", "DS103", "DS104", "DS105", "DS108", "DS201", "DS202", "DS302"),
    *("DS316", "DS405", "DS501", "DS503", "DS504", "DS510", "DS609"),
)
"""Codes whose first example DeepSpeed refuses before it builds an engine."""


@pytest.fixture(scope="module")
def parse():
    """DeepSpeed's own reading of a file on ``gpus`` ranks, without processes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DS_ACCELERATOR", "cpu")
        module = pytest.importorskip("deepspeed.runtime.config")

        def read(file, gpus):
            patch.setattr(module, "dist", SimpleNamespace(get_rank=lambda: 0, get_world_size=lambda: gpus))
            return module.DeepSpeedConfig(str(file))

        yield read


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_deepspeed_reads_the_examples_as_the_pages_say(page, parse, tmp_path):
    file = tmp_path / "ds_config.json"
    gpus = int(page.words[page.words.index("--gpus") + 1]) if "--gpus" in page.words else 8
    if '"auto"' not in page.after:
        file.write_text(page.after)
        parse(file, gpus)
    if page.code in REFUSED_WHEN_READ:
        file.write_text(page.before)
        with pytest.raises(Exception, match=r"\S"):
            parse(file, gpus)
