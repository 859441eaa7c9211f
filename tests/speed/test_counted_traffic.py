"""The bytes that a decoder layer moves, counted operation by operation on transformers' own layers."""

from collections import Counter

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils._pytree import tree_leaves  # noqa: E402

from dsconf.model.read import read_model  # noqa: E402
from dsconf.speed import compute  # noqa: E402
from dsconf.speed.elementwise import layer_traffic  # noqa: E402

SEQUENCES, LENGTH, HIDDEN = 2, 64, 256
_LLAMA = {
    "hidden_size": HIDDEN,
    "intermediate_size": 1024,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": 1000,
}
CONFIGS = {
    "llama": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "mistral": _LLAMA,
    "olmo2": {**_LLAMA},
    "gpt2": {"n_embd": HIDDEN, "n_head": 4, "vocab_size": 1000, "n_positions": LENGTH}
    | dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0),
    "opt": {
        "hidden_size": HIDDEN,
        "ffn_dim": 1024,
        "num_attention_heads": 4,
        "vocab_size": 1000,
        "word_embed_proj_dim": HIDDEN,
        "dropout": 0.0,
        "attention_dropout": 0.0,
    },
    "gpt_neox": {
        "hidden_size": HIDDEN,
        "intermediate_size": 1024,
        "num_attention_heads": 4,
        "vocab_size": 1000,
    },
}
_PRODUCTS = ("mm", "addmm", "bmm", "baddbmm")
_NO_READ = ("fill_", "zero_", "zeros", "ones", "new_zeros", "zeros_like", "ones_like", "full", "arange")
_NO_KERNEL = ("detach", "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view")


def touched(tensor):
    """Bytes of ``tensor``, a broadcast dimension counted once."""
    sizes = [size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride]
    return tensor.element_size() * torch.Size(sizes).numel()


class Traffic(TorchDispatchMode):
    """Adds up the bytes of all operations that are neither views nor products nor fused attention."""

    def __init__(self):
        super().__init__()
        self.num_bytes = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        returns = func._schema.returns
        view = any(r.alias_info is not None and not r.alias_info.is_write for r in returns)
        if view or name in (*_PRODUCTS, *_NO_KERNEL) or "scaled_dot" in name:
            return result
        inputs = [] if name in _NO_READ else [args, kwargs or {}]
        tensors = [leaf for leaf in tree_leaves([inputs, result]) if isinstance(leaf, torch.Tensor)]
        self.num_bytes[name] += sum(map(touched, tensors))
        return result


def of_layers(config, layers):
    key = "n_layer" if config["model_type"] == "gpt2" else "num_hidden_layers"
    return {**config, key: layers}


def counted(config, layers, autocast=False, lora_rank=None):
    words = of_layers(config, layers)
    model = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.for_model(words.pop("model_type"), **words),
        dtype=torch.float32 if autocast else torch.bfloat16,
    )
    if lora_rank:
        peft = pytest.importorskip("peft")
        adapters = peft.LoraConfig(r=lora_rank, target_modules="all-linear")
        model = peft.get_peft_model(model, adapters, autocast_adapter_dtype=False)
    tokens = torch.zeros(SEQUENCES, LENGTH, dtype=torch.long)
    with Traffic() as forward, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss
    with Traffic() as backward:
        loss.backward()
    return forward.num_bytes.total(), backward.num_bytes.total()


@pytest.mark.parametrize("family", CONFIGS)
def test_bytes_of_a_layer(family):
    config = {"model_type": family, **CONFIGS[family]}
    one, two = counted(config, 1), counted(config, 2)
    cost = layer_traffic(read_model(model=of_layers(config, 1)))
    tokens = SEQUENCES * LENGTH
    print(
        family,
        (two[0] - one[0]) / tokens / HIDDEN,
        cost.forward / HIDDEN,
        (two[1] - one[1]) / tokens / HIDDEN,
        cost.backward / HIDDEN,
    )
    assert cost.forward == pytest.approx((two[0] - one[0]) / tokens, rel=0.12)
    assert cost.backward == pytest.approx((two[1] - one[1]) / tokens, rel=0.12)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_bytes_of_a_layer_under_autocast(family):
    """Residuals and norms in fp32; each weight cast in forward, each gradient in backward: 6 bytes an element."""
    config = {"model_type": family, **CONFIGS[family]}
    one, two = counted(config, 1, autocast=True), counted(config, 2, autocast=True)
    model = read_model(model=of_layers(config, 1))
    cost, casts = layer_traffic(model), compute._cast("autocast", compute.projections(model))
    for found, token, cast in zip((0, 1), (cost.forward, cost.backward), casts, strict=True):
        layer = two[found] - one[found]
        assert compute.AUTOCAST_WIDTH * SEQUENCES * LENGTH * token + cast == pytest.approx(layer, rel=0.15)


def test_bytes_of_a_layer_with_adapters():
    """Each adapter scales and adds its output, and in backward sums the gradients of the input it shares."""
    config = {"model_type": "llama", **_LLAMA}
    one, two = (counted(config, layers, lora_rank=8) for layers in (1, 2))
    cost = layer_traffic(read_model(model=of_layers(config, 1), lora_rank=8))
    assert cost.forward == pytest.approx((two[0] - one[0]) / SEQUENCES / LENGTH, rel=0.12)
    assert cost.backward == pytest.approx((two[1] - one[1]) / SEQUENCES / LENGTH, rel=0.12)
