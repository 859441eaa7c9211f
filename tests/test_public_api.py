"""The public names change only on purpose."""

from __future__ import annotations

import inspect
from importlib import import_module

import pytest

import dsconf

FUNCTIONS = ["check", "estimate", "recommend", "validate"]
# Names without a command of their own: several numbers of GPUs, and many jobs.
OTHERS = ["DsconfError", "InputError", "PlannedJob", "Planner", "plan", "sweep"]
# Options about where and how an answer is shown, which a caller in Python decides for itself.
SHOWING = {"output", "output_format", "explain", "force", "check", "fix", "diff", "slurm", "comments"}
RENAMED = {"file": "config"}
# Words without an option: what a caller may put in the place of a real part.
SEAMS = {"progress", "runner", "tools"}
# Words that only a program can say: a live torch.nn.Module and its batch.
LIVE = {"module", "batch"}


def test_the_public_names() -> None:
    assert sorted(dir(dsconf)) == sorted([*FUNCTIONS, *OTHERS, "__version__"])
    assert sorted(dsconf.__all__) == sorted([*FUNCTIONS, *OTHERS])


@pytest.mark.parametrize("name", FUNCTIONS)
def test_each_name_is_a_documented_function(name: str) -> None:
    function = getattr(dsconf, name)
    assert inspect.isfunction(function)
    assert inspect.getdoc(function)
    assert "return" in function.__annotations__


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'dsconf' has no attribute 'estimat'"):
        _ = dsconf.estimat


def test_names_survive_star_import() -> None:
    namespace: dict[str, object] = {}
    exec("from dsconf import *", namespace)
    assert {*FUNCTIONS, *OTHERS} <= set(namespace)


def test_the_version_is_a_release_number() -> None:
    parts = dsconf.__version__.split(".")
    assert len(parts) == 3
    assert all(part.isdigit() for part in parts)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_words_are_the_options(name: str) -> None:
    """Same names and same defaults; only what decides where and how an answer is shown has no word."""
    command = import_module(f"dsconf.cli.{name}").command
    context = command.make_context(name, [], resilient_parsing=True)
    options = {RENAMED.get(word, word): value for word, value in context.params.items() if word not in SHOWING}
    words = inspect.signature(getattr(dsconf, name)).parameters
    assert set(options) <= set(words)
    assert {word for word in words if word not in options} <= SEAMS | (LIVE if name == "estimate" else set())
    if "rank" in options:
        options["rank"] = "fullest"  # the command has read it already: None
    defaults = {word: words[word].default for word in options if words[word].default is not inspect.Parameter.empty}
    assert defaults | {"gpus": None} == {word: options[word] for word in defaults} | {"gpus": None}


def test_a_persons_mistake_can_be_caught() -> None:
    assert issubclass(dsconf.InputError, dsconf.DsconfError)
    with pytest.raises(dsconf.InputError, match="--gpus"):
        dsconf.recommend(params="7B", gpus=0)
