"""What people give as a model, right and wrong: one clear line for every mistake."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsconf.errors import InputError
from dsconf.model.attention import windowed_layers
from dsconf.model.families import FAMILIES
from dsconf.model.read import read_model

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 100,
}


def complaint(**words: Any) -> str:
    with pytest.raises(InputError) as failure:
        read_model(**words)
    assert "\n" not in str(failure.value)
    return str(failure.value)


def test_exactly_one_of_params_and_model() -> None:
    assert complaint() == "give either --params SIZE or --model NAME_OR_PATH"
    assert complaint(params="7B", model="gpt2") == "give either --params SIZE or --model NAME_OR_PATH, not both"


def test_a_file_a_folder_and_a_mapping_are_one_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    from_file = read_model(model=tmp_path / "config.json")
    from_folder = read_model(model=str(tmp_path))
    assert from_file.parameters == from_folder.parameters == read_model(model=LLAMA).parameters
    assert from_folder.name == str(tmp_path)
    assert from_file.hf_config == LLAMA


def test_counts_by_hand() -> None:
    layer = 4 * 64 * 64 + 3 * 64 * 96 + 2 * 64
    assert read_model(model=LLAMA).num_params == 2 * layer + 2 * 100 * 64 + 64
    assert read_model(model=LLAMA | {"tie_word_embeddings": True}).num_params == 2 * layer + 100 * 64 + 64


def test_text_part_of_a_multimodal_config() -> None:
    model = read_model(model={"model_type": "llava", "text_config": LLAMA, "vision_config": {}})
    assert model.name == "config (text part)"
    assert model.parameters == read_model(model=LLAMA).parameters
    assert model.hf_config == LLAMA


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not JSON: Expecting property name enclosed in double quotes at line 1, column 2"),
        ("", "not JSON: Expecting value at line 1, column 1"),
        ("[1]", "holds a JSON list, not an object"),
        ("{}", "has no model_type"),
        ('{"model_type": "llama", "hidden_size": ' + "9" * 5000 + "}", "not JSON: Exceeds the limit"),
        ("[" * 100000, "not JSON: "),
    ],
)
def test_files_that_are_no_config(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    message = complaint(model=path)
    assert message.startswith(f"{path}: ")
    assert words in message


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert complaint(model=str(tmp_path / "none.json")) == f"{tmp_path / 'none.json'}: no such file"
    assert complaint(model=str(tmp_path)) == f"{tmp_path}: the folder has no config.json"
    (tmp_path / "config.json").write_bytes(b"\xff\xfe{\x00")
    assert complaint(model=tmp_path).endswith("not JSON: the file is not text")
    assert "neither a file nor a model" in complaint(model="x" * 5000)
    assert "neither a file nor a model" in complaint(model="a\0b")
    assert complaint(model=7) == "--model is of type int, not a name, a path or a config"


def test_unknown_family_says_what_to_do() -> None:
    message = complaint(model={"model_type": "lama"})
    assert "model_type 'lama' is not a family dsconf reads; did you mean 'llama'?" in message
    assert all(family in message for family in FAMILIES)
    assert "--params SIZE gives an estimate for a llama-like shape of that size" in message


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hidden_size": None}, "hidden_size is None, not a positive whole number"),
        ({"hidden_size": 64.0}, "hidden_size is 64.0, not a positive whole number"),
        ({"hidden_size": True}, "hidden_size is True, not a positive whole number"),
        ({"hidden_size": 66}, "hidden_size 66 is not a multiple of num_attention_heads 4"),
        ({"hidden_size": 10**20}, "hidden_size is 1e+20, larger than in any model"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0, not a positive whole number"),
        ({"num_hidden_layers": -3}, "num_hidden_layers is -3, not a positive whole number"),
        ({"vocab_size": "many"}, "vocab_size is 'many', not a positive whole number"),
        ({"num_key_value_heads": 3}, "num_attention_heads 4 is not a multiple of num_key_value_heads 3"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings is 'yes', not true or false"),
        ({"attention_dropout": -0.1}, "attention_dropout is -0.1, not a number of at least 0"),
        ({"attention_dropout": 1.0}, "attention_dropout is 1.0, not a probability below 1"),
        ({"attention_dropout": float("nan")}, "attention_dropout is nan, not a number of at least 0"),
        ({"hidden_act": 3}, "hidden_act is 3, not a name"),
        ({"head_dim": 15}, "15 elements of each head (of 15) would be rotated, which needs an even number"),
    ],
)
def test_impossible_keys(change: dict[str, Any], words: str) -> None:
    assert complaint(model=LLAMA | change) == f"config: {words}"


@pytest.mark.parametrize("key", ["hidden_size", "num_hidden_layers"])
def test_missing_sizes(key: str) -> None:
    config = {k: v for k, v in LLAMA.items() if k != key}
    assert complaint(model=config) == f"config: has no {key}; every config.json gives it"


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (
            {"model_type": "gpt2", "n_embd": 64, "hidden_size": 32, "n_layer": 2},
            "n_embd says 64 and hidden_size says 32",
        ),
        (
            {"model_type": "gpt2", "n_embd": 65, "n_layer": 2},
            "n_embd 65 is not a multiple of num_attention_heads 12",
        ),
        ({"model_type": "gpt2", "n_embd": 12, "n_layer": 2, "add_cross_attention": True}, "encoder-decoder"),
        (
            {"model_type": "gptj", "n_embd": 64, "n_layer": 2, "n_head": 4},
            "rotary_dim 64 is larger than a head of 16",
        ),
        (
            {"model_type": "gpt_neo", "hidden_size": 64, "num_layers": 3, "attention_types": [[["global"], 2]]},
            "2 layers",
        ),
        ({"model_type": "gpt_neo", "hidden_size": 64, "num_layers": 3, "attention_types": [3]}, "is not a list of"),
        (LLAMA | {"model_type": "qwen3_moe", "mlp_only_layers": [0]}, "alternate with layers without"),
        (LLAMA | {"model_type": "qwen2_moe", "decoder_sparse_step": 2}, "alternate with layers without"),
        (LLAMA | {"model_type": "mixtral", "num_key_value_heads": 2, "num_experts_per_tok": 9}, "more than the 8"),
        (
            LLAMA | {"model_type": "phi", "partial_rotary_factor": 2},
            "partial_rotary_factor is 2, not a number above 0",
        ),
        (LLAMA | {"model_type": "phi", "rope_scaling": 3}, "rope_parameters is 3, not an object"),
        (
            {"model_type": "falcon", "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
            | {"new_decoder_architecture": True, "num_kv_heads": 3},
            "num_attention_heads 4 is not a multiple of num_kv_heads 3",
        ),
    ],
)
def test_impossible_keys_of_families(config: dict[str, Any], words: str) -> None:
    assert words in complaint(model=config)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@st.composite
def spoilt(draw: st.DrawFn) -> dict[str, Any]:
    """A config of any family with some values replaced by anything JSON can hold."""
    family = draw(st.sampled_from(sorted(FAMILIES)))
    config = {"model_type": family} | dict(FAMILIES[family].defaults)
    keys = [*sorted(FAMILIES[family].defaults), "rope_scaling", "attention_types", "mlp_only_layers", "text_config"]
    return config | draw(st.dictionaries(st.sampled_from(keys), JSON, max_size=3))


@given(spoilt())
def test_any_config_is_read_or_refused_in_one_line(config: dict[str, Any]) -> None:
    refusal = ""
    try:
        assert read_model(model=config).num_params > 0
    except InputError as error:
        refusal = str(error)
    assert "\n" not in refusal


QWEN = {
    "model_type": "qwen2",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "intermediate_size": 128,
    "vocab_size": 100,
    "use_sliding_window": True,
    "sliding_window": 16,
}


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"num_hidden_layers": 1_000_000_000}, "num_hidden_layers is 1e+09, more than in any model"),
        ({"layer_types": 5}, "layer_types is 5, not a list of names"),
        ({"layer_types": [5, 6]}, "layer_types is [5, 6], not a list of names"),
        ({"max_window_layers": "a"}, "max_window_layers is 'a', not a whole number"),
        ({"max_window_layers": -1}, "max_window_layers is -1, not a whole number"),
    ],
)
def test_hostile_layers_are_one_line(wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError) as refused:
        read_model(model=QWEN | wrong)
    assert told in str(refused.value)


def test_a_window_from_no_layer_in_particular_is_the_familys() -> None:
    without, null = read_model(model=QWEN), read_model(model=QWEN | {"max_window_layers": None})
    assert windowed_layers(null) == windowed_layers(without)
