"""Single kernels against their times on an H200 (torch 2.11, bf16), each the mean of ten calls in a loop."""

import json
from pathlib import Path
from statistics import mean

import pytest

from dsconf.cluster.catalogue import find_gpu
from dsconf.model.read import read_model
from dsconf.speed import compute, kernels, rates
from dsconf.speed.attention_scores import scores_of
from dsconf.speed.optimizer import ADAM_BYTES

FILE = Path(__file__).parents[1] / "measured" / "h200-kernels.jsonl"
ROWS = [json.loads(line) for line in FILE.read_text(encoding="utf-8").splitlines()]
H200 = find_gpu("h200")
LLAMA_1B = {
    "model_type": "llama",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}


def rows(kernel):
    return [row for row in ROWS if row["kernel"] == kernel]


def matmul_errors(aligned):
    """Relative errors of products of at least 2e10 FLOPs; shorter ones were bound by the launching loop."""
    for row in rows("matmul"):
        tokens, inputs, outputs = row["tokens"], row["inputs"], row["outputs"]
        if tokens * inputs * outputs < 1e10 or aligned != (outputs % 8 == 0):
            continue
        m, k, n = {
            "fwd": (tokens, inputs, outputs),
            "dgrad": (tokens, outputs, inputs),
            "wgrad": (outputs, tokens, inputs),
        }[row["operation"]]
        yield kernels.matmul(H200, "bf16", m, k, n, aligned) / row["seconds"] - 1


def test_matrix_products():
    errors = list(matmul_errors(aligned=True))
    assert len(errors) > 200
    assert mean(map(abs, errors)) < 0.12
    assert max(map(abs, errors)) < 0.55


def test_matrix_products_of_an_odd_vocabulary():
    errors = list(matmul_errors(aligned=False))
    assert len(errors) == 12
    assert abs(mean(errors)) < 0.25
    assert max(map(abs, errors)) < 0.50


@pytest.mark.parametrize("row", rows("attention"), ids=lambda row: f"{row['seq_len']}x{row['head_dim']}")
def test_attention(row):
    shape = kernels.AttentionShape(row["sequences"], row["seq_len"], row["heads"], row["head_dim"])
    forward, backward = kernels.attention(H200, "bf16", shape)
    if row["backward_seconds"] < 2.5e-4:
        pytest.skip("bound by the launching loop")
    assert forward == pytest.approx(row["forward_seconds"], rel=0.25)
    assert backward == pytest.approx(row["backward_seconds"], rel=0.25)


def test_fused_adam():
    (row,) = rows("fused adamw")
    assert 1 / kernels.traffic_seconds(H200, ADAM_BYTES) == pytest.approx(row["elements_per_second"], rel=0.1)


def test_host_copies():
    row = max(rows("host copy"), key=lambda row: row["mib"])
    achieved = rates.HOST_LINK_FRACTION * H200.host_bandwidth
    assert achieved == pytest.approx(row["to_gpu"], rel=0.05)
    assert achieved == pytest.approx(row["to_host"], rel=0.05)


@pytest.mark.parametrize("index", [0, 1], ids=["forward", "backward"])
def test_kernels_of_a_decoder_layer(index):
    """Profiled kernel times of four more layers of a 1B llama, 8 sequences of 2048."""
    one, five = (row[("forward", "backward")[index]] for row in rows("model") if row["config"] == "llama1b")
    layer = {kind: (five[kind] - one[kind]) / 4 for kind in one}
    model = read_model(model=LLAMA_1B)
    predicted = compute.layer_block(model, H200, compute.KernelChoice("bf16", "sdpa")).passes(8, 2048)[index]
    assert predicted.matmul == pytest.approx(layer["gemm"], rel=0.10)
    assert predicted.attention == pytest.approx(layer["attn"], rel=0.20)
    assert predicted.elementwise == pytest.approx(layer["other"], rel=0.20)


@pytest.mark.parametrize("index", [0, 1], ids=["forward", "backward"])
def test_kernels_of_head_and_loss(index):
    """What is left of one layer's model: embedding, norm, output projection, fp32 cross-entropy."""
    one, five = (row[("forward", "backward")[index]] for row in rows("model") if row["config"] == "llama1b")
    ends = {kind: one[kind] - (five[kind] - one[kind]) / 4 for kind in one}
    predicted = compute.ends_block(read_model(model=LLAMA_1B), H200, "bf16").passes(8, 2048)[index]
    assert predicted.matmul == pytest.approx(ends["gemm"], rel=0.15)
    assert predicted.elementwise + predicted.loss == pytest.approx(ends["other"], rel=0.20)


H100 = find_gpu("h100-80gb")
H100_ROWS = [
    json.loads(line) for line in FILE.with_name("h100-attention.jsonl").read_text(encoding="utf-8").splitlines()
]


def timed(name, least):
    """Attention of that kind on an H100, calls of at least ``least`` seconds."""
    kept = [row for row in H100_ROWS if row["name"] == name and row["forward_seconds"] > least]
    return pytest.mark.parametrize("row", kept, ids=lambda row: f"{row['batch']}x{row['seq_len']}x{row['head_dim']}")


@timed("auto bool", 3e-4)
def test_attention_with_a_mask(row):
    """Heads of 256 elements are slower than those of 128, which the straight line does not know."""
    shape = kernels.AttentionShape(row["batch"], row["seq_len"], row["heads"], row["head_dim"])
    forward, backward = kernels.attention(H100, "bf16", shape, "masked")
    near = 0.45 if row["head_dim"] == 256 else 0.25
    assert forward == pytest.approx(row["forward_seconds"], rel=near)
    assert backward == pytest.approx(row["backward_seconds"], rel=near)


@timed("efficient bool", 1e-3)
def test_attention_with_a_mask_on_cards_without_their_own_kernel(row):
    if row["head_dim"] == 256:
        pytest.skip("the H100 runs this kernel only when told to")
    factor = 989.4e12 / 2 / find_gpu("a100-80gb").bf16_flops * 0.799 / 0.848
    shape = kernels.AttentionShape(row["batch"], row["seq_len"], row["heads"], row["head_dim"])
    forward, backward = kernels.attention(find_gpu("a100-80gb"), "bf16", shape, "masked")
    assert forward / factor == pytest.approx(row["forward_seconds"], rel=0.35)
    assert backward / factor == pytest.approx(row["backward_seconds"], rel=0.35)


FALCON = read_model(model="tiiuae/falcon-7b")


@timed("math falcon7b", 1e-3)
def test_attention_by_the_formula(row):
    """An H100's eager kernels reach more of its bandwidth than an H200's, whose fraction is taken for all cards."""
    shape = kernels.AttentionShape(row["batch"], row["seq_len"], row["heads"], row["head_dim"])
    forward, backward = kernels.eager_attention(H100, "bf16", shape, scores_of(FALCON, "sdpa", "bf16"))
    assert row["forward_seconds"] < forward < 1.3 * row["forward_seconds"]
    assert row["backward_seconds"] < backward < 1.3 * row["backward_seconds"]
