"""Every finding has a code, a sentence, a line in the docs, and a question that leads to it."""

from __future__ import annotations

import ast
import inspect
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from search_fakes import FAKES, fake_cluster, fake_model

import dsconf
from dsconf.job import Job
from dsconf.memory.estimate import Estimate
from dsconf.report.reasons import TABLE, sentence, sentences
from dsconf.report.reasons.phrases import compared, compared_with, phrase, speed_difference
from dsconf.search.answer import Recommendation
from dsconf.search.constraints import Constraints
from dsconf.search.explain.reason import Reason
from dsconf.search.question import Question
from dsconf.search.recommend import answer
from dsconf.search.sweep import conclusions, sweep
from dsconf.units import GIB, MIB, TIB

REPO = Path(__file__).resolve().parents[2]
H100 = {"gpu": "h100-80gb"}
FACTS = {
    "name": "ZeRO stage 2, micro-batch 4",
    "offload": "none",
    "fits": "yes",
    "gpus": 8,
    "tokens_per_second": 1000.0,
    "host_bytes_per_node": 8 * GIB,
    "nvme_bytes_per_node": 0,
}
HOSTED = FACTS | {"name": "ZeRO stage 3, optimizer on cpu, micro-batch 8", "offload": "optimizer on cpu"}
ON_DISK = HOSTED | {"name": "ZeRO stage 3, optimizer on nvme, micro-batch 1", "nvme_bytes_per_node": 2 * TIB}
CHOSEN = {"config": FACTS, "resort": None, "held_back": None}
TERM = {"name": "logits and loss", "bytes": 24 * GIB, "formula": "tokens × vocabulary"}
SHORT = {"gpu_bytes": 40 * GIB, "host_bytes": 0, "host_limit_bytes": 4 * TIB, "host_stated": False}
WAITS = {"part": "communication", "share": 0.45, "gpus": 64}
TAKEN = {"process_bytes": 70 * GIB, "fragmentation_bytes": 2 * GIB, "outside_bytes": GIB}
HOST = {"needed_bytes": 300 * GIB, "stated_bytes": None, "assumed_bytes": None, "gpus_per_node": 8}
SWITCHED = {"config": FACTS | {"micro_batch": 4}, "same_settings": True}

