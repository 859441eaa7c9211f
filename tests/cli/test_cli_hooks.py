"""What other programs find dsconf by: the pre-commit hooks and GitHub's problem matcher."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from dsconf.cli import group

ROOT = Path(__file__).resolve().parents[2]
MANIFEST = ROOT / ".pre-commit-hooks.yaml"
MATCHER = ROOT / ".github" / "dsconf-matcher.json"
TYPO = '{"train_batch_size": 8, "gradient_clipping": 1.0, "zero_optimisation": {"stage": 2}}\n'


@pytest.fixture(scope="module")
def hooks():
    """The manifest as pre-commit itself reads and checks it."""
    clientlib = pytest.importorskip("pre_commit.clientlib")
    return {hook["id"]: hook for hook in clientlib.load_manifest(MANIFEST)}


@pytest.mark.parametrize(("name", "exit_code"), [("dsconf-validate", 1), ("dsconf-fix", 0)])
def test_the_entry_of_a_hook_runs(hooks, name, exit_code, tmp_path):
    (tmp_path / "ds_config.json").write_text(TYPO)
    command = [sys.executable, "-m", *shlex.split(hooks[name]["entry"]), "ds_config.json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == exit_code, done.stderr
    assert ("zero_optimization" in (tmp_path / "ds_config.json").read_text()) is (exit_code == 0)


def test_the_hooks_look_at_ds_configs_alone(hooks):
    for hook in hooks.values():
        looks_at = re.compile(hook["files"]).search
        assert all(
            map(looks_at, ["ds_config.json", "conf/ds_z3.hjson", "a/zero2.json", "deepspeed/deepspeed_cfg.json"])
        )
        assert not any(map(looks_at, ["package.json", "config/zero2.yaml", "ds_config.json.bak", "deepspeed/x.json"]))


def matched(line):
    (matcher,) = json.loads(MATCHER.read_text())["problemMatcher"]
    (pattern,) = matcher["pattern"]
    found = re.search(pattern["regexp"], line)
    return found and {name: found[group] for name, group in pattern.items() if name != "regexp"}


def test_the_problem_matcher_reads_every_line_but_the_summary(tmp_path):
    (tmp_path / "typo.json").write_text(TYPO)
    files = [str(tmp_path / name) for name in ("typo.json", "none.json")]
    *lines, summary = CliRunner().invoke(group, ["validate", *files]).stdout.splitlines()
    assert [matched(line) for line in lines] == [
        {
            "file": files[0],
            "line": "1",
            "column": "51",
            "severity": "error",
            "code": "DS101",
            "message": "zero_optimisation: unknown key; did you mean 'zero_optimization'?",
        },
        {
            "file": files[1],
            "line": None,
            "column": None,
            "severity": "error",
            "code": "DS001",
            "message": "no such file",
        },
    ]
    assert matched(summary) is None
