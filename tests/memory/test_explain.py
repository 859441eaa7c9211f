"""``--explain``: every term is the sum of its products, each in the type that DeepSpeed has."""

from __future__ import annotations

import random
import re
from typing import Any

import pytest
from small_models import every_moment, job, timeline, tiny

from dsconf.job import Job
from dsconf.memory.estimate import Term, estimate
from dsconf.memory.explain import explain, explain_host
from dsconf.memory.terms import HOST_TERMS, TERMS, amounts_of
from dsconf.model.lora import with_lora
from dsconf.read_job import read_job


def _numbers(line: str) -> list[int]:
    return [int(n.replace(",", "")) for n in re.findall(r"\d[\d,]*", line)]


def _random_job(seed: int) -> Job:
    """Any stage, type, optimizer and offload; buckets from far below a parameter to far above the model."""
    pick = random.Random(seed)
    stage, size = pick.choice((0, 1, 2, 3)), lambda: pick.choice((1, 10, 1000, 10**5, 10**7))
    words: dict[str, Any] = {
        "stage": stage,
        "precision": pick.choice(("bf16", "bf16", "fp16", "fp32", "autocast")),
        "seq_len": pick.randint(1, 64),
        "micro_batch": pick.randint(1, 4),
        "accumulation": pick.randint(1, 2),
        "checkpointing": pick.random() < 0.5,
        "optimizer": pick.choice(("adamw", "adamw", "sgd", "lion", "muon", "adafactor", "adagrad", "rprop", "lamb")),
        "optimizer_fused": pick.random() < 0.5,
        "overlap_comm": pick.random() < 0.5,
        "reduce_bucket_size": size(),
        "grad_accum_dtype": pick.choice((None, None, "fp32")),
        "communication_dtype": pick.choice((None, None, "fp32")),
        "reduce_scatter": pick.random() < 0.8,
        "contiguous_gradients": pick.random() < 0.8,
        "loss_shards": pick.choice((None, None, None, 3)),
    }
    if stage:
        words["offload_optimizer"] = pick.choice(("none", "none", "cpu"))
    if stage == 3:
        words |= {"sub_group_size": size(), "max_live_parameters": size(), "hpz_partition_size": pick.choice((1, 2))}
        words |= {
            "offload_optimizer_ratio": pick.choice((1.0, 0.4)),
            "param_persistence_threshold": pick.choice((0, 99)),
        }
        if pick.random() < 0.3:
            words |= {"offload_optimizer": pick.choice(("cpu", "nvme")), "offload_param": pick.choice(("cpu", "nvme"))}
    if words["precision"] == "bf16" and pick.random() < 0.3:
        words |= {"bf16_master": True, "bf16_optimizer_states": pick.random() < 0.5}
    model = tiny(pick.randint(1, 4), pick.randint(1, 900), 2 * pick.randint(1, 20), pick.randint(1, 99), False)
    if pick.random() < 0.2:
        model, words["loss_shards"] = with_lora(model, 2), None
        words["quantize"] = pick.choice((None, "4bit", "8bit"))
    return job(model, pick.choice((1, 2, 3, 8, 16)), **words)


@pytest.mark.parametrize("seed", range(300))
def test_the_products_of_every_term_are_its_bytes(seed: int) -> None:
    """Those of every moment as it is counted, without a rest, and none but recorded ones has no products."""
    one = _random_job(seed)
    found = estimate(one)
    stays, counted = timeline(one, found.rank)
    every = every_moment(one, found.rank)
    assert [moment.num_bytes for moment in every] == [sum(stays.values()) + moment.num_bytes for moment in counted]
    for moment in every:
        for term in moment.terms:
            products = [amount.bytes_per_element * amount.elements for amount in amounts_of(term.num_bytes)]
            assert bool(products) != TERMS[term.name].is_recorded, term.name
            assert sum(products) == term.num_bytes or not products, term.name
            assert all(product > 0 for product in products), term.name
    assert sum(term.num_bytes for term in found.peak.terms) == found.peak_bytes
    on_host = explain_host(one, found.rank)
    assert {name: int(size) for name, size in on_host.items()} == dict(found.host_terms)
    for name, size in on_host.items():
        assert HOST_TERMS[name].meaning
        assert sum(amount.bytes_per_element * amount.elements for amount in amounts_of(size)) == size


