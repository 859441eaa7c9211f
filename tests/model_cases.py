"""Small configs of every family, and what transformers registers for them."""

from __future__ import annotations

from typing import Any

import pytest

from dsconf.model.spec import Model

NO_TOKENS = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
SMALL = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 101}
LLAMA = SMALL | {"intermediate_size": 96, "max_position_embeddings": 40}
GQA = LLAMA | {"num_key_value_heads": 2}
UNTIED, TIED = {"tie_word_embeddings": False}, {"tie_word_embeddings": True}
GPT2 = {"n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 40, "vocab_size": 101}
OPT = SMALL | {"ffn_dim": 80, "max_position_embeddings": 40}
NEO = {"hidden_size": 64, "num_layers": 4, "num_heads": 4, "vocab_size": 101, "max_position_embeddings": 40}
NEO |= {"attention_types": [[["global", "local"], 2]]}
BLOOM = {"hidden_size": 64, "n_layer": 3, "n_head": 4, "vocab_size": 101}
MOE = GQA | {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
BIASED = {"attention_bias": True}

CASES: list[tuple[str, dict[str, Any]]] = [
    ("llama", LLAMA),
    ("llama", GQA | TIED),
    ("llama", GQA | BIASED | {"mlp_bias": True, "head_dim": 24}),
    ("mistral", GQA),
    ("mistral", GQA | TIED | {"head_dim": 24, "sliding_window": None}),
    ("mixtral", GQA | {"num_local_experts": 5}),
    ("mixtral", GQA | TIED | {"num_local_experts": 4, "head_dim": 32}),
    ("qwen2", GQA),
    ("qwen2", GQA | TIED | {"use_sliding_window": True, "max_window_layers": 1}),
    ("qwen3", GQA),
    ("qwen3", GQA | TIED | BIASED | {"head_dim": 32}),
    ("qwen2_moe", MOE | {"shared_expert_intermediate_size": 48}),
    ("qwen2_moe", MOE | TIED | {"shared_expert_intermediate_size": 40, "qkv_bias": False}),
    ("qwen3_moe", MOE),
    ("qwen3_moe", MOE | TIED | BIASED | {"head_dim": 32}),
    ("granite", GQA),
    ("granite", LLAMA | TIED | BIASED | {"mlp_bias": True}),
    ("gemma", GQA),
    ("gemma", GQA | UNTIED | BIASED | {"head_dim": 20}),
    ("gemma2", GQA),
    ("gemma2", GQA | UNTIED | BIASED | {"head_dim": 20}),
    ("gemma3_text", GQA),
    ("gemma3_text", GQA | UNTIED | BIASED | {"head_dim": 20}),
    ("olmo", LLAMA),
    ("olmo", GQA | TIED | BIASED),
    ("olmo2", LLAMA),
    ("olmo2", GQA | TIED | BIASED),
    ("phi3", LLAMA),
    ("phi3", GQA | TIED),
    ("cohere", LLAMA),
    ("cohere", GQA | UNTIED | BIASED | {"use_qk_norm": True}),
    ("stablelm", GQA),
    ("stablelm", GQA | TIED | {"use_qkv_bias": True, "qk_layernorm": True}),
    ("stablelm", GQA | {"use_parallel_residual": True}),
    ("starcoder2", GQA),
    ("starcoder2", GQA | UNTIED | {"use_bias": False}),
    ("phi", LLAMA),
    ("phi", GQA | TIED | {"qk_layernorm": True}),
    ("gpt2", GPT2),
    ("gpt2", SMALL | UNTIED | {"n_inner": 80}),
    ("gptj", GPT2 | {"rotary_dim": 8}),
    ("gptj", GPT2 | TIED | {"rotary_dim": 16, "n_inner": 80}),
    ("gpt_neo", NEO),
    ("gpt_neo", NEO | UNTIED | {"intermediate_size": 80, "attention_types": [[["global"], 4]]}),
    ("gpt_neox", LLAMA),
    ("gpt_neox", LLAMA | TIED | {"attention_bias": False, "use_parallel_residual": False}),
    ("opt", OPT),
    ("opt", OPT | {"word_embed_proj_dim": 32, "do_layer_norm_before": False}),
    ("opt", OPT | UNTIED | {"enable_bias": False, "layer_norm_elementwise_affine": False}),
    ("opt", OPT | UNTIED | {"word_embed_proj_dim": 32, "_remove_final_layer_norm": True}),
    ("falcon", SMALL),
    ("falcon", SMALL | {"new_decoder_architecture": True, "num_kv_heads": 2}),
    ("falcon", SMALL | {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1}),
    ("falcon", SMALL | {"multi_query": False, "parallel_attn": False, "alibi": True, "bias": True}),
    ("falcon", SMALL | UNTIED | {"ffn_hidden_size": 80, "num_ln_in_parallel_attn": 2}),
    ("bloom", BLOOM),
    ("bloom", BLOOM | UNTIED),
]

LAYER_PREFIXES = {
    **dict.fromkeys(("gpt2", "gptj", "gpt_neo", "falcon", "bloom"), "transformer.h"),
    "gpt_neox": "gpt_neox.layers",
    "opt": "model.decoder.layers",
}


def listed(model: Model) -> list[tuple[str, tuple[int, ...]]]:
    """Every parameter of ``model`` under the name the Hugging Face module gives it."""
    prefix = LAYER_PREFIXES.get(model.family, "model.layers")
    before, layer, layers, after = model.parameters
    every = [(p.name, p.shape) for p in before]
    for i in range(layers):
        every += [(f"{prefix}.{i}.{p.name}", p.shape) for p in layer]
    return every + [(p.name, p.shape) for p in after]


def built(family: str, config: dict[str, Any]) -> Any:
    """The module transformers builds, without storage; skips the test where torch or transformers is missing."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    transformers.logging.set_verbosity_error()
    tokens = {"pad_token_id": 1} if family == "opt" else {"pad_token_id": None}
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(
            transformers.AutoConfig.for_model(family, **(NO_TOKENS | tokens | config))
        )