SAID: list[tuple[str, dict[str, Any], str]] = [
    (
        "only_one",
        CHOSEN | {"states": None, "left_out": None, "resort": "offload", "config": HOSTED},
        "ZeRO stage 3, optimizer on cpu, micro-batch 8: nothing fits with headroom without offload; this is the only "
        "DeepSpeed config that fits.",
    ),
    (
        "fastest",
        CHOSEN | {"count": 57, "states": None, "left_out": None},
        "ZeRO stage 2, micro-batch 4: the fastest of the 57 DeepSpeed configs that fit with headroom.",
    ),
    (
        "fastest",
        CHOSEN | {"count": 57, "states": "fp32", "left_out": "offload", "held_back": HOSTED | {"gain": 0.081}},
        "ZeRO stage 2, micro-batch 4: the fastest of the 57 DeepSpeed configs that fit with headroom, optimizer "
        "states in fp32 and no offload; ZeRO stage 3, optimizer on cpu, micro-batch 8 would give 8.1 % more "
        "tokens/s but needs 8.00 GiB of host memory in each node: give --host-memory to have it considered.",
    ),
    (
        "fastest",
        CHOSEN | {"count": 2, "states": None, "left_out": None, "resort": "tight", "config": FACTS | {"fits": "tight"}},
        "ZeRO stage 2, micro-batch 4: nothing fits with headroom; this is the fastest of the 2 DeepSpeed configs "
        "that fit tightly.",
    ),
    (
        "simplest",
        CHOSEN | {"faster": HOSTED, "gain": 0.0085, "within": 0.03},
        "ZeRO stage 2, micro-batch 4: the simplest config within 3 % of the fastest (ZeRO stage 3, optimizer on cpu, "
        "micro-batch 8, 0.9 % more tokens/s).",
    ),
    (
        "simplest",
        CHOSEN | {"faster": HOSTED, "gain": 0.0001, "within": 0.03, "resort": "bf16_states"},
        "ZeRO stage 2, micro-batch 4: nothing with optimizer states in fp32 fits with headroom; this is the "
        "simplest config within 3 % of the fastest.",
    ),
    (
        "fullest",
        {"phase": "backward", "moment": "gradient of the loss", "peak_bytes": 62 * GIB, "term": TERM},
        "Memory peaks in backward (gradient of the loss): 62.00 GiB allocated, the largest part logits and loss, "
        "24.00 GiB (tokens × vocabulary).",
    ),
    (
        "fullest_at_start",
        {"start_bytes": 64 * GIB, "phase": "step", "moment": "update", "peak_bytes": 62 * GIB, "term": TERM},
        "Memory peaks in initialisation: 64.00 GiB; the step peaks in step (update): 62.00 GiB allocated, the "
        "largest part logits and loss, 24.00 GiB (tokens × vocabulary).",
    ),
    (
        "slowest",
        {"part": "offload", "waits_for": "host_cpu", "share": 0.56, "step_seconds": 37.4},
        "Speed is limited by offload (optimizer step on the CPU): 56 % of a 37.4 s step.",
    ),
    (
        "slowest",
        {"part": "matmul", "waits_for": None, "share": 0.4, "step_seconds": 2.0},
        "Speed is limited by matrix products: 40 % of a 2 s step.",
    ),
    (
        "next_best",
        {"config": HOSTED, "gain": -0.364, "tight": True, "lost_to": "offload", "more_bytes": -3 * GIB},
        "Next best: ZeRO stage 3, optimizer on cpu, micro-batch 8 (tight), 36.4 % fewer tokens/s, mostly because of "
        "offload; 3.00 GiB less on each GPU.",
    ),
    (
        "next_best",
        {"config": FACTS, "gain": 0.0, "tight": False, "lost_to": "offload", "more_bytes": 0},
        "Next best: ZeRO stage 2, micro-batch 4, the same tokens/s.",
    ),
    ("host_memory", HOST, "Needs 300.00 GiB of host memory in each node: give --host-memory to check."),
    (
        "host_memory",
        HOST | {"assumed_bytes": 640 * GIB},
        "Needs 300.00 GiB of host memory in each node, assumed to be there because its GPUs hold 640.00 GiB: give "
        "--host-memory to check.",
    ),
    ("host_memory", HOST | {"stated_bytes": TIB}, "Needs 300.00 GiB of the 1.00 TiB of host memory in each node."),
    ("nvme_space", {"needed_bytes": 2 * TIB}, "Needs 2.00 TiB on the NVMe disk of each node."),
    (
        "bf16_states",
        {},
        "Optimizer states in bf16 round each update to 8 significant bits: compare the loss with that of fp32 states "
        "before a long run.",
    ),
    (
        "beyond_positions",
        {"positions": 2048, "seq_len": 4096},
        "The model was made for 2048 positions, and --seq-len 4096 goes beyond them: scale its rotary embedding "
        "(rope_scaling, or a larger rope_theta), or it has to learn the new ones from scratch.",
    ),
    (
        "no_bf16",
        {"gpu": "V100"},
        "Trains in fp16 with a dynamic loss scale, because a V100 has no bf16: a model that was trained in bf16 can "
        "overflow in fp16.",
    ),
    (
        "loading",
        {"needed_bytes": 109 * GIB, "stated_bytes": 64 * GIB},
        "Loading takes up to 109.00 GiB of host memory in each node if each process loads the whole model, and a "
        "node has 64.00 GiB: load it on the GPU (device_map), one process after the other, or under "
        "deepspeed.zero.Init at stage 3.",
    ),
    (
        "headroom",
        TAKEN | {"free_bytes": 9 * GIB},
        "Takes 70.00 GiB of each GPU, including 2.00 GiB in reserve for fragmentation and 1.00 GiB for the "
        "driver's context and the communicators; 9.00 GiB stay free.",
    ),
    (
        "little_headroom",
        TAKEN | {"free_bytes": -512 * MIB},
        "Little headroom: it would take 70.00 GiB of each GPU, including 2.00 GiB in reserve for fragmentation and "
        "1.00 GiB for the driver's context and the communicators, which is 512.0 MiB more than there is; a "
        "fragmented allocator can run out of memory, so prove it with --check.",
    ),
    (
        "sample_all_positions",
        {"seq_len": 512, "positions": 1024},
        "This holds for samples of up to --seq-len 512 tokens; with these settings all of the model's 1024 "
        "positions fit.",
    ),
    (
        "sample_no_longer",
        {"seq_len": 896, "step": 128},
        "This holds for samples of up to --seq-len 896 tokens: 128 tokens more do not fit with these settings.",
    ),
    (
        "sample_longer",
        {"seq_len": 2048, "longest": 2560},
        "This holds for samples of up to --seq-len 2048 tokens; with these settings up to 2560 tokens fit.",
    ),
    (
        "script_lora",
        {"rank": 8, "quantize": None, "precision": "bf16"},
        'LoRA of rank 8: the training script must wrap it with peft\'s LoraConfig(r=8, target_modules="all-linear").',
    ),
    (
        "script_lora",
        {"rank": 8, "quantize": "8bit", "precision": "fp16"},
        "QLoRA (8bit) of rank 8: the training script must load the model with dtype=torch.float16 and "
        'BitsAndBytesConfig(load_in_8bit=True) and wrap it with peft\'s LoraConfig(r=8, target_modules="all-linear").',
    ),
    (
        "script_checkpointing",
        {"target": "hf"},
        "Activation checkpointing is turned on by --gradient_checkpointing, which the written arguments include.",
    ),
    (
        "script_checkpointing",
        {"target": "deepspeed"},
        "Turn activation checkpointing on in the training script (model.gradient_checkpointing_enable()): Hugging Face "
        "models do not read the config's activation_checkpointing block.",
    ),
    (
        "script_zero_init",
        {"target": "deepspeed", "start_bytes": 130 * GIB, "fits": False},
        "Build the model under deepspeed.zero.Init: otherwise each GPU holds all of it while it starts, 130.00 "
        "GiB, which does not fit. Import torch._dynamo before: transformers' models import it, which fails under "
        "zero.Init.",
    ),
    (
        "script_zero_init",
        {"target": "hf", "start_bytes": 13 * GIB, "fits": True},
        "Make the TrainingArguments before the model, so that from_pretrained builds it in shards (zero.Init): "
        "otherwise each GPU holds all of it while it starts, 13.00 GiB.",
    ),
    (
        "script_ulysses",
        {"ranks": 4, "target": "deepspeed"},
        "4 ranks share each sequence: the training script must call UlyssesSPAttentionHF.register_with_transformers(…, "
        "sequence_parallel_size=4) before the model is made and read its batches through UlyssesSPDataLoaderAdapter "
        "(deepspeed.runtime.sequence_parallel.ulysses_sp).",
    ),
    (
        "script_ulysses",
        {"ranks": 4, "target": "accelerate"},
        "4 ranks share each sequence: Accelerate sets that up from accelerate.yaml.",
    ),
    (
        "script_tiled_loss",
        {},
        "The loss is computed shard by shard: the training script must replace the model's loss by "
        "TiledFusedLogitsLoss (deepspeed.runtime.sequence_parallel.ulysses_sp).",
    ),
    (
        "one_gpu",
        {},
        "With one GPU ZeRO shards nothing: only offload, checkpointing and a smaller micro-batch save memory.",
    ),
    (
        "plain_torch",
        {"config": FACTS | {"name": "torch DDP, micro-batch 4"}, "gain": 0.0},
        "The model is small enough for plain torch DDP (torch DDP, micro-batch 4: the same tokens/s): DeepSpeed saves "
        "memory here and gains no speed.",
    ),
    (
        "plain_torch",
        {"config": FACTS | {"name": "torch DDP, micro-batch 4", "gpus": 1}, "gain": -0.02},
        "The model is small enough for plain torch (torch DDP, micro-batch 4: 2.0 % fewer tokens/s): DeepSpeed saves "
        "memory here and gains hardly any speed.",
    ),
    (
        "stage_3_holds_more",
        {"more_bytes": GIB},
        "ZeRO stage 3 holds 1.00 GiB more than stage 2 here: what it gathers outweighs what it shards.",
    ),
    (
        "fewer_gpus_as_fast",
        {"gpus": 1, "now": 64, "gain": 0.0, "waits": WAITS, "config": None},
        "A single GPU gives as many tokens/s as 64, since 45 % of the step on 64 GPUs is communication.",
    ),
    (
        "fewer_gpus_as_fast",
        {"gpus": 8, "now": 64, "gain": 0.05, "waits": None, "config": HOSTED},
        "8 GPUs give 5.0 % more tokens/s than 64, with ZeRO stage 3, optimizer on cpu, micro-batch 8.",
    ),
    (
        "each_gpu_gives_less",
        {"gpus": 64, "fewer": 1, "gain": -0.5, "waits": WAITS},
        "Each of the 64 GPUs gives 50 % fewer tokens/s than one alone would, since 45 % of the step on 64 GPUs is "
        "communication.",
    ),
    (
        "more_gpus_bring_nothing",
        {"gpus": 64, "gain": 0.003, "waits": WAITS},
        "More GPUs do not help: 64 give 0.3 % more tokens/s, since 45 % of the step on 64 GPUs is communication.",
    ),
    (
        "more_gpus",
        {"config": FACTS | {"gpus": 16}, "now": 8, "gain": 1.78, "gain_of_each": 0.39, "rounds": True},
        "16 GPUs instead of 8: 178 % more tokens/s (ZeRO stage 2, micro-batch 4); 39 % more tokens/s from each; its "
        "optimizer states in bf16 round each update.",
    ),
    (
        "more_gpus",
        {"config": HOSTED | {"gpus": 16}, "now": 8, "gain": 1.0, "gain_of_each": None, "rounds": False},
        "16 GPUs instead of 8: 100 % more tokens/s (ZeRO stage 3, optimizer on cpu, micro-batch 8, 8.00 GiB of "
        "host memory in each node).",
    ),
    (
        "without_offload",
        {"config": FACTS, "gain": -0.2},
        "Without offload: 20 % fewer tokens/s (ZeRO stage 2, micro-batch 4).",
    ),
    (
        "without_offload_fits_on",
        {"config": FACTS | {"gpus": 16}, "fewest": True},
        "Without offload it fits from 16 GPUs on (ZeRO stage 2, micro-batch 4).",
    ),
    (
        "without_offload_fits_on",
        {"config": FACTS | {"fits": "tight"}, "fewest": False},
        "Without offload it fits on 8 GPUs (ZeRO stage 2, micro-batch 4, tight).",
    ),
    (
        "more_accumulation",
        {"global_batch": 512, "accumulation": 8, "config": None, "gain": 0.93},
        "--global-batch-size 512 (accumulation 8) would give 93 % more tokens/s.",
    ),
    (
        "more_accumulation",
        {"global_batch": 512, "accumulation": 16, "config": FACTS, "gain": 0.034},
        "--global-batch-size 512 (ZeRO stage 2, micro-batch 4, accumulation 16) would give 3.4 % more tokens/s.",
    ),
    (
        "checkpointing_on",
        SWITCHED | {"gain": -0.18, "saved_bytes": 30 * GIB, "fullest": {"phase": "step", "moment": "update"}},
        "Activation checkpointing would save 30.00 GiB on each GPU at the same micro-batch and give 18 % fewer "
        "tokens/s at its best (micro-batch 4).",
    ),
    (
        "checkpointing_on",
        SWITCHED | {"gain": 0.0, "saved_bytes": 0, "fullest": {"phase": "step", "moment": "update"}},
        "Activation checkpointing would save nothing on each GPU at the same micro-batch, where memory peaks in step "
        "(update), and give as many tokens/s at its best (micro-batch 4).",
    ),
    (
        "checkpointing_off",
        SWITCHED | {"gain": 0.2, "same_settings": False},
        "Without activation checkpointing: 20 % more tokens/s (ZeRO stage 2, micro-batch 4).",
    ),
    (
        "checkpointing_off_does_not_fit",
        SWITCHED | {"short": SHORT},
        "Without activation checkpointing it does not fit: 40.00 GiB too much on each GPU at micro-batch 4.",
    ),
    (
        "states_in_bf16",
        {"config": FACTS, "gain": 0.12},
        "Optimizer states in bf16, which round each update: 12 % more tokens/s (ZeRO stage 2, micro-batch 4).",
    ),
    (
        "more_memory",
        {"where": "host", "more_bytes": 4 * GIB, "config": FACTS, "gain": 0.5},
        "4.00 GiB more memory in each node would make room for ZeRO stage 2, micro-batch 4: 50 % more tokens/s.",
    ),
    (
        "more_memory",
        {"where": "gpu", "more_bytes": 4 * GIB, "config": FACTS, "gain": 2.5},
        "4.00 GiB more memory on each GPU would make room for ZeRO stage 2, micro-batch 4: 3.5 × the tokens/s.",
    ),
    (
        "twice_as_fast",
        {"resource": "nvme", "bytes_per_second": [12e9, 7e9], "gain": 0.4},
        "An NVMe disk twice as fast (reads 12 GB/s, writes 7 GB/s) would give 40 % more tokens/s.",
    ),
    (
        "twice_as_fast",
        {"resource": "network_between_nodes", "bytes_per_second": [2.5e9], "gain": 0.4},
        "A network between nodes twice as fast (20 Gbit/s a GPU) would give 40 % more tokens/s.",
    ),
    (
        "nvlink",
        {"bytes_per_second": 300e9, "gain": 0.4},
        "NVLink (300 GB/s a GPU) would give 40 % more tokens/s.",
    ),
    (
        "nothing_fits",
        {"config": FACTS, "short": SHORT, "fullest": {"peak_bytes": 90 * GIB, "term": TERM}},
        "Nothing fits. The nearest, ZeRO stage 2, micro-batch 4, takes 40.00 GiB too much on each GPU; the "
        "largest part of its peak of 90.00 GiB is logits and loss, 24.00 GiB (tokens × vocabulary).",
    ),
    (
        "nothing_fits",
        {"config": HOSTED, "short": SHORT | {"gpu_bytes": 0, "host_bytes": TIB}, "fullest": None},
        "Nothing fits. The nearest, ZeRO stage 3, optimizer on cpu, micro-batch 8, takes 1.00 TiB too much on "
        "each host (a node is taken to have 4.00 TiB at most: state yours with --host-memory).",
    ),
    (
        "nothing_fits",
        {"config": FACTS, "short": SHORT, "fullest": {"start_bytes": 90 * GIB}},
        "Nothing fits. The nearest, ZeRO stage 2, micro-batch 4, takes 40.00 GiB too much on each GPU; "
        "initialisation alone takes 90.00 GiB.",
    ),
    (
        "more_gpus_do_not_help",
        {"gpus": 16384},
        "More GPUs do not help, not even 16384: what each must hold for itself is too much.",
    ),
    (
        "no_single_change",
        {"gpus": 16384, "nvme": True, "seq_len": 128},
        "No single change makes it fit: not 16384 GPUs, offload, NVMe, LoRA or a sequence of 128 tokens.",
    ),
    (
        "fits_without_option",
        {"option": "stage", "value": 2, "config": FACTS, "rounds": False},
        "Stage: without --stage 2 it would fit (ZeRO stage 2, micro-batch 4).",
    ),
    (
        "fits_without_option",
        {"option": "activation_checkpointing", "value": False, "config": FACTS, "rounds": True},
        "Activation checkpointing: with it, it would fit (ZeRO stage 2, micro-batch 4); its optimizer states in "
        "bf16 round each update.",
    ),
    (
        "fits_with_host_memory",
        {"config": HOSTED, "rounds": False},
        "Host memory: 8.00 GiB in each node would make it fit (ZeRO stage 3, optimizer on cpu, micro-batch 8).",
    ),
    (
        "fits_with_nvme",
        {"config": ON_DISK},
        "NVMe: --nvme PATH would make it fit (ZeRO stage 3, optimizer on nvme, micro-batch 1), 2.00 TiB on the "
        "disk of each node and 8.00 GiB of host memory.",
    ),
    (
        "fits_on_more_gpus",
        {"config": FACTS | {"gpus": 16}, "rounds": False},
        "More GPUs: 16 would make it fit (ZeRO stage 2, micro-batch 4).",
    ),
    (
        "fits_with_lora",
        {"rank": 16, "config": FACTS, "rounds": False},
        "LoRA: --lora-rank 16 would make it fit (ZeRO stage 2, micro-batch 4).",
    ),
    (
        "fits_with_shorter_sequences",
        {"seq_len": 512, "config": FACTS, "rounds": False},
        "Shorter sequences: --seq-len 512 would make it fit (ZeRO stage 2, micro-batch 4).",
    ),
    (
        "fits_without_restrictions",
        {"config": FACTS, "rounds": False},
        "Without any of the restrictions it would fit (ZeRO stage 2, micro-batch 4).",
    ),
    (
        "fits_with_two_changes",
        {"seq_len": 512, "unrestricted": False, "nvme": True, "gpus": None, "config": ON_DISK, "rounds": False},
        "Two changes: --seq-len 512 and --nvme PATH would make it fit (ZeRO stage 3, optimizer on nvme, "
        "micro-batch 1), 2.00 TiB on the disk of each node and 8.00 GiB of host memory.",
    ),
    (
        "fits_with_two_changes",
        {"seq_len": None, "unrestricted": True, "nvme": False, "gpus": 16, "config": FACTS, "rounds": False},
        "Two changes: no restrictions on 16 GPUs would make it fit (ZeRO stage 2, micro-batch 4).",
    ),
    ("sweep_nothing_fits", {}, "Nothing fits on any of these numbers of GPUs."),
    ("sweep_best", {"fastest": 1, "cheapest": 1}, "Fastest and cheapest: 1 GPU."),
    (
        "sweep_best",
        {"fastest": 64, "cheapest": 8},
        "Fastest: 64 GPUs. Cheapest, with the most tokens/s from each GPU: 8.",
    ),
    (
        "sweep_brings_nothing",
        {"gpus": 64, "fewer": 32, "gain": 0.0, "waits": WAITS},
        "64 GPUs do not help: as many tokens/s as 32, since 45 % of the step on 64 GPUs is communication.",
    ),
    (
        "sweep_each_gives_less",
        {"gpus": 64, "fewer": 8, "gain": -0.3, "waits": None},
        "Each of 64 GPUs gives 30 % fewer tokens/s than each of 8.",
    ),
    (
        "sweep_each_gives_more",
        {"gpus": 64, "fewer": 8, "gain": 0.3, "waits": WAITS, "config": FACTS, "config_of_fewer": HOSTED},
        "Each of 64 GPUs gives 30 % more tokens/s than each of 8: on 8 it is ZeRO stage 3, optimizer on cpu, "
        "micro-batch 8, on 64 ZeRO stage 2, micro-batch 4.",
    ),
    (
        "sweep_each_gives_more",
        {"gpus": 64, "fewer": 1, "gain": 2.5, "waits": None, "config": FACTS, "config_of_fewer": FACTS},
        "Each of 64 GPUs gives 3.5 × the tokens/s of a single one.",
    ),
    (
        "sweep_batches_differ",
        {"least": 8, "most": 64},
        "The global batch differs, from 8 to 64 sequences: give --global-batch-size to keep it the same.",
    ),
    (
        "sweep_host_memory",
        HOST | {"gpus": 32, "assumed_bytes": 80 * GIB, "gpus_per_node": 1},
        "On 32: Needs 300.00 GiB of host memory in each node, assumed to be there because its GPU holds 80.00 "
        "GiB: give --host-memory to check.",
    ),
    (
        "sweep_held_back",
        {"gpus": 16, "config": HOSTED | {"gain": 0.081}},
        "On 16: ZeRO stage 3, optimizer on cpu, micro-batch 8 would give 8.1 % more tokens/s but needs 8.00 GiB "
        "of host memory in each node: give --host-memory to have it considered.",
    ),
]


