"""The analytic model against a trace, for settings that change a layer's operations: to half a percent of the peak."""

from __future__ import annotations

from typing import Any

import pytest
from test_traced import hugging_face

from dsconf.memory.autograd.figures import Activations, Shape
from dsconf.memory.layers.activations import activations
from dsconf.memory.trace.module import read_module
from dsconf.memory.zero.gradient_order import hooks
from dsconf.memory.zero.module_order import modules
from dsconf.model.read import read_model

pytest.importorskip("torch")
SMALL = {"hidden_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 4096}
LLAMA = SMALL | {"intermediate_size": 512, "max_position_embeddings": 512}
GROUPED = LLAMA | {"num_key_value_heads": 2, "head_dim": 64}
FALCON = SMALL | {"bias": True, "hidden_dropout": 0.1, "attention_dropout": 0.1}
GPT2 = {"n_embd": 256, "n_layer": 2, "n_head": 4, "n_positions": 512, "vocab_size": 4096}
OPT = SMALL | {"ffn_dim": 512, "word_embed_proj_dim": 128, "max_position_embeddings": 512, "dropout": 0.1}
BLOOM = {"hidden_size": 256, "n_layer": 2, "n_head": 4, "vocab_size": 4096}
NEOX = SMALL | {"intermediate_size": 768, "max_position_embeddings": 512, "hidden_dropout": 0.1}
PHI = GROUPED | {"resid_pdrop": 0.1, "embd_pdrop": 0.1}
CASES: list[tuple[str, dict[str, Any], str, str]] = [
    ("llama", GROUPED | {"attention_bias": True, "mlp_bias": True}, "sdpa", "reentrant"),
    ("llama", GROUPED | {"attention_dropout": 0.1, "num_key_value_heads": 1}, "sdpa", "nonreentrant"),
    ("mistral", GROUPED | {"sliding_window": 128}, "sdpa", ""),
    ("mistral", GROUPED | {"sliding_window": None, "tie_word_embeddings": True}, "eager", "reentrant"),
    ("qwen2", GROUPED | {"use_sliding_window": True, "sliding_window": 128, "max_window_layers": 0}, "eager", ""),
    ("qwen3", GROUPED | {"head_dim": 128}, "sdpa", ""),
    ("mixtral", GROUPED | {"num_local_experts": 5, "sliding_window": None}, "sdpa", "nonreentrant"),
    ("gpt2", GPT2 | {"activation_function": "gelu_fast"}, "sdpa", ""),
    ("gpt2", GPT2 | {"resid_pdrop": 0.0, "attn_pdrop": 0.0, "embd_pdrop": 0.0}, "eager", "reentrant"),
    ("opt", OPT, "eager", "nonreentrant"),
    ("opt", OPT | {"do_layer_norm_before": False, "attention_dropout": 0.1}, "sdpa", "reentrant"),
    ("gpt_neox", NEOX | {"use_parallel_residual": False, "rotary_pct": 0.5}, "sdpa", ""),
    ("gpt_neox", NEOX | {"attention_bias": False, "rotary_pct": 1.0}, "eager", "nonreentrant"),
    ("phi", PHI | {"qk_layernorm": True, "partial_rotary_factor": 1.0}, "sdpa", "nonreentrant"),
    ("phi", PHI | {"tie_word_embeddings": True}, "eager", ""),
    ("bloom", BLOOM | {"hidden_dropout": 0.1, "attention_dropout": 0.1}, "eager", "reentrant"),
    ("falcon", FALCON | {"multi_query": True, "parallel_attn": True, "alibi": False}, "sdpa", ""),
    ("falcon", FALCON | {"multi_query": False, "parallel_attn": False, "alibi": True}, "sdpa", "reentrant"),
    ("falcon", FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2}, "sdpa", ""),
    (
        "falcon",
        FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1},
        "eager",
        "",
    ),
]


def heights(act: Activations) -> dict[str, int]:
    """What is kept, and the moments of forward and backward that can be the peak."""
    below = act.bottom + (act.layers - 1) * act.layer + act.tied
    found = {
        "kept": act.kept + act.head,
        "loss": act.kept + act.head_forward,
        "head": act.kept + act.head_backward.grads_freed,
        "layer": below + act.layer_backward.grads_freed,
        "layer, gradients stay": below + act.layer_backward.grads_kept,
        "embedding": act.bottom + act.tied + act.before_backward,
    }
    return found | {f"hook {number}": below + live for number, live in enumerate(act.layer_live)}


@pytest.mark.parametrize(("family", "config", "attention", "replay"), CASES)
def test_heights_hooks_and_modules(family: str, config: dict[str, Any], attention: str, replay: str) -> None:
    """Token ids, positions and the rounding of each block to 512 bytes are in the trace only."""
    given = config | {"model_type": family}
    shape = Shape(2, 256, 2, False, attention)
    live = read_module(hugging_face(given, attention), micro_batch_size=2, seq_len=256)
    model = read_model(model=given)
    found, told = (heights(activations(one, shape, replay)) for one in (live, model))
    assert told == pytest.approx(found, abs=0.005 * max(found.values()))
    assert [hook[:3] for hook in hooks(model).order] == [hook[:3] for hook in hooks(live).order]
    seen, expected = modules(live, 2), modules(model, 2)
    assert seen.layers == expected.layers
    assert (seen.before, seen.after) == (expected.before, expected.after)
