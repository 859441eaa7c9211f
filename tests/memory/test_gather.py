"""What stage 3 holds gathered: by hand, as properties, and against DeepSpeed's own coordinator."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from model_cases import GPT2, GQA, LLAMA, OPT, SMALL
from small_models import models, tiny

import dsconf
from dsconf.memory.zero.coordinator import Gathered, Limits, gathered, gathered_at_hooks
from dsconf.memory.zero.module_order import modules
from dsconf.model.read import read_model
from dsconf.model.spec import Model

REPO = Path(__file__).parents[2]
BIG = 10**9


def limits(
    prefetch: int = 0, max_live: int = BIG, reuse: int = 0, persistence: int = 0, *, sequential: bool = False
) -> Limits:
    return Limits(prefetch, max_live, reuse, persistence, 2**63 - 1, sequential)


def told(one: Limits, replay: str = "", first: bool = False) -> Gathered:
    """For the tiny model: embedding 40; layers of 144 (q, k, v, o 16, gate, up, down 24, norms 4); norm 4; head 40."""
    return gathered(tiny(), one, replay, first)


def test_without_prefetch_each_module_has_its_own_weights() -> None:
    """The largest of a layer is 24, of the end the head's 40; once the head is left nothing is held."""
    assert told(limits()) == Gathered(0, (24,) * 3, (24,) * 3, 40, 0, 0)


def test_everything_is_reused_within_a_long_distance() -> None:
    """Forward collects: 40 + 144, + 144, + 144, + 4 + 40 = 516 at the loss. Backward gives them back from the end."""
    assert told(limits(reuse=BIG)) == Gathered(516, (184, 328, 472), (184, 328, 472), 516, 0, 0)


def test_reuse_reaches_as_far_as_its_distance() -> None:
    """At the loss the head is used next, with nothing in between, and the last norm after the head's 40 + 40.

    A weight is kept while fewer elements than the distance lie between its uses.
    """
    assert [told(limits(reuse=distance)).loss for distance in (0, 1, 80, 81)] == [0, 40, 40, 44]


def test_the_first_pass_keeps_nothing() -> None:
    """While DeepSpeed records the order of modules it neither prefetches nor reuses."""
    assert told(limits(prefetch=BIG, reuse=BIG), first=True) == told(limits())


def test_small_weights_stay() -> None:
    """Norms of 4: two in each of three layers and the last one, 28, from step to step and on top of everything."""
    assert told(limits(persistence=4)) == Gathered(28, (52,) * 3, (52,) * 3, 68, 28, 28)


def test_prefetched_weights_lie_twice_until_the_last_one_is_used() -> None:
    """All 516 prefetched in one launch: the flat buffer and the copies, 1032, through every layer; at the loss 516.

    allgather_sequential gathers one by one into the place of use, so there is no flat buffer.
    """
    assert told(limits(prefetch=10**6, reuse=BIG)).forward == (1032,) * 3
    assert told(limits(prefetch=10**6, reuse=BIG)).loss == 516
    assert told(limits(prefetch=10**6, reuse=BIG, sequential=True)).forward == (516,) * 3


@pytest.mark.parametrize("replay", ["reentrant", "nonreentrant"])
def test_a_replayed_layer_is_gathered_in_backward_again(replay: str) -> None:
    """Without reuse: re-entrant, module by module as in forward. The other kind replays within the layer's last module,
    whose weight of 24 is there all the while."""
    inside = 24 if replay == "nonreentrant" else 0
    assert told(limits(), replay).backward == (24 + inside,) * 3


def _highest(found: Gathered) -> int:
    return max(*found.forward, *found.backward, found.head, found.loss)


SIZES = st.sampled_from((0, 1, 10, 50, 200, 10**4))
REPLAYS = st.sampled_from(("", "reentrant", "nonreentrant"))


def _sizes(model: Model) -> tuple[int, ...]:
    return modules(model, model.layers).sizes


@given(models(), REPLAYS)
def test_without_prefetch_and_reuse_at_most_two_modules(model: Model, replay: str) -> None:
    """One module's weights (weight and bias, flat and copied), two while a checkpointed layer is replayed."""
    largest = max(_sizes(model))
    found = gathered(model, limits(), replay, False)
    assert _highest(found) <= (4 if replay else 3) * 2 * largest


@given(models(), SIZES, SIZES, SIZES, SIZES, REPLAYS)
def test_prefetch_respects_max_live(
    model: Model, prefetch: int, max_live: int, reuse: int, persistence: int, replay: str
) -> None:
    """A bucket is launched while fewer than max_live elements are gathered, so what is held stays within max_live, a
    launch and a parameter, what a module itself needs, what is reused, and once more a launch, as its flat buffer."""
    one = limits(prefetch, max_live, reuse, persistence)
    found = gathered(model, one, replay, False)
    largest = max(_sizes(model))
    own = 4 * 2 * largest
    assert _highest(found) <= max_live + (prefetch + largest) * 2 + own + 2 * reuse + 2 * largest + found.persistent


@given(models(), SIZES, SIZES, SIZES, SIZES, REPLAYS)
def test_never_more_than_the_model_twice(
    model: Model, prefetch: int, max_live: int, reuse: int, persistence: int, replay: str
) -> None:
    found = gathered(model, limits(prefetch, max_live, reuse, persistence), replay, False)
    assert found.persistent == sum(size for size in _sizes(model) if size <= persistence)
    assert found.persistent <= min(found.forward) <= _highest(found) <= 2 * model.num_params
    without_buffers = gathered(model, limits(prefetch, max_live, reuse, persistence, sequential=True), replay, False)
    assert _highest(without_buffers) <= model.num_params