@pytest.mark.parametrize(("code", "figures", "text"), SAID, ids=[f"{n} {case[0]}" for n, case in enumerate(SAID)])
def test_a_sentence(code: str, figures: dict[str, Any], text: str) -> None:
    assert sentence(Reason(code, figures)) == text


def test_every_code_has_its_sentence_here() -> None:
    assert {code for code, _, _ in SAID} == set(TABLE)


@pytest.mark.parametrize(
    ("gain", "words", "beside"),
    [
        (0.61, "61 % more tokens/s", "61 % more tokens/s than 8"),
        (0.0321, "3.2 % more tokens/s", "3.2 % more tokens/s than 8"),
        (-0.796, "80 % fewer tokens/s", "80 % fewer tokens/s than 8"),
        (-0.05, "5.0 % fewer tokens/s", "5.0 % fewer tokens/s than 8"),
        (0.0001, "as many tokens/s", "as many tokens/s as 8"),
        (13.9, "14.9 × the tokens/s", "14.9 × the tokens/s of 8"),
        (2.0, "3.0 × the tokens/s", "3.0 × the tokens/s of 8"),
    ],
)
def test_a_gain_in_words(gain: float, words: str, beside: str) -> None:
    assert compared(gain) == words
    assert compared_with(gain, "8") == beside


