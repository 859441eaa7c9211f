"""How long a search over its whole space takes, for each candidate.

    python -m benchmarks.search
    python -m benchmarks.search --strict

``candidates`` are all combinations × micro-batches of the question; those that need no look, because a smaller
micro-batch of the same combination does not fit, are ``ruled out``. The best of several rounds, in one process;
``first`` is a model's first search. ``--strict`` holds a search to a second for each 10 000 candidates.
"""

from __future__ import annotations

import argparse
import sys
from time import perf_counter

from tabulate import tabulate

from dsconf.cluster.read import read_cluster
from dsconf.model.read import read_model
from dsconf.model.spec import Model
from dsconf.search.candidates import Examined, examine, real_tools
from dsconf.search.space import combinations
from dsconf.search.wish import Wish

MICROSECONDS = 100.0
QUESTIONS = (
    ("meta-llama/Llama-3.2-1B", 8, Wish(seq_len=1024, global_batch=5760)),
    ("meta-llama/Llama-3.1-8B", 8, Wish(seq_len=2048, global_batch=5760)),
    ("meta-llama/Llama-3.1-8B", 64, Wish(seq_len=2048, global_batch=46080)),
    ("meta-llama/Llama-3.1-70B", 64, Wish(seq_len=32768, global_batch=46080)),
    ("mistralai/Mixtral-8x7B-v0.1", 64, Wish(seq_len=4096, global_batch=46080)),
)


def search(model: Model, gpus: int, wish: Wish) -> Examined:
    """All of what ``recommend`` examines before it orders the candidates."""
    cluster = read_cluster(gpus, "h100-80gb", nvme="/nvme")
    return examine(model, cluster, combinations(model, cluster, wish), real_tools())


def timed(model: Model, gpus: int, wish: Wish) -> tuple[float, Examined]:
    """Seconds of one search, and what it found."""
    start = perf_counter()
    found = search(model, gpus, wish)
    return perf_counter() - start, found


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--strict", action="store_true", help="exit with 1 where a search is too slow")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    table, slow = [], False
    for name, gpus, wish in QUESTIONS:
        model = read_model(model=name)
        first, _ = timed(model, gpus, wish)
        best, found = min((timed(model, gpus, wish) for _ in range(arguments.rounds)), key=lambda pair: pair[0])
        looked = len(found.candidates)
        every = looked + found.ruled_out
        slow = slow or 1e6 * best / every > MICROSECONDS
        table.append([name, gpus, wish.seq_len, every, looked, 1e3 * first, 1e3 * best, 1e6 * best / looked])
    heads = ["model", "GPUs", "tokens", "candidates", "looked at", "first ms", "ms", "µs each looked at"]
    print(tabulate(table, heads, floatfmt=".0f"))
    if arguments.strict and slow:
        sys.exit(f"a search takes more than {MICROSECONDS:.0f} µs for each candidate")


if __name__ == "__main__":
    main()
