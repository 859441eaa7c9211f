"""What attention moves for each score, counted operation by operation on transformers' and torch's own code."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from test_counted_traffic import Traffic, touched  # noqa: E402
from torch.nn.attention import SDPBackend, sdpa_kernel  # noqa: E402

from dsconf.model.read import read_model  # noqa: E402
from dsconf.speed import scores as written  # noqa: E402
from dsconf.speed.scores import Scores, scores_of  # noqa: E402

HEADS, SEQUENCES, LENGTHS = 4, 2, (64, 128, 192)
SAFE_SOFTMAX = 14
"""Bytes inside ``_safe_softmax`` beside its softmax: which scores are -inf (4 read, 1 written), which rows have nothing
else (1), and zeros in their place (4 read, 4 written); the operation is counted as one, outside of which is 8."""
_COMMON = {"hidden_size": 256, "num_attention_heads": HEADS, "vocab_size": 100}
_LLAMA = {**_COMMON, "intermediate_size": 512, "num_key_value_heads": 2, "head_dim": 64}
_FALCON = {**_COMMON, "new_decoder_architecture": False, "hidden_dropout": 0.0, "attention_dropout": 0.0}
_DROPS = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
_GPT = {"n_embd": 256, "n_head": HEADS, "vocab_size": 100, "n_positions": 256, **_DROPS}
_NEO = dict.fromkeys(("resid_dropout", "embed_dropout", "attention_dropout"), 0.0)
CASES: dict[str, tuple[dict[str, Any], str, Scores]] = {
    "llama": ({"model_type": "llama", **_LLAMA}, "eager", written.USUAL),
    "gpt2": ({"model_type": "gpt2", **_GPT}, "eager", written.LOW),
    "gptj": ({"model_type": "gptj", **_GPT, "rotary_dim": 32}, "sdpa", written.PLAIN_FP32),
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
        written.PLAIN_FP32,
    ),
    "bloom": ({"model_type": "bloom", "hidden_size": 256, "n_head": HEADS, "vocab_size": 100}, "sdpa", written.BLOOM),
    "gemma2": ({"model_type": "gemma2", **_LLAMA}, "eager", written.CAPPED),
    "falcon": ({"model_type": "falcon", **_FALCON, "multi_query": True, "alibi": False}, "eager", written.LOW),
    "falcon, ALiBi": ({"model_type": "falcon", **_FALCON, "multi_query": False, "alibi": True}, "eager", written.ALIBI),
    "falcon, one head": ({"model_type": "falcon", **_FALCON, "multi_query": True}, "sdpa", written.FORMULA),
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


def counted(config: dict[str, Any], layers: int, length: int, attention: str) -> tuple[Counted, Counted]:
    words = with_layers(config, layers)
    eager = attention == "eager" or config["model_type"] in ("gptj", "gpt_neo", "bloom")
    model = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.for_model(words.pop("model_type"), **words),
        dtype=torch.bfloat16,
        attn_implementation="eager" if eager else "sdpa",
    )
    tokens = torch.zeros(SEQUENCES, length, dtype=torch.long)
    with nullcontext() if eager else sdpa_kernel(SDPBackend.MATH):
        with Counted() as forward:
            loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss
        with Counted() as backward:
            loss.backward()
    return forward, backward


def of_a_score(values: list[float]) -> float:
    """The square's coefficient of three values at equal distances, for each head and sequence."""
    short, middle, long = values
    step = LENGTHS[1] - LENGTHS[0]
    return (long - 2 * middle + short) / (2 * step**2) / (SEQUENCES * HEADS)


@pytest.mark.parametrize("case", CASES)
def test_bytes_and_types_of_a_score(case: str) -> None:
    config, attention, expected = CASES[case]
    layers = [tuple(counted(config, number, length, attention) for number in (1, 2)) for length in LENGTHS]
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
    assert scores_of(read_model(model=with_layers(config, 2)), attention, "bf16") is expected


def test_fused_kernels_keep_their_scores_to_themselves() -> None:
    for config in ({"model_type": "llama", **_LLAMA}, {"model_type": "gemma2", **_LLAMA}):
        assert scores_of(read_model(model=with_layers(config, 2)), "sdpa", "bf16") is None
        assert scores_of(read_model(model=with_layers(config, 2)), "flash", "bf16") is None
    grouped, alone = ({"model_type": "llama", **_LLAMA, "num_key_value_heads": heads} for heads in (2, 4))
    assert scores_of(read_model(model=with_layers(grouped, 2)), "sdpa", "fp32") is written.FORMULA
    assert scores_of(read_model(model=with_layers(alone, 2)), "sdpa", "fp32") is None
