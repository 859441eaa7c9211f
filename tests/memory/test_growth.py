"""Peaks as lines over the batch: by hand, and for every family to the byte what recording that batch says."""

from __future__ import annotations

from typing import Any

import pytest
from model_cases import CASES

from dsconf.memory.autograd.backward import Height, highest
from dsconf.memory.autograd.batch_scaling import batch_scaling
from dsconf.memory.autograd.column_sum import ColumnSum
from dsconf.memory.autograd.figures import Activations, Shape
from dsconf.memory.layers import activations as module
from dsconf.memory.layers.activations import activations
from dsconf.model.read import read_model
from dsconf.model.spec import Model

BATCHES = (2, 3, 7, 60, 900)


def test_two_lines_cross() -> None:
    """10 a sequence and 100 besides, against 30 a sequence: the second one is higher from six sequences on."""
    course = [[[Height(10 * batch + 100), Height(30 * batch)]] for batch in (2, 3)]
    found = batch_scaling(*course)
    assert [found.at(batch) for batch in (2, 5, 6, 50)] == [[120], [150], [180], [1500]]


def test_a_line_that_is_never_the_highest_is_dropped() -> None:
    course = [[[Height(10 * batch), Height(10 * batch + 1), Height(9 * batch)]] for batch in (2, 3)]
    found = batch_scaling(*course)
    assert (len(found.first), found.others) == (1, ())
    assert found.at(40) == [401]


def test_the_scratch_of_a_column_sum_jumps() -> None:
    """Below 256 rows a thread there is none: 4 threads deep, 300 rows a sequence, so from four sequences on."""
    course = [[[Height(1000), Height(10 * batch, ColumnSum(300 * batch, 128))]] for batch in (2, 3)]
    found = batch_scaling(*course)
    assert [ColumnSum(300 * batch, 128).scratch > 0 for batch in (3, 4)] == [False, True]
    assert [found.at(batch) for batch in (2, 3, 4)] == [[1000], [1000], [40 + ColumnSum(1200, 128).scratch]]


def recorded(model: Model, shape: Shape, replay: str) -> Activations:
    """The same from a recording of that very batch."""
    peaks, parts, _ = module._peak_points(model, shape, replay)
    return module._activations_from_peaks([highest(heights) for heights in peaks], parts)


SHAPES = [
    Shape(0, 32, 2, False, "sdpa"),
    Shape(0, 48, 2, True, "eager"),
    Shape(0, 32, 4, False, "flash"),
    Shape(0, 48, 4, False, "eager", autocast=True),
]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"{shape.attention}-{shape.width}-{shape.autocast}")
@pytest.mark.parametrize("number", range(len(CASES)), ids=lambda number: f"{CASES[number][0]}-{number}")
def test_every_family_grows_as_its_recordings(number: int, shape: Shape) -> None:
    family, config = CASES[number]
    model = read_model(model={"model_type": family} | config)
    for replay, batch in zip(("", "reentrant", "nonreentrant", "", "reentrant"), BATCHES, strict=True):
        sizes = shape._replace(batch=batch)
        activations(model, shape._replace(batch=batch + 1), replay)
        assert activations(model, sizes, replay) == recorded(model, sizes, replay)


@pytest.mark.parametrize("more", [{"ranks": 2}, {"loss_shards": 3}, {"ranks": 2, "loss_shards": 1}])
def test_shared_sequences_and_sharded_losses_too(more: dict[str, Any]) -> None:
    model = read_model(model={"model_type": "llama"} | dict(CASES[1][1]))
    for batch in BATCHES:
        sizes = Shape(batch, 32, 2, False, "sdpa")._replace(**more)
        activations(model, sizes._replace(batch=batch + 1), "nonreentrant")
        assert activations(model, sizes, "nonreentrant") == recorded(model, sizes, "nonreentrant")


def test_layers_of_two_kinds_that_leave_a_rest() -> None:
    """Five windowed layers and one full one keep different masks; their mean is rounded for each batch by itself."""
    config = dict(next(config for family, config in CASES if family == "gemma3_text"))
    config |= {"num_hidden_layers": 7, "sliding_window": 8, "max_position_embeddings": 64}
    model = read_model(model={"model_type": "gemma3_text"} | config)
    rests = set()
    for batch in range(2, 9):
        sizes = Shape(batch, 31, 2, False, "sdpa")
        found = activations(model, sizes, "")
        assert found == recorded(model, sizes, "")
        rests.add(module._peak_points(model, sizes, "").even)
    assert rests == {False} or rests == {True, False}
