"""Trains what the recommender chooses from, and holds its order against the clock.

    python -m benchmarks.speed.grid --model meta-llama/Llama-3.2-1B --global-batch-size 16 --record grid.jsonl
    python -m benchmarks.speed.grid --read grid.jsonl

Runs the recommendation, the candidates ranked next, and a grid of stage × micro-batch × activation checkpointing ×
offload at world size 1 on this machine's GPU, one after the other, each in a forked process (torch and DeepSpeed are
imported once). A row is what ``h200-step-times.jsonl`` has. The summary says, for each model: what share of the best
measured tokens/s the recommendation reaches, whether a later-ranked candidate was faster, and the error of the
predicted step times. ``--list`` names the candidates without running them.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tabulate import tabulate

from dsconf.cluster.read import read_cluster
from dsconf.config.render import render
from dsconf.model.attention import runs_eager
from dsconf.model.read import read_model
from dsconf.search.candidates import Candidate, evaluate, real_models, with_batch
from dsconf.search.names import name
from dsconf.search.rank import choose, ranked
from dsconf.search.space import Constraints, combinations
from dsconf.workload import Workload

WARM_UP = 2
"""Steps that are not timed: allocations, autotuning, moments."""


def candidates(arguments: argparse.Namespace) -> list[Candidate]:
    """List everything the recommender would choose from, best first; what does not fit is left out."""
    from dsconf.job import Job

    model = read_model(model=arguments.model, lora_rank=arguments.lora_rank or None)
    cluster = read_cluster(1, arguments.gpu, host_memory=arguments.host_memory)
    cluster = replace(cluster, cpu_cores=len(os.sched_getaffinity(0)))
    fixed = Constraints(seq_len=arguments.seq_len, global_batch=arguments.global_batch_size, offload=arguments.offload)
    tools = real_models()
    evaluated = []
    for settings, workloads in combinations(model, cluster, fixed):
        for workload in workloads:
            job = Job(model, cluster, with_batch(settings, workload, cluster), workload)
            evaluated.append(evaluate(job, tools))
    kept = ranked(candidate for candidate in evaluated if candidate.fits != "no")
    return [candidate for candidate in kept if not (arguments.skip and arguments.skip.search(name(candidate)))]


def pattern(text: str) -> re.Pattern[str]:
    """Compile a regular expression that a person typed."""
    try:
        return re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a regular expression: {error}") from None


def chosen(
    ordered: list[Candidate], micro_batches: Sequence[int], following: int, only: re.Pattern[str] | None
) -> list[Candidate]:
    """Return the recommendation, those ranked next, and the grid; or only those whose words match ``only``."""
    if only:
        return [candidate for candidate in ordered if only.fullmatch(f"{candidate.settings.engine} {name(candidate)}")]
    best = choose(ordered)
    ours = [candidate for candidate in ordered if candidate.settings.engine == "deepspeed"]
    first = ([best] if best else []) + [candidate for candidate in ours if candidate is not best][:following]
    largest = max(micro_batches, default=0)
    grid = [
        candidate
        for candidate in ordered
        if candidate.workload.micro_batch in micro_batches
        and (not (candidate.workload.checkpointing or candidate.offloads) or candidate.workload.micro_batch == largest)
        and not (candidate.workload.checkpointing and candidate.offloads)
    ]
    return list({id(candidate): candidate for candidate in (*first, *grid)}.values())


def row(candidate: Candidate, arguments: argparse.Namespace, place: int) -> dict[str, Any]:
    """Return what identifies a candidate in a file, and what is predicted for it."""
    work, settings = candidate.workload, candidate.settings
    engine = settings.engine
    config = json.loads(render(settings)) if engine == "deepspeed" else _plain(candidate)
    lora = f"-lora{arguments.lora_rank}" if arguments.lora_rank else ""
    return {
        "name": f"{arguments.model.rpartition('/')[2]}{lora}: {engine} {name(candidate)}",
        "model": dict(candidate.job.model.hf_config),
        "gpu": candidate.job.cluster.gpu.name,
        "gpus_per_node": 1,
        "cpu_cores": candidate.job.cluster.cores,
        "world_size": 1,
        "micro_batch_size": work.micro_batch,
        "seq_len": work.seq_len,
        "gradient_accumulation_steps": work.accumulation,
        "gradient_checkpointing": work.checkpointing,
        "attention": "eager" if runs_eager(candidate.job.model.family, work.attention) else work.attention,
        "lora_rank": arguments.lora_rank,
        "engine": engine,
        "ds_config": config,
        "rank_in_search": place,
        "predicted": {"step_seconds": candidate.step.seconds, "peak_bytes": candidate.estimate.peak_bytes},
    }


def _plain(candidate: Candidate) -> dict[str, Any]:
    """Return what torch alone is given: the batch, the precision and the optimizer, in the words of a ds_config."""
    work = candidate.workload
    return {
        "train_micro_batch_size_per_gpu": work.micro_batch,
        "gradient_accumulation_steps": work.accumulation,
        "bf16": {"enabled": True},
        "optimizer": {"type": "AdamW", "params": {"lr": 5e-5}},
        "gradient_clipping": 1.0,
    }


def preload(cases: list[dict[str, Any]]) -> None:
    """Import in the parent what every run needs; no CUDA context may be there before a fork."""
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")  # as every launch line has it
    import deepspeed  # noqa: F401
    import peft  # noqa: F401
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        AutoModelForCausalLM.from_config(AutoConfig.for_model(**cases[0]["model"]))


def train(case: dict[str, Any], steps: int, folder: Path) -> None:
    """Train in a process of its own: journal the steps of ``case`` in ``folder``."""
    from dsconf.live.plan import CheckRequest, make_plan, settled
    from dsconf.live.processes.journal import Journal
    from dsconf.live.rank.worker import _prepare_environment, _probe, _train

    model = read_model(model=case["model"], lora_rank=case["lora_rank"] or None)
    request = CheckRequest(
        case["ds_config"],
        model,
        1,
        Workload(
            seq_len=case["seq_len"],
            checkpointing=case["gradient_checkpointing"],
            zero_init=False,
        ),
        steps=steps,
        backend="ddp" if case["engine"] == "ddp" else "deepspeed",
    )
    order = make_plan(settled(request), _probe()).order
    _prepare_environment(order)
    _train(order, 0, Journal(folder, 0))


def measure(case: dict[str, Any], steps: int, limit: float) -> dict[str, Any]:
    """Return ``case`` with what was measured, or with the error."""
    folder = Path(tempfile.mkdtemp(prefix="dsconf-grid-"))
    pid = os.fork()
    if pid == 0:
        with (folder / "log").open("w") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        code = 1
        try:
            train(case, steps, folder)
            code = 0
        except BaseException as error:
            (folder / "error").write_text(repr(error)[:400])
        finally:
            os._exit(code)
    until = time.monotonic() + limit
    while os.waitpid(pid, os.WNOHANG) == (0, 0):
        if time.monotonic() > until:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            (folder / "error").write_text(f"no end after {limit:.0f} s")
            break
        time.sleep(0.02)
    measured = _measured(folder, case)
    shutil.rmtree(folder)
    return measured


def _measured(folder: Path, case: dict[str, Any]) -> dict[str, Any]:
    from dsconf.live.processes.journal import JournalReader

    error = folder / "error"
    steps = [event for event in JournalReader(folder, 0).new_events() if event["event"] == "iteration"]
    if error.exists() or len(steps) <= WARM_UP:
        return {**case, "error": error.read_text() if error.exists() else "it ended early"}
    seconds = [round(step["step_seconds"], 4) for step in steps]
    peak = max(step[f"{phase}_bytes"] for step in steps for phase in ("forward", "backward", "step"))
    reserved = max(step.get("reserved_bytes", 0) for step in steps)
    return {**case, "measured": {"step_seconds": seconds, "peak_bytes": peak, "reserved_bytes": reserved}}


def seconds_of(case: dict[str, Any]) -> float:
    """Return the median of the timed steps."""
    return statistics.median(case["measured"]["step_seconds"][WARM_UP:])


def summary(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Say model by model what was measured beside the prediction, fastest first, and how the recommendation does."""
    models = dict.fromkeys(case["name"].partition(":")[0] for case in rows)
    for model in models:
        ran = [case for case in rows if case["name"].startswith(f"{model}:") and "measured" in case]
        failed = [case for case in rows if case["name"].startswith(f"{model}:") and "error" in case]
        ran.sort(key=seconds_of)
        table = []
        for case in ran:
            predicted, measured = case["predicted"]["step_seconds"], seconds_of(case)
            tokens = case["micro_batch_size"] * case["gradient_accumulation_steps"] * case["seq_len"]
            off = 100 * (predicted / measured - 1)
            memory = 100 * (case["predicted"]["peak_bytes"] / case["measured"]["peak_bytes"] - 1)
            shown = case["name"].partition(": ")[2]
            table.append([shown, case["rank_in_search"], measured, predicted, off, tokens / measured, memory])
        heads = ["candidate", "place", "measured s", "predicted s", "error %", "tokens/s", "memory error %"]
        yield f"\n{model}\n" + tabulate(table, heads, floatfmt=("", "", ".4f", ".4f", "+.1f", ",.0f", "+.2f"))
        errors = [abs(line[4]) for line in table]
        if errors:
            yield f"step time: median error {statistics.median(errors):.1f} % of {len(errors)}"
        ours = [case for case in ran if case["engine"] == "deepspeed"]
        recommended = [case for case in ours if case["rank_in_search"] == 0]
        if recommended:
            share = seconds_of(ours[0]) / seconds_of(recommended[0])
            yield f"the recommendation reaches {share:.1%} of the fastest DeepSpeed config here".replace("%", " %")
        for case in failed:
            yield f"failed: {case['name']}: {case['error']}"


