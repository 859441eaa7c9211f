"""What attention moves for each score, counted operation by operation on transformers' and torch's own code."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from test_counted_traffic import Traffic, touched  # noqa: E402
from torch.nn.attention import SDPBackend, sdpa_kernel  # noqa: E402

from dsconf.cluster.catalogue import find_gpu  # noqa: E402
from dsconf.model.attention import masked_share  # noqa: E402
from dsconf.model.read import read_model  # noqa: E402
from dsconf.speed.attention_scores import kind_of, scores_of  # noqa: E402
from dsconf.speed.compute import KernelChoice, layer_block  # noqa: E402

HEADS, SEQUENCES, LENGTHS = 4, 2, (16, 32, 48)
SAFE_SOFTMAX = 14
"""Bytes inside ``_safe_softmax`` beside its softmax: which scores are -inf (4 read, 1 written), which rows have nothing
else (1), and zeros in their place (4 read, 4 written); the operation is counted as one, outside of which is 8."""
_COMMON = {"hidden_size": 256, "num_attention_heads": HEADS, "vocab_size": 100}
_LLAMA = {**_COMMON, "intermediate_size": 512, "num_key_value_heads": 2, "head_dim": 64}
_FALCON = {**_COMMON, "new_decoder_architecture": False, "hidden_dropout": 0.0, "attention_dropout": 0.0}
_DROPS = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
_GPT = {"n_embd": 256, "n_head": HEADS, "vocab_size": 100, "n_positions": 256, **_DROPS}
_NEO = dict.fromkeys(("resid_dropout", "embed_dropout", "attention_dropout"), 0.0)
CASES: dict[str, tuple[dict[str, Any], str, str]] = {
    "llama": ({"model_type": "llama", **_LLAMA}, "eager", "usual"),
    "gpt2": ({"model_type": "gpt2", **_GPT}, "eager", "low"),
    "gptj": ({"model_type": "gptj", **_GPT, "rotary_dim": 32}, "sdpa", "wide"),
    "gpt_neo": (
        {
            "model_type": "gpt_neo",
            "hidden_size": 256,
            "num_heads": HEADS,
            "vocab_size": 100,
            "max_position_embeddings": 256,
            **_NEO,
        },
        "sdpa",
        "wide",
    ),
    "bloom": ({"model_type": "bloom", "hidden_size": 256, "n_head": HEADS, "vocab_size": 100}, "sdpa", "bloom"),
    "gemma2": ({"model_type": "gemma2", **_LLAMA}, "eager", "capped"),
    "falcon": ({"model_type": "falcon", **_FALCON, "multi_query": True, "alibi": False}, "eager", "low"),
    "falcon, ALiBi": ({"model_type": "falcon", **_FALCON, "multi_query": False, "alibi": True}, "eager", "alibi"),
    "falcon, one head": ({"model_type": "falcon", **_FALCON, "multi_query": True}, "sdpa", "formula"),
}


class Counted(Traffic):
    """With the bytes of batched products, which are attention's, and their FLOPs by type."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = {torch.float32: 0, torch.bfloat16: 0}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = super().__torch_dispatch__(func, types, args, kwargs)
        name = func.overloadpacket.__name__
        if name in ("bmm", "baddbmm"):
            left, right = args[-2:]
            self.flops[left.dtype] += 2 * left.shape[0] * left.shape[1] * left.shape[2] * right.shape[2]
            self.num_bytes[name] += sum(map(touched, (left, right, result)))
        if name == "_safe_softmax":
            self.num_bytes[name] += SAFE_SOFTMAX * result.numel()
        return result


def with_layers(config: dict[str, Any], layers: int) -> dict[str, Any]:
    if config["model_type"] == "gpt_neo":
        return {**config, "num_layers": layers, "attention_types": [[["global"], layers]]}
    key = "n_layer" if "n_head" in config else "num_hidden_layers"
    return {**config, key: layers}


def counted(config: dict[str, Any], layers: int, attention: str, precision: str) -> list[tuple[Counted, Counted]]:
    """Forward and backward at each length."""
    words = with_layers(config, layers)
    eager = attention == "eager" or config["model_type"] in ("gptj", "gpt_neo", "bloom")
    model = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.for_model(words.pop("model_type"), **words),
        dtype=torch.bfloat16 if precision == "bf16" else torch.float32,
        attn_implementation="eager" if eager else "sdpa",
    )
    return [
        _counted(model, length, nullcontext() if eager else sdpa_kernel(SDPBackend.MATH), precision)
        for length in LENGTHS
    ]


