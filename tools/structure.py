"""Measures how easy the package is to enter, and ends with exit code 1 where a limit is passed.

    python -m tools.structure [FOLDER]

Read from the sources, so that an import inside a function or for a type counts too.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
MAX_MODULES = 16
"""Modules of one folder, ``__init__`` aside."""
MAX_PARAMETERS = 12
"""Parameters of one function."""
MANY_POSITIONAL = 7
"""Arguments of a call that a reader can no longer tell apart by their place."""
MAX_POSITIONAL_CALLS = 5
"""Calls with as many."""
ONE_BY_ONE = ("config/rules",)
"""Folders in which each module stands for itself, so that their number says nothing."""


class Measures(NamedTuple):
    """What was found; each item names a place."""

    circles: tuple[str, ...]
    crowded: tuple[str, ...]
    long_signatures: tuple[str, ...]
    positional_calls: tuple[str, ...]
    shared_names: tuple[str, ...]

    def faults(self) -> list[str]:
        """List the limits that are passed; nothing where all are kept."""
        faults = [f"import circle: {circle}" for circle in self.circles]
        faults += [f"more than {MAX_MODULES} modules in a folder: {folder}" for folder in self.crowded]
        faults += [f"more than {MAX_PARAMETERS} parameters: {function}" for function in self.long_signatures]
        if len(self.positional_calls) > MAX_POSITIONAL_CALLS:
            faults += [f"{MANY_POSITIONAL} or more positional arguments: {call}" for call in self.positional_calls]
        return faults + [f"one class name for two things: {name}" for name in self.shared_names]


def measure(package: Path) -> Measures:
    """Measure the package in the folder ``package``."""
    trees = {_module(path, package): ast.parse(path.read_text(encoding="utf-8")) for path in package.rglob("*.py")}
    trees = dict(sorted(trees.items()))
    graph = {name: set(_imports(name, tree, trees)) for name, tree in trees.items()}
    folders = {str(path.parent.relative_to(package)) for path in package.rglob("*.py")}
    sizes = {folder: sum(1 for _ in (package / folder).glob("*.py")) - 1 for folder in folders - set(ONE_BY_ONE)}
    classes: dict[str, list[str]] = {}
    for name, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                classes.setdefault(node.name.lstrip("_"), []).append(name)
    return Measures(
        circles=tuple(" → ".join(circle) for circle in _circles(graph)),
        crowded=tuple(f"{folder} ({size})" for folder, size in sorted(sizes.items()) if size > MAX_MODULES),
        long_signatures=tuple(place for name, tree in trees.items() for place in _long_signatures(name, tree)),
        positional_calls=tuple(place for name, tree in trees.items() for place in _positional_calls(name, tree)),
        shared_names=tuple(
            f"{name} in {', '.join(places)}" for name, places in sorted(classes.items()) if len(places) > 1
        ),
    )


def _module(path: Path, package: Path) -> str:
    parts = path.relative_to(package.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports(name: str, tree: ast.AST, modules: dict[str, ast.Module]) -> Iterator[str]:
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            inside = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [inner if inner in modules else node.module for inner in inside]
        yield from (imported for imported in names if imported in modules and imported != name)


def _circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Find groups of modules that reach each other."""
    reached = {name: _reachable(name, graph) for name in graph}
    groups = {tuple(sorted(other for other in reached[name] if name in reached[other])) for name in graph}
    return [list(group) for group in sorted(groups) if group]


def _reachable(name: str, graph: dict[str, set[str]]) -> set[str]:
    reached: set[str] = set()
    waiting = list(graph[name])
    while waiting:
        if (here := waiting.pop()) not in reached:
            reached.add(here)
            waiting += graph[here]
    return reached


def _long_signatures(name: str, tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            words = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            count = len([word for word in words if word.arg not in ("self", "cls")])
            if count > MAX_PARAMETERS:
                yield f"{name}.{node.name} ({count})"


def _positional_calls(name: str, tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and len(node.args) >= MANY_POSITIONAL:
            yield f"{name}:{node.lineno} {ast.unparse(node.func)} ({len(node.args)})"


def main() -> None:
    """Print what was measured; exit code 1 where a limit is passed."""
    measures = measure(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "dsconf")
    print(
        f"{len(measures.circles)} import circles, {len(measures.crowded)} folders of more than {MAX_MODULES} modules, "
        f"{len(measures.long_signatures)} functions of more than {MAX_PARAMETERS} parameters, "
        f"{len(measures.positional_calls)} calls with {MANY_POSITIONAL} or more positional arguments, "
        f"{len(measures.shared_names)} class names used twice"
    )
    if faults := measures.faults():
        sys.exit("\n".join(faults))


if __name__ == "__main__":
    main()