@pytest.mark.parametrize(
    ("gain", "words"),
    [
        (0.0004, "the same tokens/s"),
        (-0.0006, "0.1 % fewer tokens/s"),
        (0.123, "12.3 % more tokens/s"),
    ],
)
def test_a_difference_in_words(gain: float, words: str) -> None:
    assert speed_difference(gain) == words


def test_bitsandbytes_takes_what_the_sentence_says() -> None:
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    figures = {"rank": 8, "quantize": "4bit", "precision": "bf16"}
    (made,) = re.findall(r"BitsAndBytesConfig\(.*?\)", sentence(Reason("script_lora", figures)))
    told = eval(made, {"torch": torch, "BitsAndBytesConfig": transformers.BitsAndBytesConfig})
    assert (told.bnb_4bit_quant_type, told.bnb_4bit_use_double_quant) == ("nf4", True)
    assert told.bnb_4bit_compute_dtype == told.bnb_4bit_quant_storage == torch.bfloat16


def test_a_row_says_what_a_candidate_misses() -> None:
    model = fake_model(16384, 384)
    for host, ending in ((None, " TiB too much on each host (of 4.00 TiB, --host-memory)"), (4 * TIB, "on each host")):
        question = Question(
            model, fake_cluster(8, host=host), Constraints(offload="optimizer"), 8, FAKES, lambda rank: model
        )
        found = answer(question, "deepspeed", alternatives=False)
        assert phrase(next(c for c in found.candidates if c.host_short_bytes), None).endswith(ending)