def _counted(model: Any, length: int, kernel: AbstractContextManager[None], precision: str) -> tuple[Counted, Counted]:
    model.zero_grad(set_to_none=True)
    tokens = torch.zeros(SEQUENCES, length, dtype=torch.long)
    with kernel:
        with Counted() as forward, torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
            loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss
        with Counted() as backward:
            loss.backward()
    return forward, backward


def of_a_score(values: list[float]) -> float:
    """The square's coefficient of three values at equal distances, for each head and sequence."""
    short, middle, long = values
    step = LENGTHS[1] - LENGTHS[0]
    return (long - 2 * middle + short) / (2 * step**2) / (SEQUENCES * HEADS)


@pytest.mark.parametrize("precision", ["bf16", "fp32", "autocast"])
@pytest.mark.parametrize("case", CASES)
def test_bytes_and_types_of_a_score(case: str, precision: str) -> None:
    config, attention, kind = CASES[case]
    model = read_model(model=with_layers(config, 2))
    expected = scores_of(model, attention, precision)
    assert kind_of(model, attention, precision) == kind
    assert expected is not None
    layers = list(zip(*(counted(config, number, attention, precision) for number in (1, 2)), strict=True))
    moved, wide = [], []
    for at in (0, 1):
        moved.append(of_a_score([two[at].num_bytes.total() - one[at].num_bytes.total() for one, two in layers]))
        flops = [
            of_a_score([two[at].flops[dtype] - one[at].flops[dtype] for one, two in layers])
            for dtype in (torch.float32, torch.bfloat16)
        ]
        wide.append(flops[0] / sum(flops))
        assert sum(flops) == pytest.approx((4, 8)[at] * 64), "two products of 64 elements in forward, four in backward"
    assert moved[0] == pytest.approx(expected.forward, abs=0.6)
    assert moved[1] == pytest.approx(expected.backward, abs=0.6)
    assert wide == [expected.in_fp32] * 2


def test_fused_kernels_keep_their_scores_to_themselves() -> None:
    for config in ({"model_type": "llama", **_LLAMA}, {"model_type": "gemma2", **_LLAMA}):
        assert scores_of(read_model(model=with_layers(config, 2)), "sdpa", "bf16") is None
        assert scores_of(read_model(model=with_layers(config, 2)), "flash", "bf16") is None
    grouped, alone = ({"model_type": "llama", **_LLAMA, "num_key_value_heads": heads} for heads in (2, 4))
    assert kind_of(read_model(model=with_layers(grouped, 2)), "sdpa", "fp32") == "formula"
    assert scores_of(read_model(model=with_layers(alone, 2)), "sdpa", "fp32") is None


def test_falcon_repeats_its_own_keys_in_the_new_architecture() -> None:
    new = {**_FALCON, "model_type": "falcon", "new_decoder_architecture": True, "num_kv_heads": 2}
    assert kind_of(read_model(model=with_layers(new, 2)), "sdpa", "fp32") is None


def test_layers_whose_window_is_full_have_a_mask() -> None:
    """All of Mistral's, half of Gemma 2's, none of a model without a window; FlashAttention needs none."""
    mistral = read_model(model={"model_type": "mistral", **_LLAMA, "num_hidden_layers": 2, "sliding_window": 4096})
    gemma = read_model(model={"model_type": "gemma2", **_LLAMA, "num_hidden_layers": 4, "sliding_window": 4096})
    llama = read_model(model={"model_type": "llama", **_LLAMA, "num_hidden_layers": 2})
    assert [masked_share(mistral, "sdpa", length) for length in (4095, 4096)] == [0.0, 1.0]
    assert masked_share(gemma, "sdpa", 8192) == 0.5
    assert masked_share(llama, "sdpa", 10**6) == masked_share(mistral, "flash", 8192) == 0.0


def test_a_mask_costs_what_its_kernel_does() -> None:
    """Half of the layers with one: the middle of both kernels at each length."""
    gemma = read_model(model={"model_type": "gemma2", **_LLAMA, "num_hidden_layers": 4, "sliding_window": 4096})
    choices = (KernelChoice("bf16", "sdpa", masked=share) for share in (0.0, 0.5, 1.0))
    none, half, whole = (layer_block(gemma, find_gpu("h100-80gb"), choice) for choice in choices)
    for length in (4096, 32768):
        for at in (0, 1):
            seconds = [block.passes(1, length)[at].attention for block in (none, half, whole)]
            assert seconds[1] == pytest.approx((seconds[0] + seconds[2]) / 2)
            assert seconds[2] > 2 * seconds[0]
