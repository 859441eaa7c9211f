"""What Python and launches cost in steps too small to keep a GPU busy, and the speed model's figures for them.

    python -m benchmarks.speed.launches --record launches.jsonl
    python -m benchmarks.speed.launches --fit tests/measured/h200-launches.jsonl

One sequence of 128 tokens; forward, backward and optimizer step apart, each the median of six after three. ``--fit``
prints least squares of the relative errors of the rows, none below zero, beside what ``dsconf/speed/rates.py`` has.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tabulate import tabulate

from dsconf.cluster.read import read_cluster
from dsconf.config.resolve import resolve
from dsconf.config.settings import Settings
from dsconf.job import Job
from dsconf.model.read import read_model
from dsconf.speed import rates
from dsconf.speed.compute import micro_batch
from dsconf.speed.cpu_overhead import engine
from dsconf.workload import Workload

SEQ_LEN, STEPS, WARM_UP = 128, 9, 3
LLAMA = {"model_type": "llama", "hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 16}
LLAMA |= {"num_attention_heads": 8, "num_key_value_heads": 8, "vocab_size": 4096, "tie_word_embeddings": False}
NEOX = {"model_type": "gpt_neox", "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 16}
NEOX |= {"num_attention_heads": 8, "vocab_size": 4096, "tie_word_embeddings": False}
WIDE = LLAMA | {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 6, "num_attention_heads": 32}
MODELS = {"small": LLAMA, "neox": NEOX, "wide": WIDE}
THIRD = {"stage": 3, "overlap_comm": True, "reduce_bucket_size": 50_000_000, "sub_group_size": 100_000_000}
NOT_KEPT = {"stage3_max_reuse_distance": 0}
KINDS: dict[str, dict[str, Any]] = {
    "z0": {"stage": 0},
    "z1": {"stage": 1, "overlap_comm": True},
    "z2": {"stage": 2, "overlap_comm": True},
    "z3": THIRD,
    "z3 reuse0": THIRD | NOT_KEPT,
    "z3 reuse0 prefetch0": THIRD | NOT_KEPT | {"stage3_prefetch_bucket_size": 0},
    "z3 persist all": THIRD | {"stage3_param_persistence_threshold": 10**9},
    "z3 persist 0": THIRD | {"stage3_param_persistence_threshold": 0},
}
VARIANTS = {"": (False, 0), " ckpt": (True, 0), " lora": (False, 8)}

FITTED: dict[str, tuple[str, int | None]] = {
    "operation": ("OPERATION_SECONDS", None),
    "module": ("MODULE_SECONDS", None),
    "backward operation": ("BACKWARD_OPERATION_SECONDS", None),
    "gradient": ("GRADIENT_SECONDS", None),
    "saved": ("SAVED_SECONDS", None),
    "hook": ("HOOK_SECONDS", None),
    "fetch": ("FETCH_SECONDS", None),
    "gather": ("GATHER_SECONDS", None),
    "step 0": ("STEP_SECONDS", 0),
    "step 1": ("STEP_SECONDS", 1),
    "step 3": ("STEP_SECONDS", 3),
    "plain step": ("PLAIN_STEP_SECONDS", None),
}
Row = dict[str, Any]


def job_of(row: Row) -> Job:
    """Make the job that ``row`` measured; early rows have DeepSpeed's defaults in place of a ``zero`` block."""
    if "zero" in row:
        settings = resolve({"bf16": {"enabled": True}, "zero_optimization": row["zero"]}, 1)
    elif row["how"] == "plain":
        settings = Settings(engine="ddp", precision="bf16")
    else:
        settings = Settings(stage=int(row["how"][1]), precision="bf16")
    model = read_model(model=row["model"], lora_rank=row["lora_rank"] or None)
    workload = Workload(seq_len=row["seq_len"], checkpointing=row["gradient_checkpointing"])
    return Job(model, read_cluster(1, "h200"), settings, workload)


def seconds_of(job: Job) -> dict[str, float]:
    """Predict the milliseconds of the CPU in forward, backward and step, as rows have them."""
    passes = micro_batch(job)
    python = engine(job)
    backward = passes.head_backward.launch + passes.backward.launch + passes.recompute.launch
    return {
        "forward_ms": 1e3 * (passes.layers.launch + passes.head.launch + python.forward),
        "backward_ms": 1e3 * (backward + python.backward + python.recompute),
        "step_ms": 1e3 * python.step,
    }


def counts(job: Job) -> dict[str, dict[str, float]]:
    """Count how often each fitted figure is in each phase: what the model predicts where that figure alone is a
    second."""
    keep = {name: getattr(rates, name) for name, _ in FITTED.values()}
    zero = {name: dict.fromkeys(value, 0.0) if isinstance(value, dict) else 0.0 for name, value in keep.items()}
    by_phase: dict[str, dict[str, float]] = {phase: {} for phase in ("forward_ms", "backward_ms", "step_ms")}
    try:
        for label, (name, stage) in FITTED.items():
            values = zero | {name: 1.0 if stage is None else {0: 0.0, 1: 0.0, 2: 0.0, 3: 0.0, stage: 1.0}}
            if stage == 1:
                values["STEP_SECONDS"] = {0: 0.0, 1: 1.0, 2: 1.0, 3: 0.0}
            _set(values)
            for phase, value in seconds_of(job).items():
                by_phase[phase][label] = value / 1e3
    finally:
        _set(keep)
    return by_phase


