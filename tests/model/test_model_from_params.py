"""The shape chosen for a size: near it, never falling, and one that attention can be split over."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsconf.errors import InputError
from dsconf.model.from_params import (
    DEPTHS,
    LARGEST,
    SMALLEST,
    TOLERANCE,
    depth,
    rung,
    shape_of_size,
    shape_sentence,
)
from dsconf.model.read import read_model

SIZES = st.floats(7, 12.301).map(lambda exponent: min(max(int(10**exponent), SMALLEST), LARGEST))


@given(SIZES)
def test_total_is_within_one_percent(size: int) -> None:
    model = read_model(params=size)
    assert abs(model.num_params - size) <= TOLERANCE * size


@given(SIZES, SIZES)
def test_more_asked_for_never_gives_fewer(one: int, other: int) -> None:
    small, large = sorted((one, other))
    assert read_model(params=small).num_params <= read_model(params=large).num_params


def test_never_falls_across_any_rung() -> None:
    size, before = SMALLEST, 0
    while size <= LARGEST:
        low, high = rung(size)
        for asked in (max(low, SMALLEST), (low + high) // 2, high - 1):
            if asked > LARGEST:
                break
            total = read_model(params=asked).num_params
            assert low <= total < high
            assert total >= before
            before = total
        size = high


@given(SIZES)
def test_shape_can_be_split_over_heads(size: int) -> None:
    model = read_model(params=size)
    assert model.head_dim in (64, 128)
    assert model.heads * model.head_dim == model.hidden
    assert model.heads % model.kv_heads == 0
    assert model.kv_heads in ({model.heads} if model.hidden < 1024 else {4, 8})
    assert model.kv_heads == 8 or model.hidden < 5120
    assert model.tied == (model.num_params < 4.2e9)
    assert model.mlp % 256 == 0 or model.hidden < 8192
    assert model.mlp % 16 == 0
    assert model.layers % 2 == 0


@pytest.mark.parametrize(("parameters", "layers"), DEPTHS)
def test_depth_goes_through_the_published_models(parameters: int, layers: int) -> None:
    assert depth(parameters) == layers


def test_seventy_billion_by_hand() -> None:
    """70B: Llama 3.1 70B's depth and width, and what is left for the MLP."""
    model = read_model(params="70B")
    assert (model.layers, model.hidden, model.heads, model.kv_heads) == (80, 8192, 64, 8)
    attention, mlp = 2 * 8192 * 8192 + 2 * 8192 * 1024, 3 * 8192 * model.mlp
    assert model.num_params == 80 * (attention + mlp + 2 * 8192) + 2 * 128256 * 8192 + 8192
    assert model.name == "70B"
    assert model.hf_config["model_type"] == "llama"


def test_sentence_names_shape_and_rule() -> None:
    sentence = shape_sentence(read_model(params="70B"))
    assert sentence.startswith("70B: llama-like, 80 layers of hidden size 8192, 64 heads (8 key/value) of 128,")
    assert "70.1B parameters" in sentence
    assert "\n" not in sentence


@pytest.mark.parametrize("size", ["9M", "2.1T", 1, 10**30])
def test_sizes_beyond_published_models(size: str | int) -> None:
    with pytest.raises(InputError, match="shapes are known from 10M to 2T"):
        read_model(params=size)


@pytest.mark.parametrize("size", ["seventy", "-1B", "0", "70BB", "nan", "1e999", "", True])
def test_sizes_that_are_none(size: str) -> None:
    with pytest.raises(InputError) as failure:
        read_model(params=size)
    assert "\n" not in str(failure.value)


def test_ends_of_the_range() -> None:
    assert shape_of_size(SMALLEST)["vocab_size"] == 32000
    assert shape_of_size(LARGEST)["num_key_value_heads"] == 8


def test_reading_a_size_takes_less_than_a_millisecond() -> None:
    read_model(params="70B")
    best = min(_seconds() for _ in range(20))
    assert best < 1e-3


def _seconds() -> float:
    start = time.perf_counter()
    read_model(params="70B")
    return time.perf_counter() - start
