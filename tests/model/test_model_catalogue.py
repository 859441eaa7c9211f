"""The catalogue: published counts to the parameter, names as people write them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import dsconf.model
from dsconf.errors import InputError
from dsconf.model.catalogue import Entry, catalogue, find
from dsconf.model.read import read_model

DOCUMENT = json.loads((Path(dsconf.model.__file__).parent / "catalogue.json").read_text(encoding="utf-8"))
COUNTED = [entry for entry in catalogue() if entry.num_params is not None]


@pytest.mark.parametrize("entry", COUNTED, ids=lambda entry: entry.name)
def test_count_is_the_published_one(entry: Entry) -> None:
    assert read_model(model=entry.name).num_params == entry.num_params


def test_most_entries_have_a_published_count() -> None:
    assert len(COUNTED) >= 60
    assert {e.name for e in catalogue()} - {e.name for e in COUNTED} == {
        "facebook/opt-6.7b",
        "facebook/opt-13b",
        "facebook/opt-30b",
        "facebook/opt-66b",
        "microsoft/phi-1",
        "tiiuae/falcon-7b",
        "tiiuae/falcon-40b",
        "tiiuae/falcon-180B",
    }


@pytest.mark.parametrize(("name", "row"), DOCUMENT["models"].items(), ids=str)
def test_every_value_has_a_source_or_says_that_it_has_none(name: str, row: dict[str, Any]) -> None:
    assert set(row) <= {"config", "num_params", "count_source", "source", "unconfirmed"}
    assert row["source"]
    assert all(key in DOCUMENT["sources"] or key.startswith("https://") for key in row["source"])
    assert set(row.get("unconfirmed", ())) < set(row["config"])
    assert ("num_params" in row) == bool(row.get("count_source"))
    assert set(row.get("count_source", ())) <= set(DOCUMENT["sources"])
    entry = find(name)
    assert entry is not None
    assert all(address.startswith("https://") for address in entry.source.split("; "))


@pytest.mark.parametrize("entry", [entry for entry in catalogue() if entry.unconfirmed], ids=lambda entry: entry.name)
def test_an_unconfirmed_value_is_the_default_of_transformers(entry: Entry) -> None:
    transformers = pytest.importorskip("transformers")
    rest = {key: value for key, value in entry.config.items() if key not in entry.unconfirmed}
    config = transformers.AutoConfig.for_model(**rest)
    assert {key: getattr(config, key) for key in entry.unconfirmed} == {
        key: entry.config[key] for key in entry.unconfirmed
    }


def test_what_decides_the_parameters_is_confirmed() -> None:
    loose = {key for row in DOCUMENT["models"].values() for key in row.get("unconfirmed", ())}
    shapes = {"hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "vocab_size"}
    assert not loose & (shapes | {"intermediate_size", "ffn_dim", "tie_word_embeddings", "head_dim"})


def test_every_source_is_used() -> None:
    used = {key for row in DOCUMENT["models"].values() for key in (*row["source"], *row.get("count_source", ()))}
    assert set(DOCUMENT["sources"]) <= used


@pytest.mark.parametrize("entry", catalogue(), ids=lambda entry: entry.name)
def test_count_is_that_of_transformers(entry: Entry) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    shape = dict(entry.config)
    layers = {"n_layer", "num_hidden_layers"} & set(shape)
    shape |= dict.fromkeys(layers, 1)  # one layer: every shape and count but the number of layers, in a moment
    tokens = {"pad_token_id": 1 if shape["model_type"] == "opt" else None}
    with torch.device("meta"):
        module = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**shape, **tokens))
    assert read_model(model=shape).num_params == sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-8B"),
        ("llama-3.1-8b", "meta-llama/Llama-3.1-8B"),
        ("Meta-Llama-3.1-8B-Instruct", "meta-llama/Llama-3.1-8B"),
        ("meta-llama/Llama-3.3-70B-Instruct", "meta-llama/Llama-3.3-70B-Instruct"),
        ("gpt2", "openai-community/gpt2"),
        ("google/gemma-2-9b-it", "google/gemma-2-9b"),
        ("Mistral-7B-Instruct-v0.3", "mistralai/Mistral-7B-v0.3"),
        ("qwen2.5-7b-instruct", "Qwen/Qwen2.5-7B"),
        ("BLOOM", "bigscience/bloom"),
    ],
)
def test_names_as_people_write_them(written: str, meant: str) -> None:
    entry = find(written)
    assert entry is not None
    assert entry.name == meant
    assert read_model(model=written).name == written


def test_names_are_unambiguous() -> None:
    names = [entry.name.lower() for entry in catalogue()]
    assert len({name.rpartition("/")[2] for name in names}) == len(names)
    for entry in catalogue():
        assert find(entry.name) == entry


def test_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(InputError, match=r"'lama-3.1-8b' is neither a file .*did you mean .*Llama-3.1-8B"):
        read_model(model="lama-3.1-8b")


def test_a_size_reads_no_catalogue_and_no_json() -> None:
    code = (
        "import sys; from dsconf.model.read import read_model; read_model(params='70B');"
        "print([m for m in ('json', 'dsconf.model.catalogue', 'torch', 'difflib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
