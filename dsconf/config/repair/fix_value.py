"""What an edit makes of a config's values; the rewritten text is checked against it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dsconf.config.finding import Edit, Move, Path, Remove, Rename, SetValue, dotted


class CannotFixError(Exception):
    """An edit that does not apply: nothing there, something in the way, or a text that does not come out right."""


def applied(config: dict[str, Any], edit: Edit) -> Any:
    """Copy ``config`` with ``edit`` made.

    Raises:
        CannotFixError: the key is not there, what is to be made is there already, or its block is no object.
    """
    if isinstance(edit, Rename):
        return _inside(config, edit.path, lambda block, key: _renamed(block, key, edit.key))
    if isinstance(edit, Remove):
        return _inside(config, edit.path, _without)
    if isinstance(edit, Move):
        if edit.to[: len(edit.path)] == edit.path:
            raise CannotFixError(f"{dotted(edit.path)} cannot move into itself")
        value = value_at(config, edit.path)
        return _inside(_added(config, edit.to, value), edit.path, _without)
    return _set(config, edit)


def value_at(config: Any, path: Path) -> Any:
    """Return what stands at ``path``.

    Raises:
        CannotFixError: nothing does.
    """
    for key in path:
        if not _has(config, key):
            raise CannotFixError(f"{dotted(path)} is not there")
        config = config[key]
    return config


def deepest(config: Any, path: Path) -> int:
    """Count the keys of ``path``, the last one aside, that lead through blocks that exist."""
    depth = 0
    while depth < len(path) - 1 and _has(config, path[depth]):
        config = config[path[depth]]
        depth += 1
    if not isinstance(config, dict):
        raise CannotFixError(f"{dotted(path[:depth])} is no block")
    return depth


def _has(value: Any, key: str | int) -> bool:
    if isinstance(value, list):
        return isinstance(key, int) and 0 <= key < len(value)
    return isinstance(value, dict) and key in value


def _with(value: Any, key: str | int, new: Any) -> Any:
    """Copy the object or list ``value`` with ``new`` at ``key``."""
    if isinstance(value, list):
        return [new if place == key else item for place, item in enumerate(value)]
    return {**value, key: new}


def _inside(value: Any, path: Path, change: Callable[[dict[str, Any], Any], dict[str, Any]]) -> Any:
    """Copy ``value`` with ``change`` made in the object that holds the last key of ``path``."""
    if not path or not _has(value, path[0]):
        raise CannotFixError(f"{dotted(path)} is not there")
    if len(path) > 1:
        return _with(value, path[0], _inside(value[path[0]], path[1:], change))
    if not isinstance(value, dict):
        raise CannotFixError("an item of a list")
    return change(value, path[0])


def _renamed(block: dict[str, Any], old: str, new: str) -> dict[str, Any]:
    if new in block:
        raise CannotFixError(f"{new} is there already")
    return {new if key == old else key: value for key, value in block.items()}


def _without(block: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in block.items() if name != key}


def _added(value: Any, path: Path, new: Any) -> Any:
    there = _has(value, path[0])
    if not (isinstance(value, dict) and isinstance(path[0], str)) and not (there and len(path) > 1):
        raise CannotFixError("a block on the way is no object")
    if len(path) > 1:
        return _with(value, path[0], _added(value[path[0]] if there else {}, path[1:], new))
    if there:
        raise CannotFixError(f"{path[0]} is there already")
    return _with(value, path[0], new)


def _set(config: dict[str, Any], edit: SetValue) -> Any:
    try:
        value_at(config, edit.path)
    except CannotFixError:
        return _added(config, edit.path, edit.value)
    return _replaced(config, edit.path, edit.value)


def _replaced(value: Any, path: Path, new: Any) -> Any:
    return _with(value, path[0], _replaced(value[path[0]], path[1:], new)) if path else new
