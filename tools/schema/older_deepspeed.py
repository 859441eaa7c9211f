"""Writes or checks the schemas of the releases of DeepSpeed that are not installed.

    DS_ACCELERATOR=cpu python -m tools.schema.older_deepspeed [--check] [RELEASE ...]

Fetches each release's source distribution, of some 2 MB, with pip, and runs generate_schema.py on it: it needs no
build, only the torch that is installed. DSCONF_SDISTS names a folder that keeps them between runs.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from pathlib import Path
from tempfile import TemporaryDirectory

from dsconf.config.names import RELEASES

ROOT = Path(__file__).resolve().parents[2]


def _sdist(release: str, folder: Path) -> Path:
    """Return the source distribution of ``release`` in ``folder``, fetched if it is not there."""
    file = folder / f"deepspeed-{release}.tar.gz"
    if not file.exists():
        options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-binary", ":all:", "--dest", str(folder)]
        command = [sys.executable, "-m", "pip", "download", *options, f"deepspeed=={release}"]
        subprocess.run(command, check=True, env={**os.environ, "DS_BUILD_OPS": "0", "DS_ACCELERATOR": "cpu"})
    return file


def _generate(release: str, folder: Path, arguments: list[str]) -> int:
    with tarfile.open(_sdist(release, folder)) as archive, TemporaryDirectory() as unpacked:
        archive.extractall(unpacked, filter="data")
        source = Path(unpacked) / f"deepspeed-{release}"
        environment = {**os.environ, "PYTHONPATH": f"{source}{os.pathsep}{ROOT}", "DS_ACCELERATOR": "cpu"}
        command = [sys.executable, "-W", "ignore", "-m", "tools.schema.generate_schema", *arguments]
        return subprocess.run(command, env=environment, cwd=unpacked, check=False).returncode


def main() -> int:
    """Write or check every schema; return 1 if one is not what its release reads."""
    arguments = [word for word in sys.argv[1:] if word.startswith("-")]
    releases = [word for word in sys.argv[1:] if not word.startswith("-")] or list(RELEASES[:-1])
    with TemporaryDirectory() as fresh:
        folder = Path(os.environ.get("DSCONF_SDISTS") or fresh)
        folder.mkdir(parents=True, exist_ok=True)
        return max(_generate(release, folder, arguments) for release in releases)


if __name__ == "__main__":
    sys.exit(main())
