"""How long a search over its whole space takes, for each candidate that it looks at.

    python -m benchmarks.search
    python -m benchmarks.search --strict

``candidates`` are all combinations × micro-batches of the question. ``looked at`` are those whose memory is estimated
and whose step is timed; the others need no look, because a smaller micro-batch of the same combination does not fit.
In the last question nearly everything fits, so that more than 10 000 are looked at: its sequences are of a few tokens,
and its batch has many divisors. The best of several rounds, in one process; ``first`` is a model's first search, which
records its layers. ``--strict`` holds a search to a second for each 10 000 candidates looked at.
"""

from __future__ import annotations

import argparse
import sys
from time import perf_counter
from typing import NamedTuple

from tabulate import tabulate

from dsconf.cluster.read import read_cluster
from dsconf.model.read import read_model
from dsconf.model.spec import Model
from dsconf.search.candidates import Examined, examine, real_models
from dsconf.search.constraints import Constraints
from dsconf.search.space import combinations

MICROSECONDS = 100.0


class Question(NamedTuple):
    """What is asked: ``gpus`` cards called ``gpu``, with a local disk."""

    model: str
    gpus: int
    fixed: Constraints
    gpu: str = "h100-80gb"


ALL_FIT = Question("TinyLlama/TinyLlama-1.1B-Chat-v1.0", 64, Constraints(seq_len=8, global_batch=64 * 332_640), "h200")
QUESTIONS = (
    Question("meta-llama/Llama-3.2-1B", 8, Constraints(seq_len=1024, global_batch=5760)),
    Question("meta-llama/Llama-3.1-8B", 8, Constraints(seq_len=2048, global_batch=5760)),
    Question("meta-llama/Llama-3.1-8B", 64, Constraints(seq_len=2048, global_batch=46080)),
    Question("meta-llama/Llama-3.1-70B", 64, Constraints(seq_len=32768, global_batch=46080)),
    Question("mistralai/Mixtral-8x7B-v0.1", 64, Constraints(seq_len=4096, global_batch=46080)),
    ALL_FIT,
)


def search(model: Model, question: Question) -> Examined:
    """Return everything that ``recommend`` examines before it orders the candidates."""
    cluster = read_cluster(question.gpus, question.gpu, nvme="/nvme")
    return examine(model, cluster, combinations(model, cluster, question.fixed), real_models())


def timed(model: Model, question: Question) -> tuple[float, Examined]:
    """Return the seconds of one search, and what it found."""
    start = perf_counter()
    answer = search(model, question)
    return perf_counter() - start, answer


def main() -> None:
    """Run what the module's docstring says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--strict", action="store_true", help="exit with 1 where a search is too slow")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    table, slow = [], False
    for question in QUESTIONS:
        model = read_model(model=question.model)
        first, _ = timed(model, question)
        best, answer = min((timed(model, question) for _ in range(arguments.rounds)), key=lambda pair: pair[0])
        looked = len(answer.candidates)
        each = 1e6 * best / looked
        slow = slow or each > MICROSECONDS
        row = [question.model, question.gpus, question.fixed.seq_len, looked + answer.ruled_out, looked]
        table.append([*row, 1e3 * first, 1e3 * best, each])
    heads = ["model", "GPUs", "tokens", "candidates", "looked at", "first ms", "ms", "µs each looked at"]
    print(tabulate(table, heads, floatfmt=".0f"))
    if arguments.strict and slow:
        sys.exit(f"a search takes more than {MICROSECONDS:.0f} µs for each candidate that it looks at")


if __name__ == "__main__":
    main()
