"""Ranks that share sequences, and a loss in shards: by hand, against a trace, and against measured ranks.

The rows of cpu-ulysses.jsonl are live tensors on the CPU, where no cuBLAS workspace is and no block is rounded.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from measured_cases import MEASURED, REPO
from small_models import job, tiny

import dsconf
from benchmarks.memory import ulysses as measure_ulysses
from dsconf.accepted import WITHOUT_KV_HEADS, sharing_problem, tiled_loss_problem
from dsconf.cluster.read import read_cluster
from dsconf.config.resolve import resolve
from dsconf.config.settings import Settings
from dsconf.errors import InputError
from dsconf.job import Job
from dsconf.memory.allocator import CUBLAS_WORKSPACE
from dsconf.memory.autograd.figures import Shape
from dsconf.memory.estimate import estimate
from dsconf.memory.explain import explain
from dsconf.memory.layers.activations import activations
from dsconf.memory.layers.tiled_loss import automatic_shards
from dsconf.memory.timeline.reserved import largest_request
from dsconf.memory.zero.wrapper import widths
from dsconf.model.read import read_model
from dsconf.workload import Workload

ROWS: list[dict[str, Any]] = [
    json.loads(line) for line in (MEASURED / "cpu-ulysses.jsonl").read_text(encoding="utf-8").splitlines()
]
LLAMA = {
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "num_hidden_layers": 3,
    "vocab_size": 512,
}


def name(row: dict[str, Any]) -> str:
    """E.g. ``llama-8kv-4ranks-of-8-z2-b1-s2048-ckpt-4shards-gloo``."""
    config = row["model"]
    parts = [config["model_type"], f"{config['num_key_value_heads']}kv", f"{row['ranks']}ranks-of-{row['world']}"]
    parts += [f"z{row['stage']}", f"b{row['batch']}", f"s{row['seq_len']}", f"v{config['vocab_size']}"]
    parts += ["ckpt"] * row["checkpointing"] + [f"{row['shards']}shards"] * bool(row["shards"])
    return "-".join([*parts, *["tied"] * config["tie_word_embeddings"], *["gloo"] * row.get("gloo", False)])


def predicted(row: dict[str, Any]) -> dict[str, int]:
    """The phases' peaks as the memory model has them, cuBLAS left out."""
    settings = replace(resolve(measure_ulysses.ds_config(row), row["world"]), sequence_parallel=row["ranks"])
    workload = Workload(
        seq_len=row["seq_len"],
        micro_batch=row["batch"],
        checkpointing=row["checkpointing"],
        loss_shards=row["shards"] or None,
    )
    one = Job(read_model(model=row["model"]), read_cluster(row["world"], gpu="h200"), settings, workload)
    return {moment.phase: moment.num_bytes - 2 * CUBLAS_WORKSPACE for moment in estimate(one, 0).moments}


@pytest.mark.parametrize("phase", ["forward", "backward"])
@pytest.mark.parametrize("row", ROWS, ids=name)
def test_each_measured_row(row: dict[str, Any], phase: str) -> None:
    """Checkpointed layers differ by what the CPU's kernels need in backward, as they do for a rank alone."""
    bound = 0.01 if row["checkpointing"] else 0.0005
    assert predicted(row)[phase] == pytest.approx(row["measured"][phase], rel=bound)


def test_fake_peers_take_what_real_ones_do() -> None:
    found: dict[str, set[int]] = {}
    for row in ROWS:
        found.setdefault(name(row).removesuffix("-gloo"), set()).add(row["measured"]["backward"])
    pairs = [name(row) for row in ROWS if row.get("gloo") and name(row).removesuffix("-gloo") in map(name, ROWS)]
    assert len(pairs) == 2
    assert all(len(values) == 1 for values in found.values())


def _environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(REPO), "CUDA_VISIBLE_DEVICES": ""}


def test_a_trace_of_the_attention_deepspeed_runs() -> None:
    """With the kernels of CUDA; but for a few scalars and the two states of FlashAttention's random numbers a layer."""
    pytest.importorskip("deepspeed")
    whole = LLAMA | {"num_key_value_heads": 8}
    cases = [(LLAMA, 1, 512), (whole, 2, 512)]
    command = [sys.executable, str(Path(__file__).parent / "traced_by_ulysses.py"), "4", json.dumps(cases)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, env=_environment()).stdout
    for (config, batch, tokens), traced in zip(cases, json.loads(printed.splitlines()[-1]), strict=True):
        act = activations(read_model(model=config), Shape(batch, tokens, 2, False, "sdpa", ranks=4), "")
        mine = act._asdict()
        for what in ("bottom", "forward_only", "layer", "layer_forward", "head", "head_forward", "head_backward"):
            assert mine[what] == pytest.approx(traced[what], abs=4096), what
        assert list(act.layer_backward) == pytest.approx(traced["layer_backward"], abs=4096)
        assert list(act.layer_live) == pytest.approx(traced["layer_live"], abs=4096)


