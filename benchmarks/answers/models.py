"""Models and GPUs to ask about. The lists are fixed here, so that questions stay the same when catalogues grow."""

from __future__ import annotations

import json
import random
from typing import Any

from benchmarks.answers.question import Words, maybe, pick

_CATALOGUE = {
    "meta-llama": "Llama-2-7b-hf Llama-2-13b-hf Llama-2-70b-hf Meta-Llama-3-8B Meta-Llama-3-70B Llama-3.1-8B "
    "Llama-3.1-70B Llama-3.1-405B Llama-3.2-1B Llama-3.2-3B Llama-3.3-70B-Instruct",
    "TinyLlama": "TinyLlama-1.1B-Chat-v1.0",
    "HuggingFaceTB": "SmolLM2-135M SmolLM2-360M SmolLM2-1.7B",
    "mistralai": "Mistral-7B-v0.1 Mistral-7B-v0.3 Mixtral-8x7B-v0.1 Mixtral-8x22B-Instruct-v0.1",
    "mistral-community": "Mixtral-8x22B-v0.1",
    "Qwen": "Qwen2.5-0.5B Qwen2.5-1.5B Qwen2.5-3B Qwen2.5-7B Qwen2.5-14B Qwen2.5-32B Qwen2.5-72B Qwen3-0.6B Qwen3-1.7B "
    "Qwen3-4B Qwen3-8B Qwen3-14B Qwen3-32B Qwen3-30B-A3B Qwen3-235B-A22B",
    "google": "gemma-2-2b gemma-2-9b gemma-2-27b",
    "openai-community": "gpt2 gpt2-medium gpt2-large gpt2-xl",
    "facebook": "opt-125m opt-350m opt-1.3b opt-2.7b opt-6.7b opt-13b opt-30b opt-66b",
    "EleutherAI": "pythia-70m pythia-160m pythia-410m pythia-1b pythia-1.4b pythia-2.8b pythia-6.9b pythia-12b "
    "gpt-neox-20b",
    "microsoft": "phi-1 phi-1_5 phi-2 phi-4",
    "tiiuae": "falcon-7b falcon-40b falcon-180B",
    "bigscience": "bloom-560m bloom-1b1 bloom-1b7 bloom-3b bloom-7b1 bloom",
    "allenai": "OLMo-2-1124-7B OLMo-2-1124-13B",
}
CATALOGUE = tuple(f"{owner}/{name}" for owner, names in _CATALOGUE.items() for name in names.split())
_CARDS = (
    "H100 SXM 80GB|H100 PCIe 80GB|H100 NVL 94GB|H200 SXM 141GB|H200 NVL 141GB|H800 SXM 80GB|H20 96GB|GH200 96GB",
    "B100 192GB|B200 180GB|B300 288GB|GB200 186GB|A100 SXM 80GB|A100 SXM 40GB|A100 PCIe 80GB|A100 PCIe 40GB",
    "A800 SXM 80GB|A40|A30|A10|A10G|RTX A6000|RTX A5000|RTX 6000 Ada|RTX PRO 6000 Blackwell|L40S|L40|L4|RTX 5090",
    "RTX 4090|RTX 3090|V100 SXM 32GB|V100 SXM 16GB|V100 PCIe 16GB|V100 PCIe 32GB|P100 PCIe 16GB|P100 SXM 16GB|T4",
    "MI325X 256GB|MI300X 192GB|MI250X 64GB (one die)|h100|h100-80gb|a100-80gb|a100_40gb|4090|b200|mi300x|h200",
)
GPUS = tuple(name for line in _CARDS for name in line.split("|"))
SIZES = (
    "10M",
    "30M",
    "70m",
    "125M",
    "350M",
    "500000000",
    "1B",
    "1.3B",
    "1.5e9",
    "2.7B",
    "3B",
    "6.7b",
    "7B",
    "8B",
    "13B",
)
SIZES += ("20B", "30B", "34B", "40b", "65B", "70B", "120B", "175B", "405B", "671B", "1T", "2T")
_ATTENDED = {"num_key_value_heads": (1, 2, 4, 4), "head_dim": (32, 64, 128)}
_GATED = {"intermediate_size": (512, 1408, 2816, 5504), "tie_word_embeddings": (True, False)}
_BIAS = {"attention_bias": (True, False)}
_WINDOW = {"sliding_window": (None, 256, 4096)}
_EXPERTS = {"num_experts_per_tok": (1, 2), "moe_intermediate_size": (256, 704)} | _ATTENDED
FAMILIES: dict[str, dict[str, tuple[Any, ...]]] = {
    "llama": _GATED | _ATTENDED | _BIAS | {"mlp_bias": (True, False)},
    "mistral": _GATED | _ATTENDED | _WINDOW,
    "mixtral": _GATED | _ATTENDED | _WINDOW | {"num_local_experts": (4, 8), "num_experts_per_tok": (1, 2)},
    "qwen2": _GATED | _WINDOW | {"num_key_value_heads": (2, 4), "use_sliding_window": (True, False)},
    "qwen3": _GATED | _ATTENDED | _BIAS,
    "qwen2_moe": _EXPERTS | {"num_experts": (4, 16), "shared_expert_intermediate_size": (512, 1024)},
    "qwen3_moe": _EXPERTS | {"num_experts": (4, 16)},
    "granite": _GATED | _BIAS | {"num_key_value_heads": (2, 4)},
    "gemma": _GATED | _ATTENDED,
    "gemma2": _GATED | _ATTENDED | {"attn_logit_softcapping": (None, 50.0), "final_logit_softcapping": (None, 30.0)},
    "gemma3_text": _GATED | _ATTENDED | {"sliding_window": (256, 512)},
    "olmo": _GATED | {"num_key_value_heads": (2, 4)},
    "olmo2": _GATED | {"num_key_value_heads": (2, 4)} | _BIAS,
    "phi3": _GATED | _WINDOW | {"num_key_value_heads": (2, 4), "resid_pdrop": (0.0, 0.1)},
    "cohere": _GATED | {"num_key_value_heads": (2, 4), "use_qk_norm": (True, False)},
    "stablelm": _GATED | {"num_key_value_heads": (2, 4), "use_parallel_residual": (True, False)},
    "starcoder2": _GATED | {"num_key_value_heads": (2, 4), "use_bias": (True, False)},
    "phi": _GATED | {"qk_layernorm": (True, False), "resid_pdrop": (0.0, 0.1)},
    "gpt2": {"n_inner": (None, 1024), "resid_pdrop": (0.0, 0.1), "activation_function": ("gelu_new", "relu")},
    "gptj": {"rotary_dim": (16, 32), "resid_pdrop": (0.0, 0.1)},
    "gpt_neo": {"window_size": (128, 256), "resid_dropout": (0.0, 0.1)},
    "gpt_neox": _GATED | {"use_parallel_residual": (True, False), "hidden_dropout": (0.0, 0.1)},
    "opt": {"ffn_dim": (1024, 3072), "dropout": (0.0, 0.1), "word_embed_proj_dim": (None, 256)},
    "falcon": {"multi_query": (True, False), "parallel_attn": (True, False), "alibi": (True, False)},
    "bloom": {"hidden_dropout": (0.0, 0.1), "attention_dropout": (0.0, 0.1)},
}
"""Keys of a family's config.json that change its parameters or operations → values to choose from."""


