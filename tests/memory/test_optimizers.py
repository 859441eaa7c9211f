"""What optimizers keep and make in their step, against torch's own and against real DeepSpeed steps."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from small_models import job, start_of, timeline, tiny

import dsconf
from dsconf.config.resolve import resolve
from dsconf.config.settings import Settings
from dsconf.memory.timeline.common import COUNTING, frame_of
from dsconf.memory.timeline.resident import resident
from dsconf.memory.zero import muon
from dsconf.memory.zero.optimizer_states import optimizer_temporaries, states_per_element, whole_states
from dsconf.memory.zero.wrapper import wrapper
from dsconf.model.read import read_model

ROWS, COLUMNS = 64, 128
TORCH: list[tuple[str, dict[str, Any]]] = [
    ("Adam", {}),
    ("Adam", {"amsgrad": True}),
    ("Adam", {"foreach": False}),
    ("AdamW", {}),
    ("SGD", {}),
    ("SGD", {"momentum": 0.9}),
    ("SGD", {"momentum": 0.9, "weight_decay": 0.1}),
    ("Adagrad", {}),
    ("Adagrad", {"foreach": False}),
    ("Adadelta", {}),
    ("Adadelta", {"weight_decay": 0.1}),
    ("Adafactor", {}),
    ("Adamax", {}),
    ("ASGD", {}),
    ("NAdam", {}),
    ("NAdam", {"weight_decay": 0.1}),
    ("RAdam", {}),
    ("RMSprop", {}),
    ("RMSprop", {"momentum": 0.9, "centered": True, "weight_decay": 0.1}),
    ("Rprop", {}),
]


def config(name: str, more: dict[str, Any]) -> dict[str, Any]:
    """An optimizer block; Adam as torch's."""
    torch_adam = {"torch_adam": True} if name in ("Adam", "AdamW") else {}
    return {"optimizer": {"type": name, "params": {"lr": 1e-5} | torch_adam | more}}


@pytest.mark.parametrize(("name", "more"), TORCH, ids=str)
def test_torch_keeps_and_makes_the_same(name: str, more: dict[str, Any]) -> None:
    """One flat fp32 tensor, as ZeRO's slice is one: states after its third step, and what the step made and dropped."""
    torch = pytest.importorskip("torch")
    from dsconf.live.rank.tracker import LiveTensors

    settings, numel = resolve(config(name, more)), 64 * 1024
    tracker = LiveTensors()
    with tracker:
        slice_ = torch.nn.Parameter(torch.zeros(numel))
        optimizer = getattr(torch.optim, name)([slice_], lr=1e-5, **{"foreach": True} | more)
        made_at_start = tracker.now - 4 * numel
        for _ in range(3):
            slice_.grad = torch.ones(numel)
            tracker.reset_peak()
            optimizer.step()
    after = tracker.now - 8 * numel
    scalars = 64
    assert after == pytest.approx(4 * states_per_element(settings).states * numel, abs=scalars)
    assert tracker.peak - tracker.now == pytest.approx(optimizer_temporaries(COUNTING, settings, 4, numel), abs=scalars)
    assert states_per_element(settings).at_start == (made_at_start > scalars)


def test_fused_optimizers_make_nothing() -> None:
    for name, more in (("AdamW", {"fused": True}), ("SGD", {"fused": True, "weight_decay": 0.1}), ("Lion", {})):
        assert optimizer_temporaries(COUNTING, resolve(config(name, more)), 4, 100) == 0
    assert optimizer_temporaries(COUNTING, resolve({"optimizer": {"type": "AdamW"}}), 4, 100) == 0


def test_adafactor_keeps_rows_and_columns() -> None:
    """A llama of one layer and 4 hidden: embedding and head 10 + 4, q to o 4 + 4, three of 4 + 6, three norms of 4."""
    model = tiny(layers=1)
    assert whole_states(Settings(optimizer="adafactor"), model, 0) == 2 * 14 + 4 * 8 + 3 * 10 + 3 * 4


def test_torch_s_fused_adam_gets_the_unfused_wrapper() -> None:
    """Only DeepSpeed's FusedAdam is flattened at stage 0 (engine.py:2555-2609)."""
    half = {"bf16": {"enabled": True}}
    assert wrapper(resolve(half | {"optimizer": {"type": "AdamW"}})) == "fp16"
    for name, more in (("AdamW", {}), ("AdamW", {"fused": True}), ("SGD", {}), ("Lion", {}), ("Lamb", {})):
        assert wrapper(resolve(half | config(name, more))) == "unfused"
    assert wrapper(resolve(config("AdamW", {}))) == "none"
    assert wrapper(resolve(half, target="hf")) == "unfused"


UNFUSED = {
    "model_type": "llama",
    "hidden_size": 512,
    "intermediate_size": 512,
    "num_attention_heads": 8,
    "num_hidden_layers": 32,
    "vocab_size": 128,
}