BF16, FP16 = {"bf16": {"enabled": True}}, {"fp16": {"enabled": True}}
ADAM = {"optimizer": {"type": "AdamW", "params": {}}}
IN_BF16 = {"bf16": {"enabled": True, "bf16_master_weights_and_grads": True, "bf16_optimizer_states": True}}
FP32_GRADIENTS = {"data_types": {"grad_accum_dtype": "fp32"}}
BUCKET = {"reduce_bucket_size": 20_000}


def _zero(stage: int, **more: Any) -> dict[str, Any]:
    return {"zero_optimization": {"stage": stage, **BUCKET, **more}}


TYPES: dict[str, tuple[dict[str, Any], dict[str, list[str]]]] = {
    # stage_1_and_2.py:560 (master), :2184 (gradients in the model's type), ops/adam/fused_adam.py:143 (moments in the
    # master's), :2683 (norm in fp64), :3119 (cast to the master's).
    "bf16, stage 2": (
        BF16 | ADAM | _zero(2),
        {
            "parameters": ["bfloat16"],
            "master weights": ["float32"],
            "optimizer states": ["float32", "float32"],
            "gradients": ["bfloat16"],
            "reduce bucket": ["bfloat16"],
            "fp64 gradient for the norm": ["float64"],
            "flat gradient": ["bfloat16"],
            "fp32 gradient": ["float32"],
        },
    ),
    "fp16, stage 2": (
        FP16 | ADAM | _zero(2),
        {"parameters": ["float16"], "master weights": ["float32"], "gradients": ["float16"]},
    ),
    # engine.py:1717-1730: the type of the model is fp32, and so is everything else.
    "fp32, stage 1": (
        ADAM | _zero(1),
        {"parameters": ["float32"], "master weights": ["float32"], "optimizer states": ["float32", "float32"]},
    ),
    # stage_1_and_2.py: master_weights_and_grads_dtype; engine.py: bf16_optimizer_states.
    "all states in bf16": (
        IN_BF16 | ADAM | _zero(2),
        {"master weights": ["bfloat16"], "optimizer states": ["bfloat16", "bfloat16"], "gradients": ["bfloat16"]},
    ),
    # stage3.py:780: the bucket has the type of the collective; :791: the buffer that gradients accumulate in.
    "stage 3, fp32 collectives": (
        BF16 | ADAM | {"communication_data_type": "fp32"} | _zero(3),
        {"reduce bucket": ["float32"], "gradients": ["bfloat16"], "gathered weights": ["bfloat16"]},
    ),
    "stage 3, fp32 accumulation": (
        BF16 | ADAM | FP32_GRADIENTS | _zero(3),
        {"gradients": ["float32"], "reduce bucket": ["bfloat16"], "flat gradient": ["float32"]},
    ),
    # stage3.py:1100: fp32 master, gradient and two moments.
    "stage 3, four tenths on the host": (
        BF16
        | ADAM
        | _zero(3, sub_group_size=1000, offload_optimizer={"device": "cpu", "ratio": 0.4, "pin_memory": False}),
        {"optimizer of the sub-groups on the GPU": ["float32"] * 4, "parameters": ["bfloat16"]},
    ),
    # stage_1_and_2.py:1259-1345: one flat fp32 slice.
    "stage 2, fp32 accumulation": (BF16 | ADAM | FP32_GRADIENTS | _zero(2), {"gradients": ["float32"]}),
    # bf16_optimizer.py:166-191.
    "BF16_Optimizer": (
        BF16 | ADAM | FP32_GRADIENTS | _zero(1),
        {"parameters": ["bfloat16"], "gradients": ["float32"], "master weights": ["float32"]},
    ),
    # ops/lion/fused_lion.py:103: one moment.
    "Lion": (BF16 | {"optimizer": {"type": "Lion", "params": {}}} | _zero(2), {"optimizer states": ["float32"]}),
    # stage_1_and_2.py:2805-2836: the momentum in the type of the gradient, and staged in it.
    "Muon": (
        BF16 | {"optimizer": {"type": "Muon", "params": {}}} | _zero(2),
        {"Muon's staged momentum": ["bfloat16"], "Muon updates": ["bfloat16"]},
    ),
    # runtime/torch_autocast.py:32-57: a bucket for gradients in 16 bit and one for those in fp32.
    "autocast, stage 3": (
        ADAM | {"torch_autocast": {"enabled": True, "dtype": "bfloat16"}} | _zero(3),
        {"parameters": ["float32"], "master weights": ["float32"]},
    ),
}