def shape(chance: random.Random) -> dict[str, Any]:
    """A small config.json of any family; each key may be left to the family's default."""
    family = chance.choice(list(FAMILIES))
    heads = chance.choice((4, 8, 16))
    config: dict[str, Any] = {
        "model_type": family,
        "hidden_size": heads * chance.choice((32, 64, 80, 128)),
        "num_attention_heads": heads,
        "num_hidden_layers": chance.choice((1, 2, 3, 6, 12, 24)),
        "vocab_size": chance.choice((1000, 32000, 50257, 128256)),
        "max_position_embeddings": chance.choice((1024, 2048, 8192, 131072)),
    }
    config |= {key: chance.choice(values) for key, values in FAMILIES[family].items() if chance.random() < 0.75}
    if chance.random() < 0.04:
        key = chance.choice(list(config))
        config[key] = chance.choice((None, -1, 0, "word", 2.5, 10**12))
    return config


def model(chance: random.Random, largest: int = len(SIZES)) -> tuple[Words, dict[str, str]]:
    """What names a model, and the files that it needs."""
    way = pick(chance, {"catalogue": 45, "size": 33, "file": 22})
    if way == "catalogue":
        name = chance.choice(CATALOGUE)
        spelt = pick(chance, {name: 8, name.lower(): 1, name.rpartition("/")[2]: 1})
        return [("--model", spelt)], {}
    if way == "size":
        return [("--params", chance.choice(SIZES[:largest]))], {}
    text = json.dumps(shape(chance), indent=2)
    if chance.random() < 0.03:
        text = text[: chance.randrange(len(text))]
    name = chance.choice(("model.json", "shape/config.json"))
    return [("--model", chance.choice(("shape", name)) if "/" in name else name)], {name: text}


def gpu(chance: random.Random, named: float = 0.6) -> Words:
    """What kind of GPU, how many to a node, and the node's memory."""
    words = maybe(chance, named, "--gpu", GPUS)
    words += maybe(chance, 0.05 if words else 0.3, "--gpu-memory", ("16GiB", "24GB", "40GiB", "80GiB", "80GB", "141GB"))
    words += maybe(chance, 0.15, "--gpus-per-node", (1, 2, 4, 4, 16))
    words += maybe(chance, 0.25, "--host-memory", ("64GiB", "128GiB", "512GB", "1TiB", "2TiB", "4TiB"))
    return words + maybe(chance, 0.12, "--nvme", ("nvme", "/local_nvme"))
