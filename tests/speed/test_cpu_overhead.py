"""What the CPU needs for steps too small to keep the GPU busy, against such steps measured on an H200."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.speed import launches as bench
from dsconf.model.read import read_model
from dsconf.model.spec import Param
from dsconf.speed import rates
from dsconf.speed.compute import micro_batch
from dsconf.speed.cpu_overhead import ModuleCounts, engine, gathered, launches, modules
from dsconf.speed.elementwise import Traffic

job = bench.job_of
ROWS = [json.loads(line) for line in (Path(__file__).parents[1] / "measured/h200-launches.jsonl").open()]
LAUNCHED = [row for row in ROWS if row["offload"] == "none"]
"""Those in which the CPU launches kernels and no more."""


def predicted(row: dict[str, Any]) -> dict[str, float]:
    found: dict[str, float] = bench.seconds_of(job(row))
    return found


def test_the_figures_are_those_that_fit_the_rows() -> None:
    fitted = bench.fit(LAUNCHED)
    for label, (name, stage) in bench.FITTED.items():
        value = getattr(rates, name)
        assert fitted[label] == pytest.approx(value if stage is None else value[stage], rel=0.025), label


@pytest.mark.parametrize("phase", ["forward_ms", "backward_ms", "step_ms"])
def test_the_phases_of_small_steps_are_within_a_fifth(phase: str) -> None:
    """In the median; the same forward took 13 to 25 ms in three runs."""
    # The wide model's optimizer step is not Python's but 1.3 billion parameters on the GPU.
    rows = [row for row in LAUNCHED if phase != "step_ms" or "wider: wide" not in row["name"]]
    assert len(rows) >= 64
    errors = [predicted(row)[phase] / row["measured"][phase] - 1 for row in rows]
    assert statistics.median(map(abs, errors)) < 0.2
    assert max(map(abs, errors)) < 0.65
    assert abs(statistics.median(errors)) < 0.1


def test_what_differs_between_settings_is_measured_too() -> None:
    """Checkpointing's hooks, stage 3's fetches and what it gathers again: the sum of a step on the host of 64 cores."""

    def step(how: str, seconds: Callable[[dict[str, Any]], dict[str, float]]) -> float:
        rows = [row for row in LAUNCHED if row["name"] in (f"wider: small {how}", f"wider: neox {how}")]
        return sum(sum(seconds(row).values()) for row in rows)

    def measured(row: dict[str, Any]) -> dict[str, float]:
        found: dict[str, float] = row["measured"]
        return found

    pairs = (("z0 ckpt", "z0"), ("z3", "z2"), ("z3 ckpt", "z3"), ("z3 lora", "z0 lora"))
    for more, less in pairs:
        grown = step(more, measured) - step(less, measured)
        assert 0.5 < (step(more, predicted) - step(less, predicted)) / grown < 1.5, (more, less)


def test_modules_are_told_from_the_names_of_parameters() -> None:
    layer = (Param("attn.q.weight", (4, 4)), Param("attn.q.bias", (4,)), Param("norm.weight", (4,), trainable=False))
    assert modules(layer) == ModuleCounts(called=2 + 4, owners=2, trained=2)
    adapted = tuple(Param(f"up.{name}.weight", (4, 4)) for name in ("base_layer", "lora_A.default", "lora_B.default"))
    assert modules(adapted) == ModuleCounts(called=3 + 4 + 2, owners=3, trained=3)


def test_called_modules_are_nearly_those_a_real_model_has() -> None:
    for row in ROWS:
        if "modules" in row and not row["lora_rank"]:  # of peft's modules most are containers that nobody calls
            params = read_model(model=row["model"]).parameters
            called = params.layers * modules(params.layer).called + modules((*params.before, *params.after)).called
            assert called == pytest.approx(row["modules"], rel=0.25)


def test_launches_by_hand() -> None:
    cost, found = Traffic(0, 0, 10, 20), ModuleCounts(called=5, owners=3, trained=2)
    forward, backward = launches(cost, 4, found, "bf16", compiled=False)
    assert forward == pytest.approx(14 * rates.OPERATION_SECONDS + 5 * rates.MODULE_SECONDS)
    assert backward == pytest.approx(28 * rates.BACKWARD_OPERATION_SECONDS + 2 * rates.GRADIENT_SECONDS)
    cast = launches(cost, 4, found, "autocast", compiled=False)
    assert cast[0] - forward == pytest.approx(12 * rates.OPERATION_SECONDS)
    assert launches(cost, 4, found, "bf16", compiled=True)[0] == pytest.approx(14 * rates.COMPILED_OPERATION_SECONDS)


def test_only_stage_3_fetches_and_only_deepspeed_hooks() -> None:
    row = next(row for row in ROWS if row["how"] == "z3" and not row["lora_rank"])
    layers, tensors = row["model"]["num_hidden_layers"], row["trained_tensors"]
    third = engine(job(row))
    owners = layers * 9 + 3  # seven projections and two norms; embedding, final norm, output projection
    large = layers * 7 + 2  # norms of 512 elements stay gathered
    fetched, gathered = owners * rates.FETCH_SECONDS, large * rates.GATHER_SECONDS
    assert third.forward == pytest.approx(fetched + gathered)
    # 46 million parameters are within the reuse distance: backward finds them gathered.
    assert third.backward == pytest.approx(fetched + tensors * rates.HOOK_SECONDS)
    assert engine(job(row | {"how": "z1"})).forward == 0
    assert engine(job(row | {"how": "plain"})).backward == 0
    assert engine(job(row | {"gradient_checkpointing": True})).recompute == pytest.approx(
        9 * layers * rates.FETCH_SECONDS
    )


def test_what_is_released_is_gathered_again_and_small_tensors_never() -> None:
    row = next(row for row in ROWS if row["name"] == "wider: small z3 reuse0")
    assert gathered(job(row)) == 16 * 7 + 2
    kept = next(row for row in ROWS if row["name"] == "wider: small z3")
    again = engine(job(row)).backward - engine(job(kept)).backward
    assert again == pytest.approx(114 * rates.GATHER_SECONDS)
    all_stay = next(row for row in ROWS if row["name"] == "wider: small z3 persist all")
    assert gathered(job(all_stay)) == 0


def test_checkpointing_hooks_every_tensor_that_an_operation_saves() -> None:
    """39 operations of a llama layer: once in forward, once when it is computed again, once in its backward."""
    plain = next(row for row in ROWS if row["name"] == "wider: small z0")
    hooked = next(row for row in ROWS if row["name"] == "wider: small z0 ckpt")
    before, after = micro_batch(job(plain)), micro_batch(job(hooked))
    once = 16 * 39 * rates.SAVED_SECONDS
    assert after.layers.launch - before.layers.launch == pytest.approx(once)
    assert after.recompute.launch == pytest.approx(before.layers.launch + 2 * once)
    assert before.recompute.launch == 0
    compiled = micro_batch(job(hooked), "compiled")
    assert compiled.recompute.launch == compiled.layers.launch
