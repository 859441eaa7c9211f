"""The generator sees every way in which DeepSpeed and the tables or the shipped schema can come apart."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

import pytest

pytest.importorskip("deepspeed")

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def generator():
    """tools/schema/generate_schema.py; DeepSpeed's words about probes that fail are kept out of the log."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DS_ACCELERATOR", "cpu")
        logging.disable(logging.CRITICAL)
        from tools.schema import generate_schema

        yield generate_schema
        logging.disable(logging.NOTSET)


def shipped() -> dict:
    return json.loads((ROOT / "schemas" / "ds_config-0.19.8.schema.json").read_text(encoding="utf-8"))


def test_the_shipped_schema_is_what_is_built(generator):
    assert generator.build() == shipped()


def test_a_stale_file_is_a_failure_that_shows_the_difference(generator, tmp_path, capsys):
    text = (ROOT / "schemas" / "ds_config-0.19.8.schema.json").read_text(encoding="utf-8")
    stale = tmp_path / "ds_config-0.19.8.schema.json"
    stale.write_text(text, encoding="utf-8")
    assert generator._compare(stale, text) == 0
    stale.write_text(text.replace('"default": 500000000', '"default": 5', 1), encoding="utf-8")
    assert generator._compare(stale, text) == 1
    assert '"default": 500000000' in capsys.readouterr().out
    assert generator._compare(tmp_path / "missing.json", text) == 1


@pytest.fixture
def newer(monkeypatch):
    """DeepSpeed as if it had brought out a release since."""
    monkeypatch.setattr("deepspeed.__version__", "0.19.10+0a1b2c3")
    monkeypatch.setattr(sys, "argv", ["generate_ds_config_schema.py", "--check"])


@pytest.mark.usefixtures("newer")
def test_a_newer_release_that_reads_the_same_is_well(generator, capsys):
    assert generator.main() == 0
    assert capsys.readouterr().out == "DeepSpeed 0.19.10 is newer than all in RELEASES, and reads what 0.19.8 does\n"


@pytest.mark.usefixtures("newer")
def test_a_newer_release_with_a_new_key_or_default_is_a_failure_that_says_what_to_do(generator, monkeypatch, capsys):
    from deepspeed.runtime import config

    with monkeypatch.context() as patch:
        patch.setattr(config, "get_dump_state", lambda params: params.get("dump_state", True))
        assert generator.main() == 1
    said = capsys.readouterr().out
    assert "DeepSpeed 0.19.10 reads its config otherwise than 0.19.8, the newest in RELEASES" in said
    assert '"default": true' in said
    monkeypatch.delitem(generator.BLOCKS["aio"], "use_gds")
    assert generator.main() == 1
    assert "aio: DeepSpeed reads 'use_gds', which no table describes" in capsys.readouterr().out


def test_a_key_that_only_deepspeed_knows_is_a_failure(generator, monkeypatch):
    monkeypatch.delitem(generator.BLOCKS["aio"], "use_gds")
    with pytest.raises(KeyError, match="aio: DeepSpeed reads 'use_gds', which no table describes"):
        generator.build()


def test_a_key_that_only_the_tables_know_is_a_failure(generator, monkeypatch):
    monkeypatch.setitem(generator.TOP, "dump_everything", generator.TOP["dump_state"])
    with pytest.raises(KeyError, match="'dump_everything' is described, but DeepSpeed does not read it"):
        generator.build()


def test_a_new_default_of_deepspeeds_parser_shows(generator, monkeypatch):
    from deepspeed.runtime import config

    monkeypatch.setattr(config, "get_dump_state", lambda params: params.get("dump_state", True))
    assert generator.build()["properties"]["dump_state"]["default"] is True
    assert shipped()["properties"]["dump_state"]["default"] is False


def test_a_new_top_level_key_of_deepspeeds_parser_is_a_failure(generator, monkeypatch):
    from deepspeed.runtime import config

    monkeypatch.setattr(config, "get_dump_state", lambda params: params.get("dump_all") or params.get("dump_state"))
    with pytest.raises(KeyError, match="top level: DeepSpeed reads 'dump_all'"):
        generator.build()


def test_a_new_field_of_a_model_is_a_failure(generator, monkeypatch):
    from deepspeed.compile.config import CompileConfig

    class Newer(CompileConfig):
        tile: int = 8

    Newer.__name__ = "CompileConfig"
    monkeypatch.setattr("deepspeed.compile.config.CompileConfig", Newer)
    with pytest.raises(KeyError, match=r"compile: say in tools/schema/words.py what \['tile'\] do"):
        generator.build()


def test_a_new_limit_in_a_validator_shows(generator, monkeypatch):
    from deepspeed.runtime import config
    from pydantic import field_validator

    class Stricter(config.CompileConfig):
        @field_validator("free_activation_threshold")
        @classmethod
        def positive(cls, value):
            assert value > 0
            return value

    Stricter.__name__ = "CompileConfig"
    monkeypatch.setattr(config, "CompileConfig", Stricter)
    threshold = generator.build()["$defs"]["compile"]["properties"]["free_activation_threshold"]
    assert threshold["minimum"] == 1
    assert "minimum" not in shipped()["$defs"]["compile"]["properties"]["free_activation_threshold"]


def test_looking_in_any_way_is_noted_with_its_default(generator):
    from tools.schema.reads import UNSET, Watched

    reads = {}
    config = Watched({"a": {"b": 1}, "c": 2}, reads)
    assert (config.get("x", 7), config["a"].get("b"), "y" in config, "z" in config.keys()) == (7, 1, False, False)  # noqa: SIM118
    assert (config.pop("c"), list(config.keys())) == (2, ["a"])
    assert reads == {(): {"x": 7, "a": UNSET, "y": UNSET, "z": UNSET, "c": UNSET}, ("a",): {"b": None}}
