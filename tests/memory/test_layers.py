"""What a decoder layer keeps for backward: by hand, and against Hugging Face's own layers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from model_cases import BLOOM, GPT2, GQA, LAYER_PREFIXES, LLAMA, NEO, NO_TOKENS, OPT, SMALL

from dsconf.memory.autograd.figures import Shape
from dsconf.memory.layers.families import record_layer
from dsconf.memory.layers.recorder import LayerRecorder
from dsconf.model.read import read_model
from dsconf.model.spec import Model

BATCH, SEQ = 2, 16


def saved(model: Model, shape: Shape) -> int:
    """Bytes one layer keeps from forward to backward, its input included."""
    r = LayerRecorder(model, shape, model.parameters.layer)
    x = r.tape.tensor(r.hidden(model.hidden))
    record_layer(r, x)
    return r.tape.play([x]).saved


def test_a_llama_layer_by_hand() -> None:
    """bf16, T tokens, hidden h, a = heads x head_dim, k = kv_heads x head_dim, feed-forward m; bytes:

    two norms, each: the input in fp32 4Th, its rsqrt 4T, the product cast down 2Th (the first cast keeps nothing)
    layer's own input: only as the norm's fp32 copy
    q, k, v projections: their input is the norm's output 2Th, once for all three
    attention: rotated q 2Ta and k 2Tk, v 2Tk, its output 2Ta, log-sum-exp 4 x heads x T
    output projection: its input is the attention's output
    gate, silu(gate), up, their product: 2Tm each; the norm's output 2Th that gate and up read
    """
    tokens, heads, h, a, k, m = 2 * 512, 16, 1024, 1024, 256, 2816
    norm = 4 * tokens * h + 4 * tokens + 2 * tokens * h
    attention = 2 * (tokens * a + 2 * tokens * k + tokens * a) + 4 * heads * tokens
    mlp = 4 * 2 * tokens * m
    by_hand = 2 * (norm + 2 * tokens * h) + attention + mlp
    config = {
        "model_type": "llama",
        "hidden_size": h,
        "intermediate_size": m,
        "num_attention_heads": heads,
        "num_key_value_heads": 4,
        "vocab_size": 1024,
        "num_hidden_layers": 2,
    }
    assert saved(read_model(model=config), Shape(2, 512, 2, False, "sdpa")) == by_hand
    assert by_hand == 45_162_496


FAMILIES: list[tuple[str, dict[str, Any], int]] = [
    ("llama", GQA, 0),
    ("llama", GQA | {"attention_bias": True, "mlp_bias": True, "head_dim": 24}, 0),
    ("mistral", GQA, 0),
    ("qwen2", GQA, 0),
    ("qwen3", GQA | {"head_dim": 32}, 0),
    ("granite", GQA, 0),
    ("olmo2", GQA, 0),
    ("phi3", GQA, 0),
    ("phi", LLAMA, 0),
    ("gpt_neox", LLAMA, 0),
    ("gpt_neox", LLAMA | {"use_parallel_residual": False}, 0),
    ("opt", OPT, 0),
    ("opt", OPT | {"do_layer_norm_before": False}, 0),
    ("gpt2", GPT2, 0),
    ("bloom", BLOOM, 0),
    ("falcon", SMALL | {"multi_query": False, "parallel_attn": False, "alibi": True, "bias": True}, 0),
    # Keys and values are picked out of the projection by an int64 index each, 8 bytes, that the model leaves out.
    ("falcon", SMALL, 16),
    ("falcon", SMALL | {"new_decoder_architecture": True, "num_kv_heads": 2}, 16),
    # 1 + weight, in fp32: 4 bytes x features of each norm (two of a layer, or four), left out by the model.
    ("gemma", GQA, 2 * 4 * 64),
    ("gemma2", GQA | {"head_dim": 16}, 4 * 4 * 64),
    ("gemma3_text", GQA | {"head_dim": 16}, 4 * 4 * 64 + 2 * 4 * 16),
    ("starcoder2", GQA, 0),
    ("starcoder2", GQA | {"use_bias": False, "residual_dropout": 0.1}, 0),
    ("stablelm", GQA, 0),
    ("stablelm", GQA | {"use_parallel_residual": True, "use_qkv_bias": True}, 0),
    ("stablelm", GQA | {"qk_layernorm": True}, 0),
    ("olmo", LLAMA, 0),
    ("cohere", GQA, 0),
    ("cohere", GQA | {"use_qk_norm": True}, 0),
    ("gptj", GPT2 | {"rotary_dim": 8}, 0),
    ("gpt_neo", NEO, 0),
]
"""Family, config, and bytes that the layer keeps beyond what the tape says."""


def cpu_difference(model: Model, width: int) -> int:
    """Bytes by which a layer keeps more on the CPU than on CUDA.

    LayerNorm's mean and rstd are in the activations' type there and in fp32 here (8 bytes a row, so 4 fewer in 16
    bit); dropout keeps its noise in the activations' type there and a mask of one byte an element here (torch:
    aten/src/ATen/native/layer_norm.cpp and Dropout.cpp).
    """
    tokens = BATCH * SEQ
    layer_norms = [p.name for p in model.parameters.layer if p.kind == "norm"]
    names = {n.rpartition(".")[0] for n in layer_norms if n.endswith("bias") or ".norms." in n}
    norms = (8 - 2 * width) * tokens * len(names)
    dropped = 2 * tokens * model.hidden if model.hidden_dropout else 0
    if model.attention_dropout:
        dropped += BATCH * model.heads * SEQ * SEQ
    return (width - 1) * dropped - norms


@contextmanager
def collected(torch: Any, layer: Any) -> Iterator[list[Any]]:
    """Every tensor that ``layer`` saves for backward in its next forward, cos, sin, masks and weights left out."""
    from torch.utils._pytree import tree_leaves

    kept: list[Any] = []
    outside = {p.untyped_storage().data_ptr() for p in (*layer.parameters(), *layer.buffers())}
    forward = layer.forward

    def watched(x: Any, *args: Any, **kwargs: Any) -> Any:
        others = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        outside.update(t.untyped_storage().data_ptr() for t in others)
        with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t), t)[1], lambda t: t):
            return forward(x, *args, **kwargs)

    layer.forward = watched
    yield kept
    kept[:] = [t for t in kept if t.untyped_storage().data_ptr() not in outside]


def kept_by_torch(family: str, config: dict[str, Any], attention: str, width: int, autocast: bool = False) -> int:
    """Bytes of the distinct storages that the second layer of the Hugging Face model saves, on the CPU."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    transformers.logging.set_verbosity_error()
    tokens = NO_TOKENS | ({"pad_token_id": 1} if family == "opt" else {"pad_token_id": None})
    model = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.for_model(family, **(tokens | config)),
        attn_implementation=attention,
        dtype=torch.bfloat16 if width == 2 else torch.float32,
    )
    model.train()
    layer = model.get_submodule(LAYER_PREFIXES.get(family, "model.layers"))[1]
    ids = torch.randint(2, config["vocab_size"], (BATCH, SEQ))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast), collected(torch, layer) as kept:
        output = model(input_ids=ids, labels=ids, use_cache=False)
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in kept}
    del output
    return sum(storages.values())


