"""The public names change only on purpose."""

from __future__ import annotations

import inspect

import pytest

import dsconf

FUNCTIONS = ["check", "estimate", "recommend", "validate"]


def test_the_public_names() -> None:
    assert sorted(dir(dsconf)) == sorted([*FUNCTIONS, "__version__"])
    assert sorted(dsconf.__all__) == FUNCTIONS


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
    assert set(FUNCTIONS) <= set(namespace)


def test_the_version_is_a_release_number() -> None:
    parts = dsconf.__version__.split(".")
    assert len(parts) == 3
    assert all(part.isdigit() for part in parts)
