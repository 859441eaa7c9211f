"""Which attention kernel a launched model runs, by what its release of transformers has for the family."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from live_fakes import CPU, TINY, FakeRunner

from dsconf.live.check import check
from dsconf.live.processes.launcher import Outcome
from dsconf.live.processes.order import Order, Probe
from dsconf.live.result import CheckResult
from dsconf.model.attention import SDPA_UNTIL, runs_eager, sdpa_is_gone
from dsconf.model.families import FAMILIES

GEMMA2 = TINY | {
    "model_type": "gemma2",
    "head_dim": 16,
    "sliding_window": 128,
    "query_pre_attn_scalar": 16,
}
CONFIG: dict[str, Any] = {
    "train_micro_batch_size_per_gpu": 2,
    "bf16": {"enabled": True},
    "zero_optimization": {"stage": 2, "reduce_bucket_size": 20_000, "allgather_bucket_size": 20_000},
    "optimizer": {"type": "AdamW", "params": {"lr": 1e-4, "torch_adam": True}},
}
NO_SDPA = "transformers {} has no SDPA for gemma2: eager attention stands in for it"


class Fallen(FakeRunner):
    """Ranks that say which kernel they ran."""

    def __init__(self, probe: Probe, attention: str) -> None:
        super().__init__(probe)
        self.attention = attention

    def run(self, decide: Callable[[Probe], Order], progress: Callable[[str], None], timeout: float) -> Outcome:
        outcome = super().run(decide, progress, timeout)
        for rank in outcome.events:
            rank.append({"event": "built", "time": 0.0, "attention": self.attention})
        return outcome


def with_release(release: str) -> Probe:
    return CPU._replace(versions={"transformers": release})


def ask(runner: FakeRunner | None, **words: Any) -> CheckResult:
    return check(CONFIG, **{"model": GEMMA2, "gpus": 2, "seq_len": 128, "runner": runner} | words)


@pytest.mark.parametrize(
    ("release", "asked", "attention"),
    [
        ("5.17.0", "sdpa", "sdpa"),
        ("5.20.2", "sdpa", "sdpa"),
        ("5.21.0", "sdpa", "eager"),
        ("5.24.0", "sdpa", "eager"),
        ("6.0.0.dev0", "sdpa", "eager"),
        ("5.24.0", "eager", "eager"),
    ],
)
def test_what_gemma2_is_asked_for_depends_on_the_release(release: str, asked: str, attention: str) -> None:
    runner = FakeRunner(with_release(release))
    result = ask(runner, attention=asked)
    assert runner.order is not None
    assert runner.order.workload.attention == attention
    assert (NO_SDPA.format(release) in result.notes) == (asked != attention)
    assert result.predicted == ask(FakeRunner(with_release("5.17.0")), attention=attention).predicted


def test_scores_made_one_by_one_take_more() -> None:
    """4 heads of 128 × 128 scores for each of 2 sequences: some 1 MiB of the two layers together."""
    sdpa, eager = (ask(FakeRunner(with_release(release))).predicted.peak_bytes for release in ("5.20.0", "5.21.0"))
    assert sdpa is not None
    assert eager is not None
    assert eager - sdpa > 2 * 2 * 4 * 128 * 128 * 4


def test_what_the_ranks_fell_back_to_is_predicted() -> None:
    """A release that refuses what is believed of it."""
    fallen = ask(Fallen(with_release("5.17.0"), "eager"))
    assert fallen.order is not None
    assert fallen.order.workload.attention == "eager"
    assert NO_SDPA.format("5.17.0") in fallen.notes
    assert fallen.predicted == ask(FakeRunner(), attention="eager").predicted
    as_planned = ask(Fallen(with_release("5.17.0"), "sdpa"))
    assert as_planned.predicted == ask(FakeRunner()).predicted
    assert NO_SDPA.format("5.17.0") not in as_planned.notes


def test_a_rank_falls_back_from_sdpa_alone() -> None:
    pytest.importorskip("torch")
    from dsconf.live.rank.build import _kernel

    def refusing(*refused: str) -> Callable[[str], Any]:
        def model(attention: str) -> None:
            if attention in refused:
                raise ValueError(f"no {attention}")

        return model

    assert _kernel("sdpa", refusing()) == "sdpa"
    assert _kernel("sdpa", refusing("sdpa")) == "eager"
    with pytest.raises(ValueError, match="no eager"):
        _kernel("sdpa", refusing("sdpa", "eager"))
    with pytest.raises(ValueError, match="no flash"):
        _kernel("flash", refusing("flash"))


@pytest.mark.newest
def test_no_family_is_asked_for_sdpa_that_refuses_it() -> None:
    transformers = pytest.importorskip("transformers")
    release = transformers.__version__
    for family in FAMILIES:
        config = transformers.AutoConfig.for_model(family)
        has_it = transformers.AutoModelForCausalLM._model_mapping[type(config)]._supports_sdpa
        asked = not runs_eager(family, "sdpa") and not sdpa_is_gone(family, release)
        assert has_it or not asked, family
        if family in SDPA_UNTIL:
            assert has_it == asked, family


@pytest.mark.newest
@pytest.mark.launch
@pytest.mark.timeout(200)
def test_gemma2_trains_with_the_kernel_that_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("deepspeed")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    result = ask(None, steps=2)
    assert result.failure is None
    assert result.order is not None
    refused = sdpa_is_gone("gemma2", transformers.__version__)
    assert result.order.workload.attention == ("eager" if refused else "sdpa")
    assert (NO_SDPA.format(transformers.__version__) in result.notes) == refused
    assert result.error_percent == pytest.approx(0, abs=1)
