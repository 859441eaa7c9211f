"""What is shipped, and that it works however it is installed: wheel, zip, editable, bare checkout."""

from __future__ import annotations

import configparser
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent
DATA = {"dsconf.rules": "docs/rules", "dsconf.schemas": "schemas", "dsconf.templates": "templates"}
HEAVY = ("torch", "deepspeed", "transformers", "accelerate", "numpy")
JOB = ["--params", "1B", "--gpus", "1", "--gpu-memory", "80GiB"]
PROBE = """
import json, sys, dsconf
from dsconf import resources
json.dump({
    "home": dsconf.__file__,
    "schemas": {n: json.loads(resources.text("schemas", n)).get("$schema") for n in sys.argv[1].split(",")},
    "templates": [len(resources.text("templates", n)) for n in sys.argv[2].split(",")],
    "rules": [len(resources.text("rules", n)) for n in sys.argv[3].split(",")],
}, sys.stdout)
"""


@dataclass(frozen=True)
class Home:
    """One way to have dsconf: how to start Python, from where, and where the package must come from."""

    python: Path
    cwd: Path
    package: Path
    python_path: str = ""

    def run(self, *args: str) -> subprocess.CompletedProcess[str]:
        """``python *args`` away from the checkout's own settings; failing is the test's to judge."""
        env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        env["PYTHONPATH"] = self.python_path
        command = [str(self.python), *args]
        return subprocess.run(command, cwd=self.cwd, env=env, capture_output=True, text=True, timeout=120)


def _shipped(folder: str, suffix: str) -> list[str]:
    return sorted(path.name for path in (REPO / folder).iterdir() if path.suffix == suffix)


def _check_call(*command: str | Path, cwd: Path) -> None:
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr


def _build(kind: str, source: Path, folder: Path) -> Path:
    """The one file that setuptools' own build hook makes of ``source``; ``kind`` is ``sdist`` or ``wheel``."""
    folder.mkdir()
    hook = f"from setuptools import build_meta; build_meta.build_{kind}({str(folder)!r})"
    _check_call(sys.executable, "-c", hook, cwd=source)
    (made,) = folder.iterdir()
    return made


def _fresh_environment(folder: Path, *requirements: str) -> Path:
    """The Python of a new virtual environment with ``requirements`` and nothing of this one."""
    _check_call(sys.executable, "-m", "venv", folder, cwd=folder.parent)
    python = folder / "bin" / "python"
    _check_call(python, "-m", "pip", "install", "--quiet", *requirements, cwd=folder.parent)
    return python


@pytest.fixture(scope="session")
def clean_copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources without what earlier builds, tests or environments left behind."""
    copy = tmp_path_factory.mktemp("sources") / "dsconf"
    leftovers = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__", "venv", "env")
    shutil.copytree(REPO, copy, ignore=leftovers)
    return copy


@pytest.fixture(scope="session")
def sdist(clean_copy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _build("sdist", clean_copy, tmp_path_factory.mktemp("built") / "sdist")


@pytest.fixture(scope="session")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the unpacked sdist, so that the sdist is proved complete too."""
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (source,) = folder.iterdir()
    return _build("wheel", source, tmp_path_factory.mktemp("built") / "wheel")


