"""Every family against transformers on the meta device: names, shapes and order of all parameters."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model_cases import CASES, SMALL, built, listed

from dsconf.model.families import FAMILIES
from dsconf.model.read import read_hf_config, read_model
from dsconf.model.spec import Model

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
transformers.logging.set_verbosity_error()


def registered(family: str, config: dict[str, Any]) -> list[tuple[str, tuple[int, ...]]]:
    return [(name, tuple(p.shape)) for name, p in built(family, config).named_parameters()]


@pytest.mark.parametrize(("family", "config"), CASES)
def test_lists_what_transformers_registers(family: str, config: dict[str, Any]) -> None:
    model = read_model(model={"model_type": family} | config)
    assert listed(model) == registered(family, config)
    assert model.num_params == sum(torch.Size(shape).numel() for _, shape in registered(family, config))


def test_every_family_has_cases() -> None:
    assert {family for family, _ in CASES} == set(FAMILIES)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_defaults_and_aliases_are_those_of_transformers(family: str) -> None:
    config = transformers.AutoConfig.for_model(family)
    elsewhere = {"partial_rotary_factor", "rotary_pct"}
    absent = {"bloom": {"max_position_embeddings"}}.get(family, set())
    window_off = {"qwen2", "qwen3", "qwen2_moe", "qwen3_moe"}
    for key, value in FAMILIES[family].defaults.items():
        if key in elsewhere:
            assert config.rope_parameters["partial_rotary_factor"] == value
        elif key == "sliding_window" and family in window_off:
            assert not config.sliding_window  # the class drops it while use_sliding_window is off
        elif key not in absent and not (family in ("gemma2", "gemma3_text") and key == "hidden_act"):
            assert getattr(config, key) == value, key
    for alias, key in FAMILIES[family].aliases.items():
        assert getattr(transformers.AutoConfig.for_model(family, **{alias: 24}), key) == 24


@pytest.mark.parametrize(("family", "config"), CASES)
def test_reads_a_config_transformers_wrote(family: str, config: dict[str, Any]) -> None:
    """The same shape from the few keys given and from every key the Config class writes."""
    written = transformers.AutoConfig.for_model(family, **config)
    full, short = read_model(model=written), read_model(model={"model_type": family} | config)
    assert full.parameters == short.parameters
    ours = {k: v for k, v in vars(full).items() if k not in ("name", "hf_config")}
    assert ours == {k: v for k, v in vars(short).items() if k not in ("name", "hf_config")}


@st.composite
def llama_like(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    family = draw(st.sampled_from(["llama", "mistral", "qwen2", "qwen3", "olmo2", "gemma2", "phi3", "granite"]))
    kv_heads, group = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    head_dim = 2 * draw(st.integers(1, 8))
    config = {
        "num_attention_heads": kv_heads * group,
        "num_key_value_heads": kv_heads,
        "hidden_size": kv_heads * group * head_dim,
        "intermediate_size": draw(st.integers(1, 200)),
        "num_hidden_layers": draw(st.integers(1, 4)),
        "vocab_size": draw(st.integers(1, 300)),
        "max_position_embeddings": draw(st.integers(1, 64)),
        "tie_word_embeddings": draw(st.booleans()),
    }
    if draw(st.booleans()) and family != "phi3":
        config["head_dim"] = 2 * draw(st.integers(1, 16))
    if family in ("llama", "qwen3", "granite", "gemma2", "olmo2"):
        config["attention_bias"] = draw(st.booleans())
    return family, config


@settings(max_examples=60, deadline=None)
@given(llama_like())
def test_random_llama_like_configs(case: tuple[str, dict[str, Any]]) -> None:
    family, config = case
    assert listed(read_model(model={"model_type": family} | config)) == registered(family, config)


@st.composite
def gpt_like(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    family = draw(st.sampled_from(["gpt2", "gpt_neox", "bloom", "falcon", "opt", "phi"]))
    heads = draw(st.integers(1, 6))
    config: dict[str, Any] = {
        "num_attention_heads": heads,
        "hidden_size": heads * 16 * draw(st.integers(1, 3)),
        "num_hidden_layers": draw(st.integers(1, 4)),
        "vocab_size": draw(st.integers(2, 300)),
        "tie_word_embeddings": draw(st.booleans()),
    }
    if family in ("gpt_neox", "phi"):
        config["intermediate_size"] = draw(st.integers(1, 200))
    if family != "bloom":
        config["max_position_embeddings"] = draw(st.integers(1, 64))
    if family == "opt":
        config |= {
            "ffn_dim": draw(st.integers(1, 200)),
            "word_embed_proj_dim": draw(st.sampled_from([None, 8, 16])),
        }
    if family == "falcon":
        for key in ("multi_query", "parallel_attn", "alibi", "bias", "new_decoder_architecture"):
            config[key] = draw(st.booleans())
    return family, config


@settings(max_examples=60, deadline=None)
@given(gpt_like())
def test_random_gpt_like_configs(case: tuple[str, dict[str, Any]]) -> None:
    family, config = case
    assert listed(read_model(model={"model_type": family} | config)) == registered(family, config)


def test_traits_follow_the_config() -> None:
    def read(family: str, **config: Any) -> Model:
        return read_hf_config({"model_type": family} | SMALL | config, family)

    gpt2 = read("gpt2")
    assert (gpt2.embedding_dropout, gpt2.hidden_dropout, gpt2.attention_dropout) == (0.1, 0.1, 0.1)
    assert (gpt2.mlp, gpt2.rotary_dim, gpt2.positions, gpt2.activation) == (256, 0, 1024, "gelu_new")
    opt = read("opt", word_embed_proj_dim=32, do_layer_norm_before=False)
    assert (opt.embedding_dropout, opt.hidden_dropout, opt.attention_dropout) == (0.0, 0.1, 0.0)
    assert (opt.embedding_dim, opt.pre_norm, opt.mlp) == (32, False, 3072)
    assert read("opt").embedding_dim == 0
    neox = read("gpt_neox", hidden_dropout=0.2)
    assert (neox.embedding_dropout, neox.hidden_dropout, neox.rotary_dim) == (0.2, 0.2, 4)
    assert neox.parallel_residual
    assert read("gpt_neox", rotary_pct=0.5).rotary_dim == 8
    assert read("gpt_neox", rope_parameters={"partial_rotary_factor": 1.0}).rotary_dim == 16
    phi = read("phi", embd_pdrop=0.3, resid_pdrop=0.2)
    assert (phi.embedding_dropout, phi.hidden_dropout, phi.rotary_dim) == (0.3, 0.2, 8)
    assert read("falcon").kv_heads == 1
    assert read("falcon", new_decoder_architecture=True, num_kv_heads=2).kv_heads == 2
    sequential = read("falcon", multi_query=False, parallel_attn=False, alibi=True)
    assert (sequential.kv_heads, sequential.alibi, sequential.rotary_dim) == (4, True, 0)
    assert not sequential.parallel_residual
    gemma2 = read("gemma2", num_key_value_heads=2)
    assert (gemma2.attention_softcap, gemma2.logit_softcap, gemma2.sliding_window) == (50.0, 30.0, 4096)
    assert gemma2.rotary_dim == 256
    assert read("mistral", num_key_value_heads=2).sliding_window == 4096
    assert read("mistral", num_key_value_heads=2, sliding_window=None).sliding_window == 0
    assert read("qwen2", num_key_value_heads=2).sliding_window == 0
    mixtral = read("mixtral", num_key_value_heads=2)
    assert (mixtral.experts, mixtral.experts_per_token, mixtral.mlp) == (8, 2, 14336)
    shared = read("qwen2_moe", num_key_value_heads=2)
    assert (shared.experts, shared.experts_per_token, shared.mlp, shared.shared_mlp) == (60, 4, 1408, 5632)
    assert read("bloom").alibi