@pytest.mark.parametrize("layers", [12, 40])
@pytest.mark.parametrize("replay", ["", "nonreentrant"])
@pytest.mark.parametrize(
    "one", [limits(50, 300, 200), limits(400, 10**3, 0, 4), limits(0, 1, 700), limits(50, 300, 10**3, 16)]
)
def test_a_deep_model_is_not_walked_layer_by_layer(layers: int, replay: str, one: Limits) -> None:
    """The middle layers are taken from a shorter model; walked in full they are the same."""
    from dsconf.memory.zero.coordinator import _Coordinator

    model = tiny(layers=layers)
    in_full, at_hooks = _Coordinator(modules(model, layers), one, replay, False).run()
    assert gathered(model, one, replay, False) == in_full
    inside = [size for layer in gathered_at_hooks(model, one, replay).layers for size in layer]
    assert inside == at_hooks[1:-2]


def test_the_embedding_is_still_gathered_when_its_gradient_arrives() -> None:
    """Its 40 elements: token ids need no gradient, so the module is left after the gradient's own hook. In a layer each
    projection has its own weights alone, 24 in the feed-forward network and 16 in attention, each norm its 4."""
    found = gathered_at_hooks(tiny(), limits(), "")
    assert found.embedding == 40
    assert {tuple(sorted(layer)) for layer in found.layers} == {(4, 4, 16, 16, 16, 16, 24, 24, 24)}


def test_a_bucket_reduced_beside_the_prefetched_embedding() -> None:
    """Measured on an H200: Qwen2.5 7B, 32 GPUs, a bucket of 5e8 elements, prefetch 3e8, live 5e8. The bucket of layers
    3 and 2 is reduced in layer 1, where layer 0 and the embedding are prefetched already: 4513.5 MiB at the peak."""
    zero = {
        "stage": 3,
        "overlap_comm": False,
        "stage3_prefetch_bucket_size": 3e8,
        "stage3_max_live_parameters": 5e8,
        "sub_group_size": 5e7,
        "offload_optimizer": {"device": "cpu"},
    }
    config = {"train_micro_batch_size_per_gpu": 1, "bf16": {"enabled": True}, "zero_optimization": zero}
    found = dsconf.estimate(
        model="Qwen/Qwen2.5-7B",
        gpus=32,
        config=config,
        seq_len=256,
        attention="eager",
        activation_checkpointing=True,
        rank=0,
    )
    assert found.peak_bytes == pytest.approx(4513.5 * 2**20, rel=0.006)


FAMILIES: list[Any] = [
    ("llama", GQA),
    ("qwen2", GQA),
    ("qwen3", GQA | {"head_dim": 16}),
    ("olmo2", GQA),
    ("gemma2", GQA | {"head_dim": 16}),
    ("phi3", GQA),
    ("phi", LLAMA),
    ("gpt_neox", LLAMA),
    ("opt", OPT),
    ("gpt2", GPT2),
    ("falcon", SMALL | {"bias": False}),
    ("bloom", {"hidden_size": 64, "n_layer": 3, "n_head": 4, "vocab_size": 101}),
    ("mixtral", GQA | {"num_local_experts": 4}),
]


@pytest.mark.parametrize(("family", "config"), FAMILIES)
def test_modules_with_weights_run_in_that_order(family: str, config: dict[str, Any]) -> None:
    """Sizes of each module's own weights, as forward of the Hugging Face model enters them."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = config | {"pad_token_id": 1 if family == "opt" else None}
    real = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(family, **config))
    found: list[list[int]] = []

    def entered(module: Any, _: Any) -> None:
        found.append([p.numel() for p in module.parameters(recurse=False)])

    for module in real.modules():
        module.register_forward_pre_hook(entered)
    real(input_ids=torch.arange(2, 10).reshape(1, 8), use_cache=False)
    tree = modules(read_model(model={"model_type": family} | config), 3)
    calls = (*tree.before, *(call for layer in tree.layers for call in layer), *tree.after)
    told_order = [[tree.sizes[p] for p in call.params] for call in calls if call.enter and call.params]
    assert told_order == [sizes for sizes in found if sizes]


CONFIG = {
    "model_type": "llama",
    "hidden_size": 4,
    "intermediate_size": 6,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "num_hidden_layers": 3,
    "vocab_size": 10,
    "tie_word_embeddings": False,
    "max_position_embeddings": 64,
}
RUNS = [(0, BIG, BIG, 0), (30, 60, 0, 0), (50, 200, 100, 0), (100, BIG, 0, 4), (30, 100, 150, 16)]
"""Prefetch bucket, max_live, reuse distance, persistence threshold, in elements."""


@pytest.fixture(scope="module")
def by_deepspeed() -> list[dict[str, Any]]:
    """What DeepSpeed holds with each of RUNS, in its third step."""
    pytest.importorskip("deepspeed")
    names = ("prefetch_bucket_size", "max_live_parameters", "max_reuse_distance", "param_persistence_threshold")
    cases = [(CONFIG, {f"stage3_{n}": v for n, v in zip(names, run, strict=True)}) for run in RUNS]
    command = [sys.executable, str(Path(__file__).with_name("gathered_by_deepspeed.py")), json.dumps(cases)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    found: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.launch
@pytest.mark.parametrize("number", range(len(RUNS)), ids=lambda number: "-".join(map(str, RUNS[number])))
def test_deepspeed_holds_the_same(number: int, by_deepspeed: list[dict[str, Any]]) -> None:
    """In each layer forward, at the loss and after backward, flat buffers left out, which have no status to read."""
    one = told(limits(*RUNS[number], sequential=True))
    found = by_deepspeed[number]
    assert (list(one.forward), one.loss, one.end) == (found["forward"], found["loss"], found["end"])