@pytest.mark.parametrize(("config", "types"), TYPES.values(), ids=TYPES)
def test_the_width_is_that_of_deepspeed_s_type(config: dict[str, Any], types: dict[str, list[str]]) -> None:
    """Of each element; rounding, which is said in bytes, aside. Of several states their types together."""
    torch = pytest.importorskip("torch")
    micro = {"train_micro_batch_size_per_gpu": 1}
    model = {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 96, "num_hidden_layers": 2}
    one = read_job(
        params=None, model=model | {"model_type": "llama", "vocab_size": 64}, gpus=8, config=config | micro, seq_len=64
    )
    widths: dict[str, set[int]] = {}
    for moment in every_moment(one):
        for term in moment.terms:
            rows = [a.bytes_per_element for a in amounts_of(term.num_bytes) if "round" not in a.why]
            widths.setdefault(term.name, set()).update(rows)
    expected = {name: {sum(getattr(torch, dtype).itemsize for dtype in dtypes)} for name, dtypes in types.items()}
    assert {name: widths[name] for name in expected} == expected


def _job(**words: Any) -> Job:
    return read_job(params=None, model="Qwen/Qwen2.5-0.5B", **{"gpus": 1} | words)


def _term(one: Job, name: str) -> Term:
    terms = [term for moment in every_moment(one) for term in moment.terms if term.name == name]
    return max(terms, key=lambda term: term.num_bytes)


def test_master_weights_are_four_bytes_for_each_parameter_of_the_slice() -> None:
    """494 032 768 parameters in 8 slices of 61 754 096, of 4 bytes each, are 117.8 pieces of 2 MiB: 118 are taken."""
    assert 118 * 2**21 == 247_463_936 == 4 * 61_754_096 + 447_552
    one = _job(stage=2, gpus=8)
    assert explain(one, _term(one, "master weights")) == (
        "4 bytes × 61,754,096 elements: 494,032,768 trained parameters ÷ 8 ranks",
        "+ 447,552 bytes of rounding to the allocator's blocks, of 512 bytes or, above 10 MiB, 2 MiB",
    )


def test_the_bucket_is_half_a_billion_elements_of_the_collective_s_type() -> None:
    """2 000 000 000 bytes in blocks of 2 MiB, or in 512 bytes where no more than 1 MiB would be left: 682 880 bytes."""
    config = {"bf16": {"enabled": True}, "communication_data_type": "fp32", "zero_optimization": {"stage": 3}}
    one = _job(config=config | {"train_micro_batch_size_per_gpu": 1}, gpus=8, seq_len=512)
    (bucket, *_) = explain(one, _term(one, "reduce bucket"))
    assert bucket == "4 bytes × 500,000,000 elements of reduce_bucket_size"


def test_the_newest_gradient_says_whose_hook_runs() -> None:
    """Llama's output projection is larger than the bucket, and is reduced in the hook of the final norm's weight."""
    one = read_job(params=None, model="meta-llama/Llama-3.1-8B", gpus=8, stage=2, seq_len=128)
    assert explain(one, _term(one, "newest gradient")) == (
        "2 bytes × 525,336,576 elements of a gradient larger than the bucket, reduced where it is",
        "+ 2 bytes × 4,096 elements of model.norm.weight, which no longer fits the bucket",
    )


def test_the_operations_of_a_layer_add_up_to_what_it_keeps() -> None:
    """Layers are the same, so the list of one times their number is the term, but for what lies before them."""
    one = _job(stage=2, gpus=8, seq_len=512)
    term = _term(one, "saved activations")
    lines = explain(one, term)
    before, layers, each, rest, total = _numbers(lines[0])
    assert before + layers * each + rest == total == term.num_bytes
    assert sum(_numbers(line)[0] for line in lines[2:]) == each
