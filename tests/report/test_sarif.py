"""The SARIF that is printed is valid, and says what the text says at the same places."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest

from dsconf.config.validate import validate
from dsconf.report.rules import rule_page
from dsconf.report.sarif import sarif

# Copied from SchemaStore, src/schemas/json/sarif-2.1.0.json (Apache License 2.0).
SCHEMA = json.loads((Path(__file__).parent / "data" / "sarif-2.1.0.json").read_text())
TEXTS = {
    "good.json": '{"train_batch_size": 8, "gradient_clipping": 1, "zero_optimization": {"stage": 2}}',
    "typo.json": '{\n// why\n"train_batch_size": 8, "gradient_clipping": 1,\n  "zero_optimisation": {"stage": 2}\n}',
    "cut.json": '{"train_batch_size": ',
    "with space é.json": '{"train_batch_size": 8, "_é": 1, "amp": {},\r\n "xyzzy": NaN\n}',
}


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, text in TEXTS.items():
        (tmp_path / name).write_bytes(text.encode())
    document = sarif(validate([*TEXTS, "none.json", str(tmp_path / "typo.json")]), "1.2.3")
    jsonschema.Draft7Validator(SCHEMA).validate(document)
    (only,) = document["runs"]
    return only


def results(run, uri):
    return [r for r in run["results"] if r["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] == uri]


def test_the_schema_would_refuse_a_wrong_document(run):
    run["results"][0]["level"] = "fatal"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft7Validator(SCHEMA).validate({"version": "2.1.0", "runs": [run]})


def test_every_result_names_its_rule_and_its_file(run):
    rules, artifacts = run["tool"]["driver"]["rules"], run["artifacts"]
    assert [rule["id"] for rule in rules] == sorted({result["ruleId"] for result in run["results"]})
    for result in run["results"]:
        assert rules[result["ruleIndex"]]["id"] == result["ruleId"]
        artifact = result["locations"][0]["physicalLocation"]["artifactLocation"]
        assert artifacts[artifact["index"]]["location"]["uri"] == artifact["uri"]


def test_a_result_is_the_finding(run):
    note, error = results(run, "typo.json")
    assert (note["ruleId"], note["level"]) == ("DS004", "note")
    assert (error["ruleId"], error["level"]) == ("DS101", "error")
    assert error["message"]["text"] == "zero_optimisation: unknown key; did you mean 'zero_optimization'?"
    (place,) = error["locations"]
    assert place["physicalLocation"]["region"] == {"startLine": 4, "startColumn": 3, "endColumn": 22}
    assert place["logicalLocations"] == [{"fullyQualifiedName": "zero_optimisation", "kind": "member"}]


def test_a_fix_is_a_replacement_at_its_place(run):
    _, error = results(run, "typo.json")
    (fix,) = error["fixes"]
    (replacement,) = fix["artifactChanges"][0]["replacements"]
    assert replacement == {
        "deletedRegion": {"startLine": 4, "startColumn": 15, "endLine": 4, "endColumn": 16},
        "insertedContent": {"text": "z"},
    }


def test_files_are_uris(run):
    uris = [artifact["location"]["uri"] for artifact in run["artifacts"]]
    assert uris[:5] == ["good.json", "typo.json", "cut.json", "with%20space%20%C3%A9.json", "none.json"]
    assert uris[5].startswith("file:///")


def test_a_file_that_is_not_there_has_no_region(run):
    (result,) = results(run, "none.json")
    assert "region" not in result["locations"][0]["physicalLocation"]
    assert run["invocations"] == [{"executionSuccessful": False}]


def test_no_finding_is_no_result(run):
    assert results(run, "good.json") == []


def test_a_rule_carries_its_page(run):
    (rule,) = (rule for rule in run["tool"]["driver"]["rules"] if rule["id"] == "DS101")
    page = (Path(__file__).parents[2] / "docs" / "rules" / "DS101.md").read_text()
    assert rule["shortDescription"]["text"] == "unknown key"
    assert rule["help"] == {"text": page, "markdown": page}


def test_a_code_without_a_page_is_its_own_title():
    assert rule_page("DS000") == ("DS000", "DS000", "")
