"""Keeps the tables of docs/memory.md true: the terms with an example of each, and the accuracy on measured cases.

python -m tools.docs.memory_page            exit 1 and show the difference if the page is stale
python -m tools.docs.memory_page --write    put the tables as they are now into the page
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from tabulate import tabulate

from benchmarks.memory import accuracy
from dsconf.cluster.read import read_cluster
from dsconf.config.resolve import resolve
from dsconf.job import Job
from dsconf.memory.estimate import named, rises
from dsconf.memory.explain import explain_host
from dsconf.memory.terms import HOST_TERMS, TERMS, TermText
from dsconf.memory.timeline.common import explaining, prepare
from dsconf.model.read import read_model
from dsconf.workload import Workload
from tools.docs.stale import main

REPO = Path(__file__).resolve().parents[2]

PAGE = REPO / "docs" / "memory.md"
TABLE = re.compile(r"(?<=^<!-- table: )([\w.-]+)( -->\n).*?(?=^<!-- end -->$)", re.MULTILINE | re.DOTALL)
WRAPPERS = {
    "zero12": "stages 1, 2",
    "zero3": "stage 3",
    "fp16": "stage 0 in 16 bit",
    "unfused": "stage 0 in 16 bit, not FusedAdam",
    "bf16": "stage 1 with fp32 accumulation",
    "none": "stage 0 in fp32",
    "ddp": "DDP",
}
"""The optimizer wrappers of memory/zero/wrapper.py, as a person would name them."""

LLAMA = "meta-llama/Llama-3.1-8B"
GPT_NEO = {"model_type": "gpt_neo", "hidden_size": 2048, "num_layers": 24, "num_heads": 16, "vocab_size": 50257}
ADAM = {"optimizer": {"type": "AdamW", "params": {}}}
TORCH = {"optimizer": {"type": "AdamW", "params": {"torch_adam": True}}}
MUON = {"optimizer": {"type": "Muon", "params": {}}}
ADAGRAD = {"optimizer": {"type": "Adagrad", "params": {}}, "zero_allow_untested_optimizer": True}
BF16, FP16 = {"bf16": {"enabled": True}}, {"fp16": {"enabled": True}}
PINNED = {"device": "cpu", "pin_memory": True}
NVME = {"device": "nvme", "nvme_path": "/nvme"}


def _zero(stage: int, **more: Any) -> dict[str, Any]:
    return {"zero_optimization": {"stage": stage, **more}}


EXAMPLES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "stage 2": (BF16 | ADAM | _zero(2), {}),
    "stage 3": (BF16 | ADAM | _zero(3), {}),
    "stage 1": (BF16 | ADAM | _zero(1), {}),
    "stage 0": (BF16 | ADAM | _zero(0), {}),
    "DDP": ({}, {"ddp": True}),
    "stage 2, optimizer offloaded": (
        BF16 | ADAM | _zero(2, offload_optimizer=PINNED) | {"gradient_accumulation_steps": 2},
        {},
    ),
    "stage 3, all offloaded": (BF16 | ADAM | _zero(3, offload_optimizer=PINNED, offload_param=PINNED), {}),
    "stage 3, on NVMe": (BF16 | ADAM | _zero(3, offload_optimizer=NVME, offload_param=NVME), {}),
    "stage 3, ratio 0.4": (BF16 | ADAM | _zero(3, sub_group_size=10**8, offload_optimizer=PINNED | {"ratio": 0.4}), {}),
    "stage 3, fp16": (FP16 | ADAM | _zero(3), {}),
    "stage 3, zero_hpz_partition_size 8": (BF16 | ADAM | _zero(3, zero_hpz_partition_size=8), {}),
    "stage 2, torch's AdamW": (BF16 | TORCH | _zero(2), {}),
    "stage 2, Muon": (BF16 | MUON | _zero(2), {}),
    "stage 3, Muon, reduce_bucket_size 50,000,000": (BF16 | MUON | _zero(3, reduce_bucket_size=5 * 10**7), {}),
    "stage 2, Adagrad": (BF16 | ADAGRAD | _zero(2), {}),
    "stage 2, LoRA of rank 16": (BF16 | ADAM | _zero(2), {"lora_rank": 16}),
    "stage 2, Llama 3.2 1B": (BF16 | ADAM | _zero(2), {"model": "meta-llama/Llama-3.2-1B"}),
    "stage 2, GPT-Neo 1.3B": (BF16 | ADAM | _zero(2), {"model": GPT_NEO}),
}
"""Llama 3.1 8B on 8 GPUs, where no other model is named; an example of a term is from the first that has it."""


def _job(config: dict[str, Any], words: dict[str, Any]) -> Job:
    settings = resolve(config | {"train_micro_batch_size_per_gpu": 1}, 8)
    if words.get("ddp"):
        settings = replace(settings, engine="ddp", precision="fp32", optimizer="adamw", optimizer_fused=False)
    model = read_model(model=words.get("model", LLAMA), lora_rank=words.get("lora_rank"))
    accumulation = config.get("gradient_accumulation_steps", 1)
    return Job(model, read_cluster(8, gpu="h200"), settings, Workload(seq_len=2048, accumulation=accumulation))


def _of_gpu(job: Job) -> Iterator[tuple[str, int]]:
    step = prepare(job)
    step = step._replace(frame=explaining(step.frame))
    for rise in rises(step, 0):
        yield from ((term.name, term.num_bytes) for term in named(step, 0, rise).terms)


def terms() -> str:
    """List every term: what it is, one with its numbers, and where it is allocated under each wrapper."""
    on_gpu: dict[str, tuple[str, int]] = {}
    on_host: dict[str, tuple[str, int]] = {}
    for label, (config, words) in EXAMPLES.items():
        job = _job(config, words)
        for name, size in _of_gpu(job):
            on_gpu.setdefault(name, (label, size))
        for name, size in explain_host(job, 0).items():
            on_host.setdefault(name, (label, size))
    rows = [_row(name, text, *on_gpu[name]) for name, text in TERMS.items()]
    rows += [_row(f"{name} (host)", text, *on_host[name]) for name, text in HOST_TERMS.items()]
    return _table(["term", "what it is", "for example", "allocated in"], rows)


def _row(name: str, text: TermText, label: str, num_bytes: int) -> list[str]:
    example = "" if text.is_recorded else f"{label}: {text.formula(num_bytes)}"
    places = [f"{WRAPPERS[wrapper]}: {place}" for wrapper, place in text.places.items() if wrapper]
    if other := text.places.get(""):
        places.append(f"else {other}" if places else other)
    return [name, text.meaning, example, "; ".join(places)]


def measured(file: str) -> str:
    """Compute the absolute errors on one file of tests/measured, in percent, beside those of DeepSpeed's estimators."""
    results = [accuracy.result_of(row) for row in accuracy.read(REPO / "tests" / "measured" / file)]
    return _table(list(accuracy.SUMMARY_HEADERS), accuracy.summary(results))


def _table(headers: list[str], rows: list[list[str]]) -> str:
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True) + "\n"


def refreshed(page: str) -> str:
    """Return ``page`` with each table as it is now."""

    def table(block: re.Match[str]) -> str:
        return block[1] + block[2] + (terms() if block[1] == "terms" else measured(block[1]))

    return TABLE.sub(table, page)


if __name__ == "__main__":
    main(PAGE, refreshed, __doc__)