@pytest.mark.parametrize(
    ("name", "rest", "step", "start"),
    [
        ("AdamW", 14, 24, 24),
        ("SGD", 6, 12, 12),
        ("Lion", 10, 16, 16),
        ("Lamb", 14, 24, 20),
        ("Adagrad", 12, 26, 26),
        ("RMSprop", 10, 20, 20),
        ("Adadelta", 14, 28, 28),
    ],
)
def test_bytes_a_parameter_without_fusion(name: str, rest: int, step: int, start: int) -> None:
    """2 of parameters, 4 of master, states; in the step 2 and 4 of gradients and lists of 4; Lamb flattens twice.

    Measured with DeepSpeed on the CPU, to 0.001; kernels of Lamb and Lion stood in for.
    """
    model = read_model(model=UNFUSED)
    one = replace(job(model, 2), settings=resolve({"bf16": {"enabled": True}} | config(name, {})))
    stays, moments = timeline(one, 0)
    always = sum(size for key, size in stays.items() if key != "cuBLAS workspaces")
    highest = always + max(m.num_bytes for m in moments if m.phase == "step")
    found = [size / model.num_params for size in (always, highest, start_of(one))]
    assert found == pytest.approx([rest, step, start], abs=0.01)


def test_muon_trains_matrices_outside_embeddings() -> None:
    """By shape, largest first: up, gate and down before q, k, v, o; embedding, head and norms are Adam's."""
    matrices, rest = muon.param_groups(tiny(layers=2))
    assert (matrices.muon, rest.muon) == (True, False)
    assert matrices.numels == (24,) * 6 + (16,) * 8
    assert rest.total == tiny(layers=2).num_params - matrices.total
    first, second = muon.owned_slices(tiny(layers=2), "muon", 2, 0)
    assert (first.slice.elements, second.slice.elements) == (136, 50)
    assert first.slice.whole == 24 * 6  # 136 of 272 end in the sixth matrix


def test_muon_at_stage_3_by_hand() -> None:
    """One matrix at a time: its gradient, buffers of 1 1/2 of it; then its momentum, half of it cloned."""
    model = tiny(layers=1)
    found = muon.gathers(model, 2, 10**9, 1, 2)
    # Buffers for matrices of 24 and of 16 stay: (12 + 24) + (8 + 16). A single matrix makes no full round of two
    # ranks, so gradients and momenta are gathered padded: 2 x (1 + 2) x 24 beside 24 + 12 + 24.
    assert (found.kept, found.most) == (60, 24 + 12 + 24 + 6 * 24 - 60 + 60)


SMALL = {
    "model_type": "llama",
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_attention_heads": 4,
    "num_hidden_layers": 4,
    "vocab_size": 256,
    "max_position_embeddings": 64,
}
NOTHING_KEPT = {f"stage3_{name}": 0 for name in ("param_persistence_threshold", "max_reuse_distance")}


def ds_config(name: str, stage: int, **zero: Any) -> dict[str, Any]:
    """A config for two ranks whose buckets are too small to count."""
    more = NOTHING_KEPT | {"stage3_prefetch_bucket_size": 0} if stage == 3 else {}
    block = {"stage": stage, "reduce_bucket_size": 1000} | more | zero
    batch = {"train_micro_batch_size_per_gpu": 1, "zero_allow_untested_optimizer": True}
    return batch | {"bf16": {"enabled": True}, "zero_optimization": block} | config(name, {})


RUNS = [
    ds_config("Adagrad", 0),
    ds_config("Adagrad", 2),
    ds_config("RMSprop", 2),
    ds_config("AdamW", 3, sub_group_size=200_000),
]


@pytest.fixture(scope="module")
def by_deepspeed() -> list[dict[str, int]]:
    """What DeepSpeed holds with each of RUNS."""
    pytest.importorskip("deepspeed")
    pytest.importorskip("transformers")
    command = [sys.executable, str(Path(__file__).with_name("states_by_deepspeed.py"))]
    command.append(json.dumps([(SMALL, run) for run in RUNS]))
    root = str(Path(dsconf.__file__).parent.parent)
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "DS_ACCELERATOR": "cpu",
        "PYTHONPATH": root,
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    found: list[dict[str, int]] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.launch
@pytest.mark.parametrize("number", range(len(RUNS)))
def test_deepspeed_holds_the_same(number: int, by_deepspeed: list[dict[str, int]]) -> None:
    """To 0.3 %: blocks are 512 bytes at least, and torch's scalars and the loss are left out."""
    one = replace(job(read_model(model=SMALL), 2, zero_init=False), settings=resolve(RUNS[number], 2))
    stays, moments = timeline(one, 0)
    rest = sum(size for _, size in resident(frame_of(one), 0).terms)
    left_out = sum(size for name, size in stays.items() if name == "cuBLAS workspaces")
    step = sum(stays.values()) - left_out + max(m.num_bytes for m in moments if m.phase == "step")
    found = by_deepspeed[number]
    assert (rest, step) == pytest.approx((found["rest"], found["step"]), rel=0.003)