@pytest.mark.parametrize(("kv_heads", "ranks", "copies"), [(8, 2, 0), (8, 8, 0), (2, 2, 0), (2, 4, 1), (2, 8, 3)])
def test_what_a_layer_keeps_by_hand(kv_heads: int, ranks: int, copies: int) -> None:
    """As much as a rank alone with as many tokens, the exchanged output, and keys and values of each rank's head."""
    model = read_model(model=LLAMA | {"num_key_value_heads": kv_heads})
    alone = activations(model, Shape(1, 512, 2, False, "sdpa"), "")
    shared = activations(model, Shape(1, 512, 2, False, "sdpa", ranks=ranks), "")
    output, keys = 512 * 256 * 2, 512 * kv_heads * 32 * 2
    assert shared.layer - alone.layer == output + 2 * copies * keys
    assert shared.head == alone.head - 16 * 512  # labels come shifted


def test_rotary_tables_have_a_row_for_each_sequence() -> None:
    model = read_model(model=LLAMA)
    alone, shared = (activations(model, Shape(3, 512, 2, False, "sdpa", ranks=ranks), "") for ranks in (1, 2))
    assert (alone.bottom, shared.bottom) == (2 * 512 * 32 * 2, 3 * 2 * 512 * 32 * 2)


def test_a_loss_in_shards_by_hand() -> None:
    """512 tokens in 4 shards of 128, 512 words, 256 features, bf16."""
    model = read_model(model=LLAMA)
    whole = activations(model, Shape(1, 512, 2, False, "sdpa"), "")
    tiled = activations(model, Shape(1, 512, 2, False, "sdpa", loss_shards=4), "")
    states, weight, logits = 512 * 256 * 2, 512 * 256 * 2, 128 * 512 * 2
    # The norm keeps its input in fp32, one number a row, and its normalised output; then the gradient of its result.
    norm = 512 * 256 * 4 + 512 * 4 + states
    assert (tiled.head, tiled.logits, tiled.shards_gradient) == (norm + states, 0, weight)
    # Hidden states and their gradient; fp32 log-softmax and its gradient, and that of the upcast logits.
    log_softmax = norm + 2 * states + 3 * 2 * logits
    # Or the projection's backward: gradients of the logits, of a shard's states (a quarter) and of the weight.
    projection = norm + 2 * states + logits + states // 4 + weight
    assert tiled.head_forward == pytest.approx(max(log_softmax, projection), abs=2048)
    assert tiled.head_forward < whole.head_forward
    assert tiled.layer == whole.layer


def test_shards_are_of_a_gibibyte() -> None:
    assert [automatic_shards(tokens, 2**17) for tokens in (1, 2048, 2049, 16384)] == [1, 1, 2, 8]


@pytest.mark.parametrize(
    ("settings", "communicate"),
    [
        (Settings(stage=3, precision="bf16"), 2),
        (Settings(stage=3, precision="bf16", sequence_parallel=2), 4),
        (Settings(stage=3, precision="bf16", sequence_parallel=2, communication_dtype="bf16"), 4),
        (Settings(stage=3, precision="bf16", sequence_parallel=2, sequence_parallel_dtype="bf16"), 2),
        (Settings(stage=2, precision="bf16", sequence_parallel=2, sequence_parallel_dtype="bf16"), 4),
        (
            Settings(
                stage=2, precision="bf16", sequence_parallel=2, sequence_parallel_dtype="bf16", reduce_scatter=False
            ),
            2,
        ),
    ],
)
def test_gradients_are_reduced_in_fp32(settings: Settings, communicate: int) -> None:
    assert widths(settings).communicate == communicate


def test_the_config_says_the_type_of_the_wire() -> None:
    found = resolve({"sequence_parallel_size": 2, "seq_parallel_communication_data_type": "bf16"}, 4)
    assert (found.sequence_parallel, found.sequence_parallel_dtype) == (2, "bf16")


def test_sharing_with_all_ranks_leaves_states_and_divides_activations() -> None:
    words: dict[str, Any] = {"model": LLAMA | {"vocab_size": 8192}, "gpus": 8, "stage": 3, "seq_len": 8192}
    alone, shared = dsconf.estimate(**words), dsconf.estimate(**words, sequence_parallel=8)
    for term in ("parameters", "master weights", "gradients", "optimizer states"):
        assert _term(alone, term) == _term(shared, term)
    assert _term(shared, "reduce bucket") == 2 * _term(alone, "reduce bucket")
    assert 7 < _term(alone, "logits and loss") / _term(shared, "logits and loss") < 9


def _term(found: Any, term: str) -> int:
    return int(next(one.num_bytes for one in found.peak.terms if one.name == term))


def test_one_rank_that_shares_is_a_rank_alone() -> None:
    words: dict[str, Any] = {"model": LLAMA, "gpus": 8, "stage": 2, "micro_batch_size": 3}
    assert dsconf.estimate(**words) == dsconf.estimate(**words, sequence_parallel=1, tiled_loss=False)