def main() -> None:
    """Run what the module's docstring says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--read", type=Path, help="only the summary of this file")
    parser.add_argument("--list", action="store_true", help="name the candidates, run none")
    parser.add_argument("--model")
    parser.add_argument("--gpu", default="h200", help="the card of this machine (default %(default)s)")
    parser.add_argument("--lora-rank", type=int, default=0)
    parser.add_argument("--seq-len", type=int, default=1024)
    parser.add_argument("--global-batch-size", type=int, default=16)
    parser.add_argument("--micro-batches", default="1,4,16", help="of the grid; empty for none")
    parser.add_argument("--next", type=int, default=3, help="candidates ranked after the recommendation that are run")
    parser.add_argument(
        "--only", type=pattern, help="instead: the candidates that --list shows in words this pattern matches whole"
    )
    parser.add_argument("--skip", type=pattern, help="leave out the candidates whose words hold this pattern")
    parser.add_argument("--offload", help="only this offload, in the words of recommend")
    parser.add_argument("--host-memory", default="110GiB")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start no run after this many")
    parser.add_argument("--record", type=Path)
    arguments = parser.parse_args()
    if arguments.read:
        rows = [json.loads(line) for line in arguments.read.read_text().splitlines()]
        print("\n".join(summary(rows)))
        return
    ordered = candidates(arguments)
    best = choose(ordered)
    sizes = [int(size) for size in arguments.micro_batches.split(",") if size]
    picked = chosen(ordered, sizes, arguments.next, arguments.only)
    ours = [one for one in ordered if one.settings.engine == "deepspeed"]
    cases = [row(one, arguments, 0 if one is best else 1 + ours.index(one) if one in ours else -1) for one in picked]
    if arguments.list:
        print("\n".join(case["name"] for case in cases))
        return
    preload(cases)
    start, rows = time.monotonic(), []
    for number, case in enumerate(cases):
        if time.monotonic() - start > arguments.seconds:
            print(f"{len(cases) - number} left", file=sys.stderr)
            break
        rows.append(measure(case, arguments.steps, 120))
        print(case["name"], rows[-1].get("error") or f"{seconds_of(rows[-1]):.4f}", file=sys.stderr, flush=True)
        if arguments.record:
            with arguments.record.open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
    print("\n".join(summary(rows)))


if __name__ == "__main__":
    main()
