"""How long ``dsconf validate`` takes: one file in a process of its own, and 600 files in one call.

One file is a multiple of ``python -c 'import click, jsonschema'``, the median of interleaved rounds; 600 files are
seconds of one process. Measure an installed copy, as for benchmarks/startup.py; FOLDER takes other files than the
generated ones.

    python benchmarks/validate/timing.py --strict [FOLDER]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from time import perf_counter

BASELINE = [sys.executable, "-c", "import click, jsonschema"]
VALIDATE = [sys.executable, "-m", "dsconf", "validate"]
MAX_RATIO = 2.0
MAX_SECONDS = 3.0
FILES = 600
GOOD = {
    "train_micro_batch_size_per_gpu": 4,
    "gradient_accumulation_steps": 8,
    "gradient_clipping": 1.0,
    "bf16": {"enabled": True},
    "zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu", "pin_memory": True}},
    "optimizer": {"type": "AdamW", "params": {"lr": 1e-4, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.1}},
    "scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 100}},
}
BAD = {**GOOD, "zero_optimisation": {"stage": 3}, "overlap_comm": True, "amp": {"enabled": False}}
AUTO = {**GOOD, "train_micro_batch_size_per_gpu": "auto", "bf16": {"enabled": "auto"}, "train_batch_size": "auto"}


def seconds(command: list[str]) -> float:
    """Return the wall time of ``command``; an exit code other than 0 or 1 stops the benchmark."""
    start = perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    elapsed = perf_counter() - start
    if done.returncode not in (0, 1):
        sys.exit(f"{' '.join(command[:5])} failed ({done.returncode}): {done.stderr}")
    return elapsed


def write_files(folder: Path) -> list[str]:
    """Write a good config, one with four faults, one with "auto" values and one with comments, over and over."""
    texts = [json.dumps(config, indent=2) for config in (GOOD, BAD, AUTO, GOOD)]
    texts[-1] = f"// by hand\n{texts[-1]}"
    names = []
    for number, text in zip(range(FILES), cycle(texts), strict=False):
        path = folder / f"{number}.json"
        path.write_text(text, encoding="utf-8")
        names.append(str(path))
    return names


def measure(names: list[str], rounds: int) -> dict[str, float]:
    """Measure the median seconds of the baseline, of a file with nothing to say, of one with findings, and of all
    files."""
    commands = {
        "baseline": BASELINE,
        "one good file": [*VALIDATE, names[0]],
        "one bad file": [*VALIDATE, names[1 % len(names)]],
        f"{FILES} files": [*VALIDATE, *islice(cycle(names), FILES)],
    }
    times: dict[str, list[float]] = {name: [] for name in commands}
    for number in range(rounds + 1):
        for name, command in commands.items():
            elapsed = seconds(command)
            if number:
                times[name].append(elapsed)
    return {name: median(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, help="a folder of *.json files")
    parser.add_argument("--rounds", type=int, default=9, help="measured runs of each process (default 9)")
    parser.add_argument("--strict", action="store_true", help="exit 1 if a bound is missed")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        names = sorted(map(str, args.folder.glob("*.json"))) if args.folder else write_files(Path(folder))
        if not names:
            sys.exit(f"no *.json file in {args.folder}")
        times = measure(names, args.rounds)
    missed = False
    for name, value in times.items():
        ratio = value / times["baseline"]
        many = name.endswith("files")
        missed |= value > MAX_SECONDS if many else ratio > MAX_RATIO and name != "baseline"
        bound = f"bound {MAX_SECONDS} s" if many else "" if name == "baseline" else f"bound {MAX_RATIO} ×"
        print(f"{name:<14} {value * 1e3:>6.0f} ms {ratio:>6.2f} ×  {bound}".rstrip())
    if missed and args.strict:
        sys.exit("a bound is missed")


if __name__ == "__main__":
    main()