def test_a_long_sequence_fits_with_both() -> None:
    """Offloading does not help 500 000 tokens: activations and logits do not fit. Shared and tiled they do."""
    words: dict[str, Any] = {"params": "8B", "gpus": 8, "stage": 3, "gpu": "h200", "seq_len": 524_288}
    words["activation_checkpointing"] = True
    offloaded = dsconf.estimate(**words, offload="optimizer+param", host_memory="2TiB")
    both = dsconf.estimate(**words, sequence_parallel=8, tiled_loss="auto")
    assert offloaded.peak_bytes > 141 * 10**9 > both.process_bytes
    assert {"logits and loss", "saved activations"} <= {term.name for term in offloaded.peak.terms}


def test_the_largest_request_is_a_shard() -> None:
    one = job(tiny(vocab=1000), 2, seq_len=4096, stage=0, engine="ddp", precision="bf16")
    assert largest_request(one) == 4 * 4096 * 1000
    shared = replace(one, settings=replace(one.settings, sequence_parallel=2))
    assert largest_request(shared) == 4 * 2048 * 1000
    tiled = replace(shared, workload=replace(one.workload, loss_shards=4))
    assert largest_request(tiled) == 4 * 512 * 1000
    assert largest_request(replace(tiled, workload=replace(one.workload, loss_shards=0))) == 4 * 2048 * 1000


def test_a_shard_is_explained() -> None:
    one = job(read_model(model=LLAMA), 2, seq_len=2048, stage=2, precision="bf16", loss_shards=4)
    term = next(t for m in estimate(one, 0).moments for t in m.terms if t.name == "logits and loss")
    lines = explain(one, term)
    assert lines[0].startswith("512 tokens in each of 4 shards × 512 vocabulary: 524,288 bytes of logits")
    assert any(line.endswith("gradient of the hidden states") and "1,048,576" in line for line in lines)


def refusal(**words: Any) -> str:
    with pytest.raises(InputError) as refused:
        dsconf.estimate(**({"model": LLAMA, "gpus": 8, "seq_len": 2048} | words))
    return str(refused.value)


def test_what_cannot_be_shared_is_said() -> None:
    assert refusal(sequence_parallel=3) == "--sequence-parallel: 3 does not divide the 8 GPUs"
    assert refusal(sequence_parallel=4, seq_len=1001).endswith("use a sequence length that is a multiple of 4")
    assert refusal(sequence_parallel=16, gpus=16) == "--sequence-parallel: 8 attention heads cannot be divided by 16"
    assert "refuses eager attention" in refusal(sequence_parallel=4, attention="eager")
    twelve = LLAMA | {"num_attention_heads": 12, "hidden_size": 384, "num_key_value_heads": 3}
    assert refusal(model=twelve, sequence_parallel=4).endswith(
        "3 key-value heads can neither be divided by 4 nor repeated to 4"
    )
    assert refusal(sequence_parallel=0) == "--sequence-parallel: 0 is not a positive whole number"


def test_a_config_and_the_option_must_agree() -> None:
    config = {"train_micro_batch_size_per_gpu": 1, "sequence_parallel_size": 2, "zero_optimization": {"stage": 2}}
    assert refusal(config=config, sequence_parallel=4).startswith(
        "--sequence-parallel: 4, but the config says 2; leave the option out"
    )
    words: dict[str, Any] = {"model": LLAMA, "gpus": 8, "seq_len": 2048}
    silent = {key: value for key, value in config.items() if key != "sequence_parallel_size"}
    said = [dsconf.estimate(config=config, **words), dsconf.estimate(config=config, sequence_parallel=2, **words)]
    assert said == [dsconf.estimate(config=silent, sequence_parallel=2, **words)] * 2
    assert said[0] != dsconf.estimate(config=silent, **words)


def test_families_that_deepspeed_cannot_register() -> None:
    gpt2 = {"model_type": "gpt2", "n_embd": 256, "n_layer": 2, "n_head": 8, "vocab_size": 512, "n_positions": 4096}
    assert refusal(model=gpt2, sequence_parallel=2).endswith(
        "num_key_value_heads from the model's config, which gpt2's does not define"
    )
    assert "gpt2" in WITHOUT_KV_HEADS
    experts = LLAMA | {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2}
    assert "where mixtral has none; set it there" in refusal(model=experts, sequence_parallel=2)
    assert sharing_problem(read_model(model=experts | {"head_dim": 32}), 8, 2048, 2, "sdpa") is None


def test_a_tied_embedding_gets_its_gradient_twice() -> None:
    tied = read_model(model=LLAMA | {"tie_word_embeddings": True})
    for stage, word in ((3, "loses its gradient"), (2, "comes twice")):
        assert word in refusal(model=LLAMA | {"tie_word_embeddings": True}, stage=stage, tiled_loss=True)
    assert tiled_loss_problem(tied, Settings(stage=1)) is None
    assert "comes twice" in (tiled_loss_problem(tied, Settings(stage=1, overlap_comm=True)) or "")
    assert (
        tiled_loss_problem(read_model(model=LLAMA | {"tie_word_embeddings": True}, lora_rank=4), Settings(stage=3))
        is None
    )


@pytest.mark.parametrize("given", ["many", 0, -1, "0"])
def test_a_number_of_shards_is_a_number(given: Any) -> None:
    assert (
        refusal(tiled_loss=given) == f"--tiled-loss: {given!r} is neither 'auto' nor a number of shards from 1 to 65536"
    )