def _set(values: dict[str, Any]) -> None:
    from dsconf.speed import compute

    for name, value in values.items():
        setattr(rates, name, value)
    for function in vars(compute).values():
        getattr(function, "cache_clear", lambda: None)()


def fit(rows: list[Row]) -> dict[str, float]:
    """Fit the seconds of each figure: least squares of relative errors, by coordinates, none below zero."""
    lines: list[dict[str, float]] = []
    for row in rows:
        for phase, count in counts(job_of(row)).items():
            # The wide model's optimizer step is that of 1.3 billion parameters on the GPU.
            if not (phase == "step_ms" and "wide" in row["name"].split()):
                measured = row["measured"][phase] / 1e3
                lines.append({label: times / measured for label, times in count.items()})
    wanted = {label: sum(line[label] for line in lines) for label in FITTED}  # every line is to come to 1
    products = {label: {k: sum(line[label] * line[k] for line in lines) for k in FITTED} for label in FITTED}
    fitted = dict.fromkeys(FITTED, 0.0)
    for _ in range(2000):
        for label, row in products.items():
            rest = wanted[label] - sum(row[k] * v for k, v in fitted.items() if k != label)
            fitted[label] = max(0.0, rest / row[label]) if row[label] else 0.0
    return fitted


def measure(name: str, model: Row, zero: Row, checkpointing: bool, lora_rank: int) -> Row:
    """Measure one row, on the GPU of this process."""
    import deepspeed
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("cuda"):
        network = AutoModelForCausalLM.from_config(AutoConfig.for_model(**model), dtype=torch.bfloat16)
    if lora_rank:
        from peft import LoraConfig, get_peft_model

        network = get_peft_model(network, LoraConfig(r=lora_rank, target_modules="all-linear", task_type="CAUSAL_LM"))
    if checkpointing:
        network.gradient_checkpointing_enable()
    network.train()
    config = {"train_micro_batch_size_per_gpu": 1, "bf16": {"enabled": True}, "gradient_clipping": 1.0}
    config |= {"zero_optimization": zero, "optimizer": {"type": "AdamW", "params": {"lr": 1e-5}}}
    parameters = [one for one in network.parameters() if one.requires_grad]
    train, *_ = deepspeed.initialize(model=network, model_parameters=parameters, config=config)
    ids = torch.randint(0, model["vocab_size"], (1, SEQ_LEN), device="cuda")

    def timed(what: Callable[[], Any]) -> tuple[float, Any]:
        torch.cuda.synchronize()
        start = time.perf_counter()
        made = what()
        torch.cuda.synchronize()
        return 1e3 * (time.perf_counter() - start), made

    phases: list[tuple[float, float, float]] = []
    for _ in range(STEPS):
        forward, loss = timed(lambda: train(input_ids=ids, labels=ids, use_cache=False).loss)
        backward, _ = timed(lambda loss=loss: train.backward(loss))
        phases.append((forward, backward, timed(train.step)[0]))
    medians = [round(statistics.median(phase), 3) for phase in zip(*phases[WARM_UP:], strict=True)]
    train.destroy()
    return {
        "name": name,
        "host_cores": os.cpu_count(),
        "model": model,
        "zero": zero,
        "lora_rank": lora_rank,
        "gradient_checkpointing": checkpointing,
        "offload": "none",
        "micro_batch_size": 1,
        "seq_len": SEQ_LEN,
        "trained_tensors": len(parameters),
        "measured": dict(zip(("forward_ms", "backward_ms", "step_ms"), medians, strict=True)),
    }


def measure_all(record: Path) -> None:
    """Measure every model, kind and variant, and write a line each as it ends."""
    import torch

    for key, value in {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29777", "RANK": "0", "WORLD_SIZE": "1"}.items():
        os.environ.setdefault(key, value)
    os.environ.setdefault("LOCAL_RANK", "0")
    for named, model in MODELS.items():
        for kind, zero in KINDS.items():
            for variant, (checkpointing, lora_rank) in VARIANTS.items():
                row = measure(f"{named} {kind}{variant}", model, zero, checkpointing, lora_rank)
                print(row["name"], row["measured"], flush=True)
                with record.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                gc.collect()
                torch.cuda.empty_cache()


def main() -> None:
    """Run what the module's docstring says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--record", type=Path, help="measure here, and append to this file")
    what.add_argument("--fit", type=Path, help="the figures that fit the rows of this file")
    arguments = parser.parse_args()
    if arguments.record:
        measure_all(arguments.record)
        return
    rows = [json.loads(line) for line in arguments.fit.read_text().splitlines()]
    fitted = fit([row for row in rows if row["offload"] == "none"])
    table = []
    for label, (name, stage) in FITTED.items():
        has = getattr(rates, name)
        table.append([label, 1e6 * fitted[label], 1e6 * (has if stage is None else has[stage])])
    print(tabulate(table, ["figure", "fitted µs", "in rates.py µs"], floatfmt=".1f"))


if __name__ == "__main__":
    main()
