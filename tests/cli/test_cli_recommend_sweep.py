"""``dsconf recommend --gpus 8,16,32`` as a person runs it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from click.testing import CliRunner, Result

from dsconf.cli import group
from dsconf.resources import text

JOB = ("--params", "1B", "--gpu", "h100-80gb")


def run(*words: str) -> Result:
    return CliRunner().invoke(group, ["recommend", *words], prog_name="dsconf")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test runs in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_table_with_hours_and_cost(here: Path) -> None:
    result = run(*JOB, "--gpus", "8,16,32,64", "--tokens", "1T", "--price", "2.5")
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    rows = [line.split()[0] for line in result.stdout.splitlines() if line.lstrip()[:1].isdigit()]
    assert rows[-4:] == ["8", "16", "32", "64"]
    assert "Fastest" in result.stdout
    assert "The global batch differs, from" in result.stdout
    assert list(here.iterdir()) == [], "nothing is written unasked"


def test_json_equals_single_questions(here: Path) -> None:
    result = run(*JOB, "--gpus", "8,16", "--tokens", "1T", "--price", "2.5", "--format", "json")
    assert result.stderr == ""
    found: dict[str, Any] = json.loads(result.stdout)
    for row in found["sweep"]:
        words = ("--gpus", str(row["gpus"]), "--tokens", "1T", "--price", "2.5", "--format", "json")
        alone = json.loads(run(*JOB, *words).stdout)
        assert row["recommended"]["config"] == alone["recommended"]["config"]
        assert row["tokens_per_second"] == alone["recommended"]["tokens_per_second"]
        assert row["cost"] == alone["cost"]
    assert found["files"] == []
    assert list(here.iterdir()) == []


def test_each_number_gets_a_folder_of_its_own(here: Path) -> None:
    result = run(*JOB, "--gpus", "8,16", "-o", "run", "--format", "json")
    assert result.exit_code == 0, result.output
    for row in json.loads(result.stdout)["sweep"]:
        config = json.loads((here / "run" / f"{row['gpus']}-gpus" / "ds_config.json").read_text())
        assert config == row["recommended"]["config"]
        assert config["train_batch_size"] % row["gpus"] == 0
        assert str(Path("run") / f"{row['gpus']}-gpus" / "ds_config.json") in row["files"]


def test_nothing_is_written_where_one_file_is_in_the_way(here: Path) -> None:
    mine = here / "run" / "16-gpus" / "ds_config.json"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    result = run(*JOB, "--gpus", "8,16", "-o", "run")
    assert result.exit_code == 2
    assert "already exists; use --force" in result.stderr
    assert [path for path in here.rglob("*") if path.is_file()] == [mine]
    assert run(*JOB, "--gpus", "8,16", "-o", "run", "--force").exit_code == 0
    assert mine.read_text() != "mine"


def test_no_only_where_nothing_fits_on_any() -> None:
    words = ("--params", "70B", "--gpu-memory", "40GiB", "--offload", "none", "--seq-len", "512")
    some = run(*words, "--gpus", "8,64")
    assert some.exit_code == 0, some.output
    assert "On 8: Nothing fits." in some.stdout
    none = run(*words, "--gpus", "1,8")
    assert none.exit_code == 1
    assert "Nothing fits on any of these numbers of GPUs." in none.stdout


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--gpus", "8,x"), "--gpus: 8,x is not a number of GPUs, nor several such as 8,16,32"),
        (("--gpus", "8,0"), "--gpus: 8,0 is not"),
        (("--gpus", "8,"), "--gpus: 8, is not"),
        (("--gpus", "8,3", "--global-batch-size", "64"), "no multiple of each of 3, 8 GPUs; nearest: 48 and 72"),
        (("--gpus", "8,16", "--check"), "--check proves one config: give it a single number of --gpus"),
        (("--gpus", "8,16", "--price", "2"), "--price needs --tokens"),
    ],
)
def test_a_mistake_is_one_line_and_exit_2(words: tuple[str, ...], told: str, here: Path) -> None:
    result = run(*JOB, *words)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert told in result.stderr
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(
    "words",
    [
        ("--gpus", "8", "--tokens", "1T", "--price", "2.5"),
        ("--gpus", "8", "--params", "70B", "--offload", "none"),
        ("--gpus", "1,8", "--params", "70B", "--offload", "none"),
        ("--gpus", "8,32", "--tokens", "1T"),
        ("--gpus", "16", "--lora-rank", "8", "--gpu", "rtx-4090"),
    ],
)
def test_json_is_what_its_schema_says(words: tuple[str, ...]) -> None:
    schema = json.loads(text("schemas", "recommend.schema.json"))
    document = json.loads(run(*JOB, *words, "--format", "json").stdout)
    jsonschema.Draft202012Validator(schema).validate(document)
    assert ("sweep" in document) == ("," in words[1])


def test_more_gpus_than_any_cluster_has_are_wrong_usage(here: Path) -> None:
    result = run(*JOB, "--gpus", "8,131073")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "--gpus: 131073 is more than 131072, the most that dsconf plans for" in result.stderr


def test_the_network_counts_on_several_nodes_and_is_told(here: Path) -> None:
    words = (*JOB, "--gpus", "8,16", "--offload", "none", "--format", "json")
    assumed, stated = (json.loads(run(*words, *network).stdout) for network in ((), ("--network", "25Gbit/s")))
    assert assumed["assumption"] == "network 400 Gbit/s a GPU (assumed, --network)"
    assert stated["assumption"] is None
    rates = [[row["tokens_per_second"] for row in found["sweep"]] for found in (assumed, stated)]
    assert rates[0][0] == rates[1][0], "one node has no use for it"
    assert rates[0][1] > rates[1][1]
    assert [row["cluster"]["network_bytes_per_second"] for row in stated["sweep"]] == [3_125_000_000] * 2
    line = run(*JOB, "--gpus", "8,16", "--offload", "none", "--network", "25Gbit/s").stdout.splitlines()[1]
    assert line.endswith(", up to 8 in a node, network 25 Gbit/s a GPU")
