"""How long a person waits for a command, as a multiple of importing the four libraries that dsconf may use.

Whole processes, started one after the other in interleaved rounds so that a busy moment hits all of them;
the first rounds only warm the file cache. It measures the installed package, because an editable install
adds setuptools' import hook to every start:

    python3 -m venv /tmp/startup && /tmp/startup/bin/pip install .
    /tmp/startup/bin/python benchmarks/startup.py --strict
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import sysconfig
import tempfile
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from time import perf_counter

SCRIPT = str(Path(sys.executable).parent / "dsconf")
BASELINE = [sys.executable, "-c", "import click, jinja2, jsonschema, tabulate"]
# Command line and the largest multiple of the baseline that it may take.
COMMANDS: dict[str, tuple[list[str], float]] = {
    "recommend": ([SCRIPT, "recommend", "--params", "70B", "--gpus", "8"], 1.5),
    "estimate": ([SCRIPT, "estimate", "--params", "70B", "--gpus", "8"], 0.8),
    "--help": ([SCRIPT, "--help"], 0.5),
}


def seconds(command: list[str], folder: str) -> float:
    """Return the wall time of ``command`` run in ``folder``; an exit code other than 0 or 1 stops the benchmark."""
    start = perf_counter()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    elapsed = perf_counter() - start
    if done.returncode not in (0, 1):
        sys.exit(f"{' '.join(command)} failed ({done.returncode}): {done.stderr}")
    return elapsed


def measure(rounds: int, warm_up: int) -> dict[str, list[float]]:
    """Measure the seconds of each process, by name, one figure a round."""
    commands = {"baseline": BASELINE, **{name: command for name, (command, _) in COMMANDS.items()}}
    times: dict[str, list[float]] = {name: [] for name in commands}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(warm_up + rounds):
            for name, command in commands.items():
                elapsed = seconds(command, folder)
                if number >= warm_up:
                    times[name].append(elapsed)
    return times


def require_installed_package() -> None:
    """Exit unless ``import dsconf`` finds a copy in site-packages."""
    spec = find_spec("dsconf")
    home = Path(sysconfig.get_path("purelib")).resolve()
    if spec is None or spec.origin is None or not Path(spec.origin).resolve().is_relative_to(home):
        sys.exit("measure an installed copy: pip install . (not -e), then run this with that environment's Python")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="measured runs of each process (default 15)")
    parser.add_argument("--warm-up", type=int, default=3, help="runs before measuring (default 3)")
    parser.add_argument("--strict", action="store_true", help="exit 1 if a bound is missed")
    args = parser.parse_args()
    require_installed_package()

    times = measure(args.rounds, args.warm_up)
    baseline = median(times["baseline"])
    print(f"{'process':<12}{'median ms':>10}{'min ms':>9}{'ratio':>8}{'bound':>8}")
    print(f"{'baseline':<12}{baseline * 1e3:>10.0f}{min(times['baseline']) * 1e3:>9.0f}{1:>8.2f}")
    missed = []
    for name, (_, bound) in COMMANDS.items():
        ratio = median(times[name]) / baseline
        print(f"{name:<12}{median(times[name]) * 1e3:>10.0f}{min(times[name]) * 1e3:>9.0f}{ratio:>8.2f}{bound:>8.1f}")
        if ratio > bound:
            missed.append(name)
    print(f"baseline: python {' '.join(BASELINE[1:])}")
    if missed:
        print(f"over the bound: {', '.join(missed)}")
    sys.exit(1 if missed and args.strict else 0)


if __name__ == "__main__":
    main()
