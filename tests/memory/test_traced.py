"""A live module traced on fake tensors: worked out by hand, against the analytic model, and against an H200."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import dsconf
from dsconf.errors import InputError
from dsconf.memory.autograd.figures import Activations, Shape
from dsconf.memory.autograd.tape import Peaks
from dsconf.memory.layers.activations import activations
from dsconf.memory.trace.blocks import repetition
from dsconf.memory.trace.module import TracedModel, read_module
from dsconf.memory.zero.coordinator import Limits, gathered
from dsconf.memory.zero.gradient_order import hooks
from dsconf.memory.zero.module_order import modules
from dsconf.model.attention import sdpa_is_gone
from dsconf.model.read import read_model
from dsconf.model.spec import Model

torch = pytest.importorskip("torch")
nn = torch.nn
MIB = 2**20

# 64 rows of 256 features; a block widens to 1024. In bf16 the sizes are:
ROWS = 64
NARROW, WIDE, WEIGHT = ROWS * 256 * 2, ROWS * 1024 * 2, 256 * 1024 * 2
SCALARS = 2 * 512
"""The loss and its gradient, a block of the allocator each, live until backward is over."""
TOY = Shape(ROWS, 1, 2, False, "sdpa")


class Block(nn.Module):
    def __init__(self, width: int = 1024) -> None:
        super().__init__()
        self.up = nn.Linear(256, width, bias=False)
        self.down = nn.Linear(width, 256, bias=False)

    def forward(self, x: Any) -> Any:
        return self.down(torch.relu(self.up(x)))


class Toy(nn.Module):
    """A stem, blocks of the given widths, and a head of one number for each row."""

    def __init__(self, *widths: int, backwards: bool = False) -> None:
        super().__init__()
        self.stem = nn.Linear(256, 256, bias=False)
        self.blocks = nn.ModuleList([Block(width) for width in widths])
        self.head = nn.Linear(256, 1, bias=False)
        self.backwards = backwards

    def forward(self, x: Any) -> Any:
        x = self.stem(x)
        for block in reversed(self.blocks) if self.backwards else self.blocks:
            x = block(x)
        return self.head(x)


def rows() -> Any:
    return torch.zeros(ROWS, 256)


def traced(module: Any, replay: str = "", batch: Any = None) -> Activations:
    return activations(read_module(module, rows() if batch is None else batch), TOY, replay)


def test_a_toy_by_hand() -> None:
    """A block keeps its input, and ReLU's output once for ReLU and for the second matrix."""
    act = traced(Toy(1024, 1024, 1024))
    assert (act.layers, act.layer, act.bottom, act.head) == (3, NARROW + WIDE, 0, NARROW)
    # Second matrix: all that is kept, the incoming gradient, those of ReLU's output and of the weight.
    down = SCALARS + (NARROW + WIDE) + NARROW + WIDE + WEIGHT
    # First: the input that is kept, the incoming gradient, those of the input and of the weight.
    up = SCALARS + NARROW + WIDE + NARROW + WEIGHT
    assert act.layer_backward == Peaks(down, up + WEIGHT)
    assert act.layer_live == (SCALARS + NARROW + WIDE + WIDE, SCALARS + NARROW)
    # Forward: the first matrix's output beside ReLU's, with the block's input kept; the loss adds nothing to the head.
    assert act.layer_forward == NARROW + 2 * WIDE


def test_a_checkpointed_toy_by_hand() -> None:
    act = traced(Toy(1024, 1024, 1024), "nonreentrant")
    assert (act.layer, act.bottom, act.head) == (NARROW, 0, NARROW)
    whole = traced(Toy(1024, 1024, 1024))
    assert act.layer_backward.grads_freed == whole.layer_backward.grads_freed
    # The re-entrant kind holds the second output too, until the block's backward is over.
    assert traced(Toy(1024, 1024, 1024), "reentrant").layer == NARROW


