"""Nothing flows back: who may import whom, what start-up loads, and how large a file or function may grow.

Read from the sources, not from a running program, so that an import inside a function counts too.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "dsconf"
FILES = sorted(PACKAGE.rglob("*.py"))
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
HEAVY = ("torch", "deepspeed", "transformers", "accelerate", "peft", "bitsandbytes", "numpy")
LIGHT = ("click", "hjson", "jinja2", "jsonschema", "tabulate")

# What runs inside a launched rank; the parent that launches it needs none of it.
RANK = PACKAGE / "live" / "rank"
# What traces a live torch.nn.Module: whoever has one has torch. The others load it where they trace and nowhere else,
# so that planning without a module needs no torch.
TRACE = PACKAGE / "memory" / "trace"

BASE = {"errors", "units", "resources", "workload"}
SHAPES = BASE | {"model", "cluster"}
JOBS = SHAPES | {"config", "job"}
# The words a person gives, and what DeepSpeed would run of what they ask for.
DOOR = {"request", "word", "accepted"}
# Which parts each part may import; a part is a folder or a file of dsconf/.
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "resources": set(),
    "workload": {"errors"},
    "units": {"errors"},
    "model": BASE,
    "cluster": BASE,
    "config": SHAPES,
    "job": SHAPES | {"config"},
    "accepted": JOBS,
    "word": {"errors"},
    "request": BASE | {"config", "word"},
    "launch": JOBS,
    "memory": JOBS,
    "speed": JOBS,
    "read_job": JOBS | DOOR | {"memory"},
    "search": JOBS | DOOR | {"read_job", "launch", "memory", "speed"},
    "live": JOBS | DOOR | {"read_job", "api", "memory", "speed"},
    "api": JOBS | DOOR | {"read_job", "memory"},
    "report": JOBS | {"read_job", "memory", "speed", "search", "live"},
    "cli": JOBS | DOOR | {"read_job", "api", "memory", "speed", "search", "live", "report"},
    "__main__": {"cli"},
    "__init__": {"api", "search", "live", "errors"},
}


def _name(path: Path) -> str:
    return str(path.relative_to(PACKAGE.parent))


def _part(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def _modules(tree: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """Every module that ``tree`` imports, anywhere, with its node."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute"
            assert node.module is not None
            yield node.module, node
            if node.module.split(".")[0] == "dsconf":
                yield from ((f"{node.module}.{alias.name}", node) for alias in node.names)


def _functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def _top_level(tree: ast.Module) -> set[ast.AST]:
    """The nodes that run when the module is imported: not inside a function, not under TYPE_CHECKING."""
    found: set[ast.AST] = set()
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        found.add(node)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            waiting += node.orelse
            continue
        waiting += ast.iter_child_nodes(node)
    return found


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_imports_point_one_way(path: Path) -> None:
    part = _part(path)
    assert part in ALLOWED, f"a new part: say in ALLOWED what {part} may import"
    names = {name for name, _ in _modules(ast.parse(path.read_text())) if name.startswith("dsconf.")}
    assert {name.split(".")[1] for name in names} - {"__version__"} <= ALLOWED[part] | {part}


def test_no_allowed_import_leads_back() -> None:
    """The allowed graph itself has no cycle, or the rule above would say nothing."""
    settled: set[str] = set()
    waiting = dict(ALLOWED)
    while waiting:
        ready = [part for part, needs in waiting.items() if needs <= settled]
        assert ready, f"these parts import each other: {sorted(waiting)}"
        settled.update(ready)
        waiting = {part: needs for part, needs in waiting.items() if part not in settled}


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_only_a_launched_rank_imports_an_engine(path: Path) -> None:
    if RANK in path.parents:
        return
    names = {name for name, _ in _modules(ast.parse(path.read_text()))}
    allowed = {"torch"} if TRACE in path.parents else set()
    assert {name.split(".")[0] for name in names} & set(HEAVY) <= allowed
    assert not {name for name in names if name.startswith("dsconf.live.rank")}


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_libraries_are_imported_where_they_are_used(path: Path) -> None:
    """Importing a module costs its libraries; click alone is needed by every command."""
    tree = ast.parse(path.read_text())
    running = _top_level(tree)
    loaded = {name for name, node in _modules(tree) if node in running}
    torch_side = RANK in path.parents or TRACE in path.parents
    allowed = {"click"} if _part(path) == "cli" else {"torch"} if torch_side else set()
    assert {name.split(".")[0] for name in loaded} - set(sys.stdlib_module_names) - {"dsconf"} <= allowed
    if TRACE not in path.parents:
        assert not {name for name in loaded if name.startswith("dsconf.memory.trace")}


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_a_file_is_short_enough_to_read(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MAX_FILE_LINES


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_a_function_is_short_enough_to_check(path: Path) -> None:
    long = {
        function.name: length
        for function in _functions(ast.parse(path.read_text()))
        if (length := (function.end_lineno or 0) - function.lineno + 1) > MAX_FUNCTION_LINES
    }
    assert long == {}


def _loaded(code: str) -> set[str]:
    """Top-level names of the modules that a fresh Python holds after ``code``."""
    probe = "\nfinally:\n    import sys; print('\\n'.join(sys.modules), file=sys.stderr)"
    program = "try:\n" + "\n".join(f"    {line}" for line in code.splitlines()) + probe
    with TemporaryDirectory() as folder:
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=folder, timeout=120)
    assert done.returncode in (0, 1), done.stderr
    assert "Traceback" not in done.stderr
    return set(done.stderr.splitlines())


def _command(*args: str) -> str:
    return f"from dsconf.cli import group\ngroup({list(args)!r}, prog_name='dsconf')"


ESTIMATE = ("estimate", "--params", "70B", "--gpus", "8")


@pytest.mark.parametrize(
    ("code", "unwanted"),
    [
        ("import dsconf", {*HEAVY, *LIGHT, "importlib.metadata", "dataclasses", "inspect"}),
        ("import dsconf.cli", {*HEAVY, "jinja2", "jsonschema", "tabulate", "importlib.metadata"}),
        (_command("--version"), {*HEAVY, "jinja2", "jsonschema", "tabulate", "importlib.metadata"}),
        (_command("--help"), {*HEAVY, "jinja2", "jsonschema", "tabulate", "importlib.metadata"}),
        (_command(*ESTIMATE), {*HEAVY, "jinja2", "jsonschema"}),
        (_command(*ESTIMATE, "--format", "json"), {*HEAVY, "jinja2", "jsonschema", "tabulate"}),
        (_command("recommend", "--params", "70B", "--gpus", "8"), {*HEAVY, "jsonschema"}),
        ("import dsconf\ndsconf.estimate(params='70B', gpus=8)", {*HEAVY, *LIGHT}),
    ],
    ids=[
        "import dsconf",
        "import dsconf.cli",
        "--version",
        "--help",
        "estimate",
        "estimate json",
        "recommend",
        "Python estimate",
    ],
)
def test_start_up_loads_no_more_than_it_needs(code: str, unwanted: set[str]) -> None:
    assert _loaded(code) & unwanted == set()


@pytest.mark.parametrize(
    "module", ["model.read", "cluster.read", "config.resolve", "memory.estimate", "speed.step_time"]
)
def test_planning_parts_need_the_standard_library_alone(module: str) -> None:
    assert _loaded(f"import dsconf.{module}") & {*HEAVY, *LIGHT, "importlib.metadata"} == set()
