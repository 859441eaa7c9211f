"""The model families dsconf reads, with the defaults transformers 5.17 gives the keys a config leaves out.

Defaults and aliases are those of each family's Config class (``models/<family>/configuration_<family>.py``); the
tests compare every one of them with transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from dsconf.model import families_gpt as gpt
from dsconf.model import families_llama as llama
from dsconf.model import families_moe as moe
from dsconf.model.hf_config import HfConfig
from dsconf.model.spec import Model


class Family(NamedTuple):
    """How one ``model_type`` is read."""

    read: Callable[[HfConfig], Model]
    defaults: Mapping[str, Any]
    aliases: Mapping[str, str] = {}


_LLAMA = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "vocab_size": 32000,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
}
_MISTRAL = _LLAMA | {"intermediate_size": 14336, "num_key_value_heads": 8, "max_position_embeddings": 4096 * 32}
_QWEN = _LLAMA | {
    "intermediate_size": 22016,
    "num_key_value_heads": 32,
    "vocab_size": 151936,
    "max_position_embeddings": 32768,
    "sliding_window": 4096,
}
_QWEN_MOE = {key: value for key, value in _QWEN.items() if key != "intermediate_size"} | {
    "hidden_size": 2048,
    "num_hidden_layers": 24,
    "decoder_sparse_step": 1,
}
_GEMMA = {
    "hidden_size": 3072,
    "intermediate_size": 24576,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "head_dim": 256,
    "vocab_size": 256000,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
    "hidden_act": "gelu_pytorch_tanh",
}
_GEMMA2 = _GEMMA | {
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "hidden_activation": "gelu_pytorch_tanh",
    "sliding_window": 4096,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
}
_GPT2 = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "vocab_size": 50257,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
    "activation_function": "gelu_new",
    "embd_pdrop": 0.1,
    "resid_pdrop": 0.1,
    "attn_pdrop": 0.1,
}
_GPT2_NAMES = {
    "n_embd": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_positions": "max_position_embeddings",
}

FAMILIES: Mapping[str, Family] = {
    "llama": Family(llama.llama, _LLAMA),
    "mistral": Family(llama.mistral, _MISTRAL | {"sliding_window": 4096}),
    "mixtral": Family(
        moe.mixtral,
        _MISTRAL | {"num_local_experts": 8, "num_experts_per_tok": 2},
        {"num_experts": "num_local_experts"},
    ),
    "qwen2": Family(llama.qwen2, _QWEN),
    "qwen3": Family(llama.qwen3, _QWEN | {"head_dim": 128}),
    "qwen2_moe": Family(
        moe.qwen2_moe,
        _QWEN_MOE
        | {
            "num_attention_heads": 16,
            "num_key_value_heads": 16,
            "moe_intermediate_size": 1408,
            "shared_expert_intermediate_size": 5632,
            "num_experts": 60,
            "num_experts_per_tok": 4,
            "qkv_bias": True,
        },
    ),
    "qwen3_moe": Family(
        moe.qwen3_moe,
        _QWEN_MOE
        | {
            "num_key_value_heads": 4,
            "moe_intermediate_size": 768,
            "num_experts": 128,
            "num_experts_per_tok": 8,
        },
        {"num_local_experts": "num_experts"},
    ),
    "granite": Family(llama.granite, _LLAMA),
    "gemma": Family(llama.gemma, _GEMMA),
    "gemma2": Family(llama.gemma2, _GEMMA2),
    "gemma3_text": Family(
        llama.gemma3_text,
        _GEMMA2
        | {
            "vocab_size": 262208,
            "max_position_embeddings": 131072,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
        },
    ),
    "olmo": Family(llama.olmo, _LLAMA | {"vocab_size": 50304}),
    "olmo2": Family(llama.olmo2, _LLAMA | {"vocab_size": 50304}),
    "phi3": Family(
        llama.phi3,
        _LLAMA
        | {
            "hidden_size": 3072,
            "intermediate_size": 8192,
            "vocab_size": 32064,
            "max_position_embeddings": 4096,
            "partial_rotary_factor": 1.0,
        },
    ),
    "cohere": Family(
        llama.cohere,
        _LLAMA
        | {
            "hidden_size": 8192,
            "intermediate_size": 22528,
            "num_hidden_layers": 40,
            "num_attention_heads": 64,
            "vocab_size": 256000,
            "max_position_embeddings": 8192,
            "tie_word_embeddings": True,
        },
    ),
    "stablelm": Family(
        llama.stablelm,
        _LLAMA
        | {
            "hidden_size": 2560,
            "intermediate_size": 6912,
            "num_key_value_heads": 32,
            "vocab_size": 50304,
            "max_position_embeddings": 4096,
            "partial_rotary_factor": 0.25,
        },
    ),
    "starcoder2": Family(
        llama.starcoder2,
        _LLAMA
        | {
            "hidden_size": 3072,
            "intermediate_size": 12288,
            "num_hidden_layers": 30,
            "num_attention_heads": 24,
            "num_key_value_heads": 2,
            "vocab_size": 49152,
            "max_position_embeddings": 4096,
            "tie_word_embeddings": True,
            "hidden_act": "gelu_pytorch_tanh",
            "use_bias": True,
        },
    ),
    "phi": Family(
        llama.phi,
        _LLAMA
        | {
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_hidden_layers": 24,
            "vocab_size": 51200,
            "hidden_act": "gelu_new",
            "partial_rotary_factor": 0.5,
        },
    ),
    "gpt2": Family(gpt.gpt2, _GPT2, _GPT2_NAMES),
    "gptj": Family(
        gpt.gptj,
        _GPT2
        | {
            "hidden_size": 4096,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
            "vocab_size": 50400,
            "max_position_embeddings": 2048,
            "tie_word_embeddings": False,
            "rotary_dim": 64,
            "embd_pdrop": 0.0,
            "resid_pdrop": 0.0,
            "attn_pdrop": 0.0,
        },
        _GPT2_NAMES,
    ),
    "gpt_neo": Family(
        gpt.gpt_neo,
        {
            "hidden_size": 2048,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "vocab_size": 50257,
            "max_position_embeddings": 2048,
            "tie_word_embeddings": True,
            "activation_function": "gelu_new",
            "window_size": 256,
        },
        {"num_layers": "num_hidden_layers", "num_heads": "num_attention_heads"},
    ),
    "gpt_neox": Family(
        gpt.gpt_neox,
        {
            "hidden_size": 6144,
            "intermediate_size": 24576,
            "num_hidden_layers": 44,
            "num_attention_heads": 64,
            "vocab_size": 50432,
            "max_position_embeddings": 2048,
            "tie_word_embeddings": False,
            "hidden_act": "gelu",
            "rotary_pct": 0.25,
            "use_parallel_residual": True,
            "attention_bias": True,
        },
    ),
    "opt": Family(
        gpt.opt,
        {
            "hidden_size": 768,
            "ffn_dim": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "vocab_size": 50272,
            "max_position_embeddings": 2048,
            "tie_word_embeddings": True,
            "activation_function": "relu",
            "do_layer_norm_before": True,
            "layer_norm_elementwise_affine": True,
            "enable_bias": True,
            "dropout": 0.1,
        },
    ),
    "falcon": Family(
        gpt.falcon,
        {
            "hidden_size": 4544,
            "num_hidden_layers": 32,
            "num_attention_heads": 71,
            "vocab_size": 65024,
            "max_position_embeddings": 2048,
            "tie_word_embeddings": True,
            "activation": "gelu",
            "multi_query": True,
            "parallel_attn": True,
        },
        {"n_embed": "hidden_size"},
    ),
    "bloom": Family(
        gpt.bloom,
        {
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 8,
            "vocab_size": 250880,
            "max_position_embeddings": 2048,
            "tie_word_embeddings": True,
        },
        {"n_embed": "hidden_size", "n_layer": "num_hidden_layers", "n_head": "num_attention_heads"},
    ),
}
"""BLOOM's config names no longest sequence; 2048 is what its models were trained with."""