QUESTIONS: tuple[dict[str, Any], ...] = (
    {"params": "70B", "gpus": 8, **H100},
    {"params": "8B", "gpus": 8, "optimizer": "lion", **H100},
    {"params": "7B", "gpus": 16, "gpu": "rtx-4090"},
    {"params": "1.3B", "gpus": 4, "gpu": "v100-32gb"},
    {"params": "70B", "gpus": 12, "offload": "none", **H100},
    {"params": "70B", "gpus": 16, "offload": "none", **H100},
    {"params": "70B", "gpus": 32, "gpu": "l40s"},
    {"params": "3B", "gpus": 1, "gpu": "rtx-4090"},
    {"params": "1B", "gpus": 8, "stage": 0, "offload": "none", "activation_checkpointing": True, "micro_batch_size": 1},
    {"params": "125M", "gpus": 64, "gpu": "rtx-4090", "network": "10Gbit/s", "global_batch_size": 64, "seq_len": 128},
    {"params": "405B", "gpus": 8, "gpu": "h200", "host_memory": "2TiB", "nvme": "/disk"},
    {"params": "405B", "gpus": 8, "gpu": "h200", "host_memory": "2TiB"},
    {"params": "13B", "gpus": 1, "offload": "none", **H100},
    {"params": "13B", "gpus": 1, "stage": 0, **H100},
    {"params": "70B", "gpus": 8, "stage": 0, "offload": "none", **H100},
    {
        "params": "7B",
        "gpus": 8,
        "gpu": "rtx-4090",
        "seq_len": 65536,
        "offload": "none",
        "micro_batch_size": 4,
        "activation_checkpointing": False,
    },
    {"model": "EleutherAI/pythia-160m", "gpus": 1, "seq_len": 4096, **H100},
    {"model": "gpt2", "gpus": 1, "seq_len": 1024, **H100},
    {"model": "meta-llama/Llama-2-7b-hf", "gpus": 8, "gpu": "a100-80gb", "host_memory": "64GiB"},
    {"model": "Qwen/Qwen2.5-7B", "gpus": 8, "gpu": "h200", "seq_len": 131072, "sequence_parallel": 4},
    {"model": "meta-llama/Llama-3.1-8B", "gpus": 4, "gpu": "rtx-4090", "lora_rank": 8, "quantize": "4bit"},
    {"model": "meta-llama/Llama-3.2-3B", "gpus": 2, "activation_checkpointing": False, "offload": "none", **H100},
)
SWEEPS: tuple[dict[str, Any], ...] = (
    {
        "gpus": [8, 16],
        "params": "125M",
        "gpu": "rtx-4090",
        "seq_len": 128,
        "global_batch_size": 16,
        "gpus_per_node": 16,
    },
    {"gpus": [8, 32, 64], "params": "70B", "gpu": "l40s"},
    {"gpus": [8, 64], "params": "1.3B", "gpu": "a10", "global_batch_size": 64, "seq_len": 512},
    {"gpus": [1], "params": "70B", "gpu_memory": "16GiB", "offload": "none"},
    {"gpus": [16], "params": "70B", **H100},
)


