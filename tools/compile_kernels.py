"""Compiles the kernels of DeepSpeed that the tests run: ``python tools/compile_kernels.py``.

They go into a folder of the Python environment's own, where ``tests/conftest.py`` makes every test look. That runs this
before the first test, so that no test's limit counts compiling. Once all is compiled this does nothing, until another
torch or DeepSpeed is installed. Each kernel gets its lines on stderr: a slow machine takes minutes for one.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import sys
import time
from contextlib import redirect_stdout
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

FOLDER = Path(sys.prefix) / "torch-extensions"
KERNELS = ("ShareMemCommBuilder", "FusedAdamBuilder", "CPUAdamBuilder")
"""What every rank on the CPU loads, what AdamW does, and what AdamW does under offload."""


def main() -> int:
    """0 where ``FOLDER`` has every kernel, or none can be used."""
    # Last, as in the processes that dsconf starts: another ninja would compile all again.
    os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", os.defpath), str(Path(sys.executable).parent)])
    try:
        made_of = [f"torch {version('torch')}", f"deepspeed {version('deepspeed')}", *KERNELS]
    except PackageNotFoundError:
        return 0
    wanted = "\n".join([*made_of, str(shutil.which("ninja")), os.environ.get("CXX", "c++")])
    done = FOLDER / "compiled"
    with FOLDER.with_suffix(".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another that compiles DeepSpeed's kernels into {FOLDER}", file=sys.stderr)
            fcntl.flock(lock, fcntl.LOCK_EX)
        if done.exists() and done.read_text() == wanted:
            return 0
        shutil.rmtree(FOLDER, ignore_errors=True)  # with the locks that torch leaves behind where it is killed
        FOLDER.mkdir()
        if not _compile():
            return 1
        done.write_text(wanted)
    return 0


def _compile() -> bool:
    """Compile one after the other; whether all could be."""
    os.environ |= {"TORCH_EXTENSIONS_DIR": str(FOLDER), "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    with redirect_stdout(sys.stderr):
        from deepspeed.ops.op_builder import cpu

        for number, name in enumerate(KERNELS, 1):
            builder = getattr(cpu, name)()
            where = f"{builder.name} ({number} of {len(KERNELS)})"
            print(f"compiling DeepSpeed's {where}, once for this environment", flush=True)
            start = time.monotonic()
            try:
                builder.load(verbose=False)
            except Exception as error:
                print(f"DeepSpeed's {where} cannot be compiled: {error}", flush=True)
                return False
            print(f"compiled {where} in {time.monotonic() - start:.0f} s", flush=True)
    return True


if __name__ == "__main__":
    sys.exit(main())