@pytest.fixture(scope="session")
def installed_wheel(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Home:
    folder = tmp_path_factory.mktemp("wheel")
    python = _fresh_environment(folder / "env", str(wheel))
    return Home(python, folder, folder / "env")


@pytest.fixture(scope="session")
def editable(clean_copy: Path, tmp_path_factory: pytest.TempPathFactory) -> Home:
    folder = tmp_path_factory.mktemp("editable")
    python = _fresh_environment(folder / "env", "--editable", str(clean_copy))
    return Home(python, folder, clean_copy)


@pytest.fixture(scope="session")
def zipped(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Home:
    return Home(Path(sys.executable), tmp_path_factory.mktemp("zip"), wheel, python_path=str(wheel))


@pytest.fixture(scope="session")
def checkout(clean_copy: Path) -> Home:
    return Home(Path(sys.executable), clean_copy, clean_copy)


@pytest.fixture(params=["installed_wheel", "editable", "zipped", "checkout"])
def home(request: pytest.FixtureRequest) -> Home:
    found: Home = request.getfixturevalue(request.param)
    return found


def test_setup_cfg_lists_every_package() -> None:
    setup = configparser.ConfigParser()
    setup.read(REPO / "setup.cfg", encoding="utf-8")
    listed = setup["options"]["packages"].split()
    folders = {path.parent.relative_to(REPO) for path in (REPO / "dsconf").rglob("__init__.py")}
    assert sorted(listed) == sorted([*(".".join(folder.parts) for folder in folders), *DATA])


def test_every_folder_with_code_is_a_package() -> None:
    folders = {path.parent for path in (REPO / "dsconf").rglob("*.py")}
    assert [str(folder) for folder in folders if not (folder / "__init__.py").exists()] == []


def test_the_wheel_holds_the_package_and_its_data_alone(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    code = {str(path.relative_to(REPO)) for path in (REPO / "dsconf").rglob("*.py")}
    data = {str(path.relative_to(REPO)) for path in (REPO / "dsconf").rglob("*.json")}
    data |= {f"dsconf/schemas/{name}" for name in _shipped("schemas", ".json")}
    data |= {f"dsconf/templates/{name}" for name in _shipped("templates", ".j2")}
    data |= {f"dsconf/rules/{name}" for name in _shipped("docs/rules", ".md")}
    assert code | data | {"dsconf/py.typed"} <= names
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"dsconf"}


def test_the_sdist_holds_what_a_packager_needs(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {"CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "README.md", "pyproject.toml", "setup.cfg"}
    wanted |= {"tests/test_packaging.py", "benchmarks/startup.py", "tools/test"}
    wanted |= {f"schemas/{name}" for name in _shipped("schemas", ".json")}
    wanted |= {f"templates/{name}" for name in _shipped("templates", ".j2")}
    assert wanted <= names
    assert not {name for name in names if name.endswith(".pyc")}


def test_the_wheel_asks_for_five_small_libraries(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        lines = archive.read(name).decode().splitlines()
    needed = [line for line in lines if line.startswith("Requires-Dist:") and "extra ==" not in line]
    assert [line.split()[1].split(">")[0] for line in needed] == ["click", "hjson", "jinja2", "jsonschema", "tabulate"]


def test_resources_load_from(home: Home) -> None:
    schemas, templates, rules = (
        _shipped("schemas", ".json"),
        _shipped("templates", ".j2"),
        _shipped("docs/rules", ".md"),
    )
    assert schemas
    assert templates
    assert rules
    done = home.run("-c", PROBE, ",".join(schemas), ",".join(templates), ",".join(rules))
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert Path(seen["home"]).is_relative_to(home.package)
    assert set(seen["schemas"].values()) == {"https://json-schema.org/draft/2020-12/schema"}
    assert min(seen["templates"]) > 0
    assert min(seen["rules"]) > 0


def test_the_commands_work_from(home: Home, tmp_path: Path) -> None:
    version = home.run("-m", "dsconf", "--version")
    assert (version.returncode, version.stdout.split()[0], version.stderr) == (0, "dsconf", "")
    done = home.run("-m", "dsconf", "recommend", *JOB, "-o", str(tmp_path / "out"), "--format", "json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["recommended"]
    (config,) = (tmp_path / "out").glob("ds_config.json")
    valid = home.run("-m", "dsconf", "validate", str(config), "--gpus", "1")
    assert valid.returncode == 0, valid.stdout + valid.stderr


def test_a_plain_install_brings_no_torch(installed_wheel: Home) -> None:
    look = f"from importlib.util import find_spec; print([name for name in {HEAVY!r} if find_spec(name)])"
    assert installed_wheel.run("-c", look).stdout == "[]\n"


def test_the_script_is_installed(installed_wheel: Home) -> None:
    script = installed_wheel.python.parent / "dsconf"
    done = subprocess.run([script, "--version"], capture_output=True, text=True, cwd=installed_wheel.cwd)
    assert done.returncode == 0
    listed = installed_wheel.run("-m", "pip", "list", "--format", "json")
    (own,) = (one["version"] for one in json.loads(listed.stdout) if one["name"] == "dsconf")
    assert done.stdout == f"dsconf {own}\n"


def test_check_without_deepspeed_says_what_to_install(installed_wheel: Home, tmp_path: Path) -> None:
    config = tmp_path / "ds_config.json"
    config.write_text(json.dumps({"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 2}}))
    done = installed_wheel.run("-m", "dsconf", "check", str(config), "--params", "1B", "--gpus", "1")
    assert (done.returncode, done.stdout) == (3, "")
    assert "dsconf[check]" in done.stderr
    assert len(done.stderr.splitlines()) == 1