def _with_fakes() -> Iterator[Recommendation]:
    """Answers that take a memory or a link of a certain size."""
    small, large = fake_model(1024, 8), fake_model(4096, 32)

    def ask(model: Any, cluster: Any, fixed: Constraints, tools: Any = FAKES) -> Recommendation:
        return answer(Question(model, cluster, fixed, 8, tools, lambda rank: model), "deepspeed")

    def starting(job: Job) -> Estimate:
        found = FAKES.estimate(job)
        return replace(found, init_peak_bytes=found.peak_bytes + GIB)

    yield ask(small, fake_cluster(8), Constraints(), FAKES._replace(estimate=starting))
    slow = fake_cluster(8)
    for link, batch in ((1e8, 16), (4e8, 64)):
        yield ask(small, replace(slow, gpu=replace(slow.gpu, link_bandwidth=link)), Constraints(global_batch=batch))
    alone = ask(small, fake_cluster(1), Constraints(micro_batch=1)).recommended
    assert alone is not None
    halved = replace(slow, gpu=replace(slow.gpu, link_bandwidth=2 * small.num_params / alone.step.seconds))
    yield ask(small, halved, Constraints(micro_batch=1))
    fixed = Constraints(offload="none", checkpointing=True, micro_batch=1)
    roomy = ask(small, fake_cluster(1), fixed).recommended
    assert roomy is not None
    yield ask(small, fake_cluster(1, roomy.estimate.process_bytes), fixed)
    yield ask(
        large, fake_cluster(1, 24 * GIB), Constraints(seq_len=2**16, offload="none", checkpointing=True, micro_batch=1)
    )