def test_gradients_arrive_from_the_end() -> None:
    known = hooks(read_module(Toy(1024, 1024), rows()))
    stem, block = 256 * 256, 2 * 256 * 1024
    assert [(hook.numel, hook.offset, hook.layer) for hook in known.order] == [
        (256, stem + 2 * block, 2),
        (block // 2, stem + block + block // 2, 1),
        (block // 2, stem + block, 1),
        (block // 2, stem + block // 2, 0),
        (block // 2, stem, 0),
        (stem, 0, -1),
    ]
    assert (known.total, known.layer, known.head, known.embedding) == (stem + 2 * block + 256, block, 256, stem)


def test_modules_are_entered_and_left_as_forward_does() -> None:
    model = read_module(Toy(1024, 1024, 1024), rows())
    found = modules(model, 2)
    assert [(call.enter, call.params) for call in found.before] == [(True, ()), (True, (0,)), (False, (0,))]
    assert [(call.enter, call.params) for call in found.layers[1]] == [
        (True, ()),
        *((True, (3,)), (False, (3,))),
        *((True, (4,)), (False, (4,))),
        (False, ()),
    ]
    assert [(call.enter, call.params) for call in found.after] == [(True, (5,)), (False, (5,)), (False, ())]
    assert found.sizes == (256 * 256, *[256 * 1024] * 4, 256)


@pytest.mark.parametrize(
    ("widths", "members", "layers"),
    [
        ((1024, 512), ("blocks.0", "blocks.1"), 1),
        ((1024, 512, 1024, 512), ("blocks.0", "blocks.1", "blocks.2", "blocks.3"), 2),
        ((512, 1024, 1024, 1024), ("blocks.1", "blocks.2", "blocks.3"), 3),
        ((1024,), ("blocks.0",), 1),
    ],
    ids=["unlike", "alternating", "odd first", "only one"],
)
def test_unlike_blocks(widths: tuple[int, ...], members: tuple[str, ...], layers: int) -> None:
    """However they are grouped, nothing is kept twice or lost."""
    model = read_module(Toy(*widths), rows())
    assert (model.source.split.members, model.layers) == (members, layers)
    act = activations(model, TOY, "")
    assert act.kept == sum(NARROW + ROWS * width * 2 for width in widths)
    assert model.num_params == 256 * 256 + sum(512 * width for width in widths) + 256
    assert hooks(model).total == model.num_params
    checkpointed = activations(model, TOY, "nonreentrant")
    assert checkpointed.kept == len(widths) * NARROW


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [("aaaa", (0, 1, 4)), ("abab", (0, 2, 2)), ("baaa", (1, 1, 3)), ("aaab", (0, 1, 3)), ("abc", (0, 3, 1))],
)
def test_repetition(pattern: str, expected: tuple[int, int, int]) -> None:
    assert repetition(pattern) == expected


def test_blocks_in_another_order_are_one_block() -> None:
    model = read_module(Toy(1024, 1024, backwards=True), rows())
    assert (model.source.split.members, model.layers) == (("",), 1)
    assert model.parameters.before == model.parameters.after == ()
    act = activations(model, TOY, "")
    assert act.kept + act.head == 2 * (NARROW + WIDE) + NARROW
    assert hooks(model).total == model.num_params


def test_a_module_without_a_list_is_one_block() -> None:
    model = read_module(Block(), rows())
    assert model.layers == 1
    # The batch is not counted: it is there before the step.
    assert activations(model, TOY, "").kept == WIDE


def test_a_frozen_parameter_gets_no_gradient_and_keeps_no_input() -> None:
    toy = Toy(1024, 1024)
    for block in toy.blocks:
        block.down.weight.requires_grad_(False)
    model = read_module(toy, rows())
    assert len(hooks(model).order) == 4
    assert model.parameters.trainable() == model.num_params - 2 * 256 * 1024
    assert activations(model, TOY, "").layer == NARROW + WIDE  # ReLU still needs its output


def test_the_module_stays_as_it_is() -> None:
    toy = Toy(1024, 1024).eval()
    functional = nn.functional.scaled_dot_product_attention
    before = {name: param.clone() for name, param in toy.named_parameters()}
    dsconf.estimate(module=toy, batch=rows(), gpus=2, stage=2, activation_checkpointing=True)
    assert not toy.training
    assert not toy.blocks[0]._forward_hooks
    assert "forward" not in vars(toy.blocks[0])
    assert nn.functional.scaled_dot_product_attention is functional
    for name, param in toy.named_parameters():
        assert param.grad is None
        assert type(param) is nn.Parameter
        assert torch.equal(param, before[name])


def test_the_device_does_not_matter() -> None:
    with torch.device("meta"):
        toy = Toy(1024, 1024)
    assert traced(toy, batch=torch.zeros(ROWS, 256, device="meta")) == traced(Toy(1024, 1024))


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_an_estimate_of_a_toy(stage: int) -> None:
    found = dsconf.estimate(module=Toy(1024, 1024, 1024), batch=rows(), gpus=8, stage=stage)
    assert found.peak_bytes == sum(term.num_bytes for term in found.peak.terms) > 0
    assert found.init_peak_bytes > 0
    wider = torch.zeros(2 * ROWS, 256)
    assert (
        dsconf.estimate(module=Toy(1024, 1024, 1024), batch=wider, gpus=8, stage=stage).peak_bytes >= found.peak_bytes
    )


class Convolutional(nn.Module):
    """No transformer: convolutions, two kinds of norm, a loss of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.GroupNorm(8, 64))
        self.head = nn.Linear(64, 10)

    def forward(self, x: Any, y: Any) -> Any:
        return {"loss": nn.functional.cross_entropy(self.head(self.body(x).mean((2, 3))), y)}


def test_named_arguments_and_a_loss_in_a_mapping() -> None:
    batch = {"x": torch.zeros(4, 3, 32, 32), "y": torch.zeros(4, dtype=torch.int64)}
    model = read_module(Convolutional(), batch)
    image = 4 * 64 * 32 * 32 * 2
    # Kept: the convolution's output by BatchNorm, and ReLU's, once, by ReLU and GroupNorm; statistics are small.
    kept = activations(model, Shape(4, 1, 2, False, "sdpa"), "").kept
    assert 2 * image <= kept < 2 * image + 8192
    assert dsconf.estimate(module=Convolutional(), batch=batch, gpus=2, stage=2).peak_bytes > 0


def test_attention_inside_torchs_own_layer_takes_the_kernel_of_cuda() -> None:
    """nn.TransformerEncoderLayer reaches attention through torch.nn.functional itself; no scores may be kept."""
    layer = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, batch_first=True)
    model = read_module(nn.TransformerEncoder(layer, 3), torch.zeros(2, 512, 64))
    act = activations(model, Shape(2, 512, 2, False, "sdpa"), "")
    scores, hidden = 2 * 4 * 512 * 512 * 2, 2 * 512 * 64 * 2
    assert model.layers == 3
    # Input, q, k and v in one, attention's output, two norms' inputs and the first one's output, ReLU's output.
    assert act.layer < 12 * hidden < scores


def _chooses(x: Any) -> Any:
    return x * 2 if x.sum() > 0 else x


class Choosing(nn.Linear):
    def forward(self, x: Any) -> Any:
        return super().forward(_chooses(x))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"module": 3}, "module: is of type int, not a torch.nn.Module"),
        ({"module": nn.ReLU(), "batch": torch.zeros(3)}, "ReLU has no parameter that requires a gradient"),
        ({"module": Toy(8)}, "batch: give the arguments of Toy's forward"),
        ({"module": Toy(8), "batch": 3}, "batch: holds no tensor"),
        ({"module": Toy(8), "batch": torch.zeros(2, 3)}, "Toy cannot be traced on this batch: RuntimeError"),
        ({"module": Toy(8), "batch": {"z": torch.zeros(2, 256)}}, "cannot be traced on this batch: TypeError"),
        ({"module": Choosing(4, 4), "batch": torch.zeros(2, 4)}, "depends on a tensor's values"),
        ({"module": Toy(8), "batch": torch.zeros(2, 256), "micro_batch_size": 3}, "3, but batch holds 2"),
        ({"module": Toy(8), "batch": torch.zeros(2, 256), "params": "7B"}, "module: it is the model"),
        ({"module": Toy(8), "batch": torch.zeros(2, 256), "seq_len": 0}, "--seq-len: 0"),
    ],
)
def test_a_mistake_is_one_line(words: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        dsconf.estimate(gpus=8, stage=2, **words)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


SMALL = {"hidden_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 1024}
LLAMA = SMALL | {"intermediate_size": 512, "max_position_embeddings": 512}
GROUPED = LLAMA | {"num_key_value_heads": 2, "head_dim": 64}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": GROUPED,
    "qwen3": GROUPED,
    "gemma2": GROUPED | {"sliding_window": 4096, "query_pre_attn_scalar": 64},
    "olmo2": LLAMA,
    "gpt2": {"n_embd": 256, "n_layer": 3, "n_head": 4, "n_positions": 512, "vocab_size": 1024},
    "opt": SMALL | {"ffn_dim": 1024, "word_embed_proj_dim": 256, "max_position_embeddings": 512},
    "gpt_neox": SMALL | {"intermediate_size": 1024, "max_position_embeddings": 512},
    "phi": LLAMA,
    "bloom": {"hidden_size": 256, "n_layer": 3, "n_head": 4, "vocab_size": 1024},
}
CASES = [
    (family, attention)
    for family in FAMILIES
    for attention in ("sdpa", "eager")
    if (family, attention) != ("bloom", "sdpa")  # transformers has only the eager one
]


IDS = 4 * 2 * 256 * 8
"""Token ids, positions and two masks of them as integers, which the analytic model leaves out."""


def hugging_face(config: dict[str, Any], attention: str, dtype: str = "bf16") -> Any:
    """The module of a config, without weights; skips the test where this transformers has no SDPA for the family."""
    transformers = pytest.importorskip("transformers")
    if attention == "sdpa" and sdpa_is_gone(config["model_type"], transformers.__version__):
        pytest.skip(f"transformers {transformers.__version__} has no SDPA for {config['model_type']}")
    transformers.logging.set_verbosity_error()
    shape = {key: value for key, value in config.items() if key != "model_type"} | {"pad_token_id": None}
    made = transformers.AutoConfig.for_model(config["model_type"], **shape)
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(
            made, attn_implementation=attention, dtype={"bf16": torch.bfloat16, "fp32": torch.float32}[dtype]
        )


@cache
def both(family: str, attention: str) -> tuple[TracedModel, Model, Shape]:
    config = FAMILIES[family] | {"model_type": family}
    shape = Shape(2, 256, 2, False, attention)
    module = hugging_face(config, attention)
    return read_module(module, micro_batch_size=2, seq_len=256), read_model(model=config), shape


NEWEST = (("llama", "sdpa"), ("gemma2", "eager"))
AGREEING = [
    pytest.param(*case, replay, marks=[pytest.mark.newest] if case in NEWEST else [])
    for case in CASES
    for replay in ("", "nonreentrant", "reentrant")
]


@pytest.mark.parametrize(("family", "attention", "replay"), AGREEING)
def test_traced_and_analytic_activations_agree(family: str, attention: str, replay: str) -> None:
    """What is kept to 1 %, the heights of backward to 3 %.

    Re-entrant checkpointing holds a block's incoming gradient to its end, a fortieth of layers as narrow as these.
    """
    live, analytic, shape = both(family, attention)
    found, expected = activations(live, shape, replay), activations(analytic, shape, replay)
    assert found.layers == expected.layers == 3
    assert found.layer == pytest.approx(expected.layer, rel=0.01)
    assert found.head == pytest.approx(expected.head, rel=0.01)
    assert found.kept == pytest.approx(expected.kept, rel=0.01, abs=IDS)
    assert found.tied == expected.tied
    for traced_heights, heights in (
        (found.layer_backward, expected.layer_backward),
        (found.head_backward, expected.head_backward),
    ):
        allowed = 0.04 if replay == "reentrant" else 0.03
        assert tuple(traced_heights) == pytest.approx(tuple(heights), rel=allowed)


@pytest.mark.parametrize("family", ["llama", "qwen3", "opt", "gpt_neox", "phi", "olmo2", "gemma2", "gpt2"])
def test_under_autocast_the_same_is_kept(family: str) -> None:
    """fp32 weights: matrix products and attention keep 16-bit copies, norms and residuals stay in fp32."""
    live, analytic, _ = both(family, "sdpa")
    shape = Shape(2, 256, 4, False, "sdpa", True)
    found, expected = activations(live, shape, ""), activations(analytic, shape, "")
    assert (found.layer, found.head) == pytest.approx((expected.layer, expected.head), rel=0.01)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_parameters_and_gradients(family: str) -> None:
    live, analytic, _ = both(family, "eager")
    assert live.num_params == analytic.num_params
    found, expected = hooks(live), hooks(analytic)
    assert found._replace(order=()) == expected._replace(order=())
    assert {hook[:3] for hook in found.order} == {hook[:3] for hook in expected.order}


@pytest.mark.newest
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_estimates_of_module_and_config_agree(stage: int) -> None:
    config = {"model_type": "llama", **GROUPED}
    words: dict[str, Any] = {"gpus": 4, "stage": stage, "micro_batch_size": 2, "seq_len": 256}
    found = dsconf.estimate(module=hugging_face(config, "sdpa"), **words)
    expected = dsconf.estimate(model=config, **words)
    assert found.peak.name == expected.peak.name
    assert found.peak_bytes == pytest.approx(expected.peak_bytes, rel=0.001)
    assert (found.init_peak_bytes, found.host_bytes_per_node) == (
        expected.init_peak_bytes,
        expected.host_bytes_per_node,
    )


def test_stage_3_gathers_the_same_weights() -> None:
    live, analytic, _ = both("llama", "sdpa")
    limits = Limits(300_000, 800_000, 0, 1000, 2**40, False)
    assert gathered(live, limits, "", False) == gathered(analytic, limits, "", False)


@pytest.mark.newest
def test_a_padding_mask_counts_only_where_it_hides_something() -> None:
    """Without padding FlashAttention needs no mask; with padding each layer keeps one."""
    module = hugging_face({"model_type": "llama", **GROUPED}, "sdpa")
    ids = torch.zeros(2, 256, dtype=torch.int64)
    full, shape = torch.ones(2, 256, dtype=torch.int64), Shape(2, 256, 2, False, "sdpa")
    padded = full.clone()
    padded[1, 200:] = 0

    def kept(mask: Any) -> int:
        model = read_module(module, {"input_ids": ids, "labels": ids, "attention_mask": mask})
        return activations(model, shape, "").layer

    assert kept(full) == activations(read_module(module, micro_batch_size=2, seq_len=256), shape, "").layer
    assert kept(padded) - kept(full) >= 2 * 256 * 256 * 2


FILE = Path(__file__).parents[1] / "measured" / "h200-activations.jsonl"
MEASURED = [json.loads(line) for line in FILE.read_text(encoding="utf-8").splitlines()]
# torch's shape rules for grouped matrix products refuse fp32, which its CUDA kernels take.
UNTRACED = {("mixtral", "fp32"), ("qwen3_moe", "fp32")}
CHOSEN = [
    row
    for row in MEASURED
    if (row["model"]["num_hidden_layers"] if "num_hidden_layers" in row["model"] else row["model"]["n_layer"]) == 3
    or row["dtype"] == "fp32"
    if (row["model"]["model_type"], row["dtype"]) not in UNTRACED
]


def _named(row: dict[str, Any]) -> str:
    kind = ("reentrant" if row["reentrant"] else "nonreentrant") if row["checkpointing"] else "kept"
    return f"{row['model']['model_type']}-{row['attention']}-{row['dtype']}-{kind}"


@cache
def measured_model(config: str, attention: str, dtype: str, batch: int, seq_len: int) -> TracedModel:
    """Once for rows that differ in checkpointing alone."""
    module = hugging_face(json.loads(config), attention, dtype)
    return read_module(module, micro_batch_size=batch, seq_len=seq_len, precision=dtype)


@pytest.mark.parametrize("row", CHOSEN, ids=_named)
def test_a_trace_is_what_an_h200_measured(row: dict[str, Any]) -> None:
    """Never more than measured, and less only by what torch's allocator hands out with a block (1 MiB at most each)."""
    shape = Shape(row["batch"], row["seq_len"], 4 if row["dtype"] == "fp32" else 2, False, row["attention"])
    size = (row["batch"], row["seq_len"])
    model = measured_model(json.dumps(row["model"]), row["attention"], row["dtype"], *size)
    replay = ("reentrant" if row["reentrant"] else "nonreentrant") if row["checkpointing"] else ""
    act = activations(model, shape, replay)
    below = act.bottom + (act.layers - 1) * act.layer
    kept = act.kept + act.head
    peak = max(act.kept + act.head_backward.grads_freed, below + act.tied + act.layer_backward.grads_freed)
    for found, measured in ((kept, row["forward_end"]), (peak, row["backward_peak"])):
        assert -0.0005 * measured <= measured - found <= max(0.03 * measured, 6.5 * MIB)
