"""tools/compile_kernels.py compiles once for each torch, DeepSpeed and ninja, and anew where it was interrupted."""

from __future__ import annotations

import os
from pathlib import Path
from runpy import run_path
from typing import Any

import pytest

TOOL = Path(__file__).parents[1] / "tools" / "compile_kernels.py"


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The tool, whose folder is under ``tmp_path`` and whose compiler leaves a file behind."""
    pytest.importorskip("deepspeed")
    monkeypatch.setenv("PATH", os.environ["PATH"])  # the tool appends to it
    names: dict[str, Any] = run_path(str(TOOL))["main"].__globals__
    folder = tmp_path / "kernels"

    def compiles() -> bool:
        (folder / "made").open("a").write("x")
        return True

    names.update(FOLDER=folder, _compile=compiles)
    return names


def made(tool: dict[str, Any]) -> str:
    text: str = (tool["FOLDER"] / "made").read_text()
    return text


def test_what_is_compiled_is_kept(tool: dict[str, Any]) -> None:
    assert [tool["main"](), tool["main"]()] == [0, 0]
    assert made(tool) == "x"


def test_another_ninja_compiles_again(tool: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tool["main"]()
    ninja = tmp_path / "ninja"
    ninja.write_text("#!/bin/sh\n")
    ninja.chmod(0o755)
    (tool["FOLDER"] / "old").touch()
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert tool["main"]() == 0
    assert not (tool["FOLDER"] / "old").exists()


def test_after_a_failure_all_is_compiled_again_without_the_locks_left_behind(tool: dict[str, Any]) -> None:
    works = tool["_compile"]

    def fails() -> bool:
        (tool["FOLDER"] / "lock").touch()
        return False

    tool["_compile"] = fails
    assert tool["main"]() == 1
    tool["_compile"] = works
    assert tool["main"]() == 0
    assert made(tool) == "x"
    assert not (tool["FOLDER"] / "lock").exists()