@pytest.fixture(scope="module")
def found() -> list[Reason]:
    """Everything that the questions lead to."""
    answers = [*(dsconf.recommend(**words) for words in QUESTIONS), *_with_fakes()]
    said = [reason for one in answers for reason in (*one.why, *one.notes)]
    return said + [reason for words in SWEEPS for reason in conclusions(sweep(**words))]


def test_every_code_is_found_by_a_question_and_no_other(found: list[Reason]) -> None:
    assert {reason.code for reason in found} == set(TABLE)


def test_figures_are_data_and_have_a_sentence(found: list[Reason]) -> None:
    for reason in found:
        assert json.loads(json.dumps(reason.figures)) == reason.figures
        assert set(reason.figures) == set(inspect.signature(TABLE[reason.code]).parameters), reason.code
    for text in sentences(found):
        assert text[0].isupper() or text[0].isdigit() or text.startswith(("--", "torch"))
        assert text.endswith(".")
        assert "None" not in text
        assert "  " not in text


def _named() -> Iterator[str]:
    """Every code that the search writes down."""
    for path in (REPO / "dsconf" / "search").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            called = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id
            if called in ("reason", "_fits") and isinstance(node, ast.Call):
                texts = (part.value for part in ast.walk(node.args[0]) if isinstance(part, ast.Constant))
                yield from (text for text in texts if isinstance(text, str) and text != "tight")


def test_every_code_that_the_search_names_is_in_the_table() -> None:
    assert set(_named()) == set(TABLE)


def test_the_docs_list_every_code_and_its_figures() -> None:
    text = (REPO / "docs" / "recommend.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([a-z0-9_]+)` \| (.*?) \| .+ \|$", text[text.index("## Codes") :], re.MULTILINE)
    listed = [(code, re.findall(r"`([a-z0-9_]+)`", figures)) for code, figures in rows]
    assert listed == [(code, list(inspect.signature(said).parameters)) for code, said in TABLE.items()]