@pytest.mark.parametrize("width", [2, 4], ids=["bf16", "fp32"])
@pytest.mark.parametrize(("family", "config", "more"), FAMILIES, ids=[f"{f[0]}-{i}" for i, f in enumerate(FAMILIES)])
def test_eager_layers_keep_what_the_tape_says(family: str, config: dict[str, Any], more: int, width: int) -> None:
    """To the byte, every storage of the real layer."""
    model = read_model(model={"model_type": family} | config)
    told = saved(model, Shape(BATCH, SEQ, width, False, "eager"))
    assert kept_by_torch(family, config, "eager", width) == told + cpu_difference(model, width) + more


FLASH = ["llama", "mistral", "qwen2", "qwen3", "granite", "olmo2", "phi", "phi3", "gpt_neox", "starcoder2", "stablelm"]


@pytest.mark.parametrize("family", FLASH)
def test_fused_attention_keeps_what_the_tape_says(family: str) -> None:
    """The CPU's FlashAttention keeps the same five tensors as CUDA's: q, k, v, output, log-sum-exp."""
    config = LLAMA if family in ("phi", "gpt_neox") else GQA
    model = read_model(model={"model_type": family} | config)
    told = saved(model, Shape(BATCH, SEQ, 2, False, "sdpa"))
    assert kept_by_torch(family, config, "sdpa", 2) == told + cpu_difference(model, 2)


EXPERTS = GQA | {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 24}


@pytest.mark.parametrize(
    ("family", "config"),
    [
        ("mixtral", GQA | {"num_local_experts": 5}),
        ("qwen2_moe", EXPERTS | {"shared_expert_intermediate_size": 48}),
        ("qwen3_moe", EXPERTS),
    ],
)
def test_mixtures_keep_what_the_tape_says_within_bytes_a_token(family: str, config: dict[str, Any]) -> None:
    """The tape leaves out Mixtral's division of the chosen weights by their sum, offsets of experts and row masks.

    All of these are fp32 or smaller and one number for each token, choice or expert: at most 16 bytes a token.
    """
    model = read_model(model={"model_type": family} | config)
    told = saved(model, Shape(BATCH, SEQ, 2, False, "eager"))
    assert abs(kept_by_torch(family, config, "eager", 2) - told) <= 16 * BATCH * SEQ


@pytest.mark.parametrize("family", ["llama", "qwen2", "mistral", "phi3", "starcoder2", "gpt_neox"])
def test_a_layer_under_autocast_keeps_what_the_tape_says(family: str) -> None:
    """fp32 residual stream and norms, 16-bit copies of inputs and weights, 16-bit products."""
    config = LLAMA if family == "gpt_neox" else GQA
    model = read_model(model={"model_type": family} | config)
    told = saved(model, Shape(BATCH, SEQ, 4, False, "sdpa", autocast=True))
    assert kept_by_torch(family, config, "sdpa", 4, autocast=True) == told
