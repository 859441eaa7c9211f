"""The answer of ``check`` with a fake runner in place of the training processes."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from live_fakes import CPU, H200, TINY, FakeRunner

from dsconf.errors import InputError
from dsconf.live.check import check
from dsconf.live.plan import CheckRequest, make_plan, settled
from dsconf.live.predict import CUDA_ONLY_TERMS
from dsconf.live.processes.launcher import Failure
from dsconf.live.result import CheckResult, error_percent
from dsconf.memory.estimate import estimate
from dsconf.model.read import read_model
from dsconf.workload import Workload

CONFIG = {
    "train_micro_batch_size_per_gpu": 1,
    "bf16": {"enabled": True},
    "zero_optimization": {"stage": 2},
    "optimizer": {"type": "AdamW", "params": {"lr": 1e-4}},
}


def ask(runner: FakeRunner, config: Any = CONFIG, **words: Any) -> CheckResult:
    return check(config, **{"model": TINY, "gpus": 2, "seq_len": 32, "runner": runner} | words)


def test_the_fullest_rank_and_the_warm_iterations_are_reported() -> None:
    result = ask(FakeRunner(peaks=(3000, 4000)))
    assert result.ran
    assert result.exit_code == 0
    assert (result.ranks, result.device, result.world_size_run) == ("real", "CPU", 2)
    assert result.measured.peak_bytes == 4000
    assert result.measured.reserved_bytes == 4050
    assert result.measured.step_seconds == pytest.approx(0.515)  # median of 0.51 and 0.52; 9.0 is the warm-up
    assert result.phases["forward"].measured_bytes == 3800
    assert [record["backward_bytes"] for record in result.iterations] == [3500, 4000, 4000]
    assert result.host_peak_bytes == 7


def test_the_prediction_is_of_the_job_that_was_run() -> None:
    request = settled(CheckRequest(CONFIG, read_model(model=TINY), 64, Workload(seq_len=32)))
    rehearsed = ask(FakeRunner(H200, (10**9,)), gpus=64)
    expected = estimate(make_plan(request, H200).job, 0)
    assert rehearsed.ranks == "rehearsed"
    assert rehearsed.predicted.peak_bytes == expected.peak_bytes
    assert rehearsed.predicted.reserved_bytes == expected.reserved_bytes
    assert rehearsed.error_percent == error_percent(expected.peak_bytes, 10**9)
    on_cpu = ask(FakeRunner(CPU), gpus=64)
    two_ranks = estimate(make_plan(request, CPU).job)
    absent = sum(term.num_bytes for term in two_ranks.peak.terms if term.name in CUDA_ONLY_TERMS)
    assert absent > 0
    assert on_cpu.predicted.peak_bytes == two_ranks.peak_bytes - absent
    assert on_cpu.predicted.step_seconds is None


def test_offload_on_the_cpu_is_measured_but_not_compared() -> None:
    zero = {"stage": 2, "offload_optimizer": {"device": "cpu"}}
    result = ask(FakeRunner(), CONFIG | {"zero_optimization": zero})
    assert result.measured.peak_bytes == 4000
    assert result.error_percent is None
    assert all(phase.error_percent is None for phase in result.phases.values())
    assert any("not compared" in note for note in result.notes)


@pytest.mark.parametrize(
    ("failure", "exit_code", "line"),
    [
        (
            Failure("oom", "CUDA out of memory.", "backward", 0, 2**31),
            1,
            r"out of memory in backward asking for 2\.00 GiB; a peak of .* was predicted",
        ),
        (
            Failure("exception", "AssertionError: no", "init", 0),
            1,
            "^DeepSpeed failed in init: AssertionError: no$",
        ),
        (Failure("nan", "the loss is nan in iteration 1", "step", 1), 1, "^the loss is nan in iteration 1; lower"),
        (Failure("died", "rank 1 ended by SIGSEGV in train", "train", 1), 1, "SIGSEGV"),
        (Failure("timeout", "stopped after the time limit of 5 s in train"), 3, "time limit"),
        (Failure("missing", "deepspeed is not installed"), 3, r"pip install 'dsconf\[check\]'"),
        (
            Failure("missing", "--lora-rank needs peft: pip install peft"),
            3,
            "^--lora-rank needs peft: pip install peft$",
        ),
    ],
)
def test_each_failure_is_one_line_and_an_exit_code(failure: Failure, exit_code: int, line: str) -> None:
    result = ask(FakeRunner(failure=failure))
    assert not result.ran
    assert result.exit_code == exit_code
    assert result.failure is not None
    assert "\n" not in result.failure.message
    assert re.search(line, result.failure.message)


def test_a_failure_before_the_order_has_no_figures() -> None:
    failure = Failure("missing", "torch is not installed")
    result = ask(FakeRunner(failure=failure, before_the_order=True))
    assert (result.ran, result.exit_code, result.measured.peak_bytes) == (False, 3, None)
    json.dumps(result.to_json())


def test_an_invalid_config_is_not_launched() -> None:
    runner = FakeRunner()
    result = ask(runner, CONFIG | {"zero_optimization": {"stagee": 2}})
    assert runner.order is None
    assert result.exit_code == 1
    assert result.failure is not None
    assert "stagee" in result.failure.message
    assert result.findings[0]["path"] == "zero_optimization.stagee"


def test_options_may_mend_the_batch_sizes_of_the_config() -> None:
    wrong = CONFIG | {"train_batch_size": 7, "gradient_accumulation_steps": 2}
    assert ask(FakeRunner(), wrong).exit_code == 1
    runner = FakeRunner()
    assert ask(runner, wrong, micro_batch_size=2, gradient_accumulation_steps=3).exit_code == 0
    assert runner.order is not None
    assert runner.order.ds_config["train_batch_size"] == 12


def test_without_jsonschema_the_config_is_run_unvalidated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jsonschema", None)
    # A number written as text is for jsonschema to judge; what is certainly valid needs none.
    result = ask(FakeRunner(), config=CONFIG | {"steps_per_print": "10"})
    assert result.ran
    assert any("not validated" in note for note in result.notes)
    assert not any("not validated" in note for note in ask(FakeRunner()).notes)


@pytest.mark.parametrize(
    ("words", "error", "line"),
    [
        ({"config": "no/such.json"}, InputError, "no such file"),
        ({"gpus": 0}, InputError, "--gpus"),
        ({"steps": -1}, InputError, "--steps"),
        ({"timeout": float("inf")}, InputError, "--timeout"),
        ({"attention": "flesh"}, InputError, "--attention"),
        ({"load_dtype": "int8"}, InputError, "--load-dtype"),
        ({"model": None}, InputError, "--params"),
        ({"quantize": "4bit"}, InputError, "say --lora-rank"),
    ],
)
def test_inputs_are_refused_before_anything_starts(words: dict[str, Any], error: type, line: str) -> None:
    runner = FakeRunner()
    with pytest.raises(error, match=line):
        ask(runner, **words)
    assert runner.order is None


def test_a_file_and_its_content_give_the_same_answer(tmp_path: Path) -> None:
    file = tmp_path / "ds_config.json"
    file.write_text(json.dumps(CONFIG))
    assert ask(FakeRunner(), file) == ask(FakeRunner(), CONFIG)
