"""``python -m benchmarks.several_gpus``: with two real gloo ranks on the CPU, and with a stand-in for eight GPUs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from live_fakes import VERSIONS, FakeRunner, iteration

from benchmarks.memory import accuracy
from benchmarks.several_gpus import collectives, store
from benchmarks.several_gpus.cases import Case, cases, measure, request_of
from benchmarks.several_gpus.machine import in_a_row, same_kind
from benchmarks.several_gpus.store import Records, Row
from benchmarks.several_gpus.summary import apart, missed, nccl_mib, summary
from benchmarks.several_gpus.work import Plan, Session, Unit
from benchmarks.speed import accuracy as speed
from dsconf.cluster.catalogue import find_gpu
from dsconf.errors import InputError
from dsconf.live.processes.launcher import Failure, Outcome
from dsconf.live.processes.order import Order, Probe
from dsconf.live.run import no_progress
from dsconf.memory.estimate import estimate
from dsconf.speed import nccl
from dsconf.speed.step_time import step_time

REPO = Path(__file__).parents[2]

MIB = 2**20
CARD = {"name": "NVIDIA H200", "memory_bytes": 150_000_000_000}
H200_X8: Row = {
    "gpus": [CARD] * 8,
    "versions": VERSIONS,
    "cuda": "13.0",
    "nccl": "2.28.9",
    "smi": None,
    "topology": None,
    "cpu": "a CPU",
    "cpu_cores": 128,
    "memory_bytes": 600_000_000_000,
    "system": "Linux",
    "python": "3.12.3",
    "environment": {"NCCL_NVLS_ENABLE": "0"},
}
STAGE_3 = next(case for case in cases([2, 4, 8]) if case.setting.name == "z3" and case.world_size == 8)


class EightGpus(FakeRunner):
    """Says what eight H200 would: rank r peaks at ``peaks[r]`` MiB, and a process holds ``outside`` MiB more."""

    def __init__(self, peaks: list[int], outside: int, failure: Failure | None = None) -> None:
        probe = Probe(8, CARD["name"], CARD["memory_bytes"], versions=VERSIONS)
        super().__init__(probe, tuple(peak * MIB for peak in peaks), failure)
        self.outside = outside

    def run(self, decide: Callable[[Probe], Order], progress: Callable[[str], None], timeout: float) -> Outcome:
        outcome = super().run(decide, progress, timeout)
        for events, peak in zip(outcome.events, self.peaks, strict=True):
            for number, event in enumerate(events[:-1]):
                held = {"reserved_end_bytes": peak + MIB, "process_bytes": peak + MIB + self.outside * MIB}
                event.update(iteration(number, peak), **held)
            events.insert(0, {"event": "initialized", "time": 0.0, "init_bytes": 9 * MIB, "after_init_bytes": 8 * MIB})
        return outcome


def eight(peaks: list[int], outside: int, rehearse: int | None = None) -> list[Row]:
    wanted = request_of(STAGE_3, 3, on_cpu=False, rehearse=rehearse)
    return measure(STAGE_3, wanted, in_a_row(H200_X8), 60, no_progress, EightGpus(peaks, outside))


def test_at_least_24_cases_of_all_that_was_asked_for_fit_80_gb_cards() -> None:
    found = cases([2, 4, 8])
    assert len(found) == len({case.name for case in found}) >= 24
    settings = {case.setting for case in found}
    assert {(one.engine, one.stage) for one in settings} == {("ddp", 0), *(("deepspeed", stage) for stage in range(4))}
    for ranks in (2, 4, 8):
        some = [case for case in found if case.world_size == ranks]
        assert {case.family for case in some} == {"llama", "qwen2", "gpt2"}
        assert {one.setting.checkpointing for one in some} == {True, False}
        assert {one.setting.offload for one in some} == {"none", "optimizer", "both"}
    card = find_gpu("A100 SXM 80GB")
    for case in found:
        [row] = eight_rows(case, rehearse=0)
        assert estimate(speed.job_of(row)).process_bytes < card.memory_bytes, case.name


def eight_rows(case: Case, rehearse: int) -> list[Row]:
    wanted = request_of(case, 3, on_cpu=False, rehearse=rehearse)
    return measure(case, wanted, in_a_row(H200_X8), 60, no_progress, EightGpus([100], 900))


def test_every_rank_has_its_row_beside_its_own_prediction() -> None:
    rows = eight([1000 + rank for rank in range(8)], outside=1500)
    assert [row["rank"] for row in rows] == list(range(8))
    assert [row["measured"]["peak_mib"] for row in rows] == [1000.0 + rank for rank in range(8)]
    assert {row["rehearsed"] for row in rows} == {False}
    row = rows[5]
    assert row["measured"]["outside_mib"] == 1500
    assert (row["measured"]["init_peak_mib"], row["measured"]["after_init_mib"]) == (9.0, 8.0)
    assert (row["gpu"], row["gpus_per_node"], row["cpu_cores"]) == ("H200 SXM 141GB", 8, 128)
    job = speed.job_of(row)
    assert row["predicted"]["peak_mib"] == pytest.approx(estimate(job, 5).peak_bytes / MIB, abs=0.01)
    assert accuracy.result_of(row).predicted == estimate(job, 5).peak_bytes
    assert not job.cluster.nvlink_switches
    whole = step_time(job)
    assert whole.parts["communication"] > 0
    assert speed.result_of(row).predicted == row["predicted"]["step_seconds"] == whole.seconds


def test_a_rehearsal_is_of_the_rank_asked_for_and_sends_nothing() -> None:
    [row] = eight([1000], 900, rehearse=6)
    assert (row["rank"], row["rehearsed"], row["name"]) == (6, True, f"{STAGE_3.name}-r6-rehearsed")
    whole = step_time(speed.job_of(row))
    assert speed.result_of(row).predicted == pytest.approx(whole.seconds - whole.parts["communication"])


def test_nccl_is_what_the_real_process_holds_more(tmp_path: Path) -> None:
    """1500 MiB beside torch's memory, 900 without NCCL; not rehearsed, 840 are CUDA's by the memory model."""
    real, [again] = eight([1000] * 8, 1500), eight([1000], 900, rehearse=6)
    assert nccl_mib(real[6], again) == 600
    assert nccl_mib(real[6], None) == 660
    records = Records(tmp_path)
    records.add(store.CASES, real)
    records.add(store.CASES, [again])
    assert missed(records) == []
    assert any("rehearsed against real: 1 ranks, worst 0.000 %, within" in line for line in summary(records))
    [off] = eight([1002], 900, rehearse=7)
    records.add(store.CASES, [off])
    assert apart(real[7], off) == pytest.approx(0.2)
    assert missed(records) == [f"{STAGE_3.name}-r7"]
    assert any("worst 0.200 %, NOT WITHIN 0.1 %" in line for line in summary(records))


def test_bandwidth_by_hand() -> None:
    """1 MiB in 10 µs on 4 ranks: an all-reduce puts 2 × 3/4 of it on the bus, an all-gather 3/4."""
    about = {"world_size": 4, "unit": "u", **in_a_row(H200_X8)}
    assert collectives.row("all-reduce", MIB, 1e-5, about)["bus_bytes_per_second"] == pytest.approx(1.5 * MIB / 1e-5)
    row = collectives.row("all-gather", MIB, 1e-5, about)
    assert row["bus_bytes_per_second"] == pytest.approx(0.75 * MIB / 1e-5)
    assert row["predicted_seconds"] == nccl.all_gather(speed.cluster_of(about), MIB, 1)
    assert collectives.sizes(5000) == [1024, 2048, 4096]


def test_without_switches_an_all_reduce_is_a_ring() -> None:
    from dataclasses import replace

    without = speed.cluster_of({"world_size": 8, **in_a_row(H200_X8)})
    with_switches = replace(without, nvlink_switches=True)
    assert nccl.all_reduce(without, 2**30, 1) == pytest.approx(2 * nccl.all_gather(without, 2**30, 1), rel=0.05)
    assert nccl.all_reduce(with_switches, 2**30, 1) < nccl.all_reduce(without, 2**30, 1)


def session(folder: Path, seconds: float = float("inf")) -> Session:
    plan = Plan([], [2], (), ["*"], 3, 1024, 60.0, seconds, "torchrun")
    return Session(plan, H200_X8 | {"gpus": []}, Records(folder))


def test_a_unit_that_fails_is_recorded_and_one_cut_by_the_limit_is_left(tmp_path: Path) -> None:
    def broken(*_: Any) -> list[Row]:
        raise ZeroDivisionError("oops")

    def hangs(*_: Any) -> list[Row]:
        return [{"unit": "slow", "error": "stopped after the time limit", "kind": "timeout"}]

    work = session(tmp_path)
    work._attempt(Unit("broken", "case", store.CASES, broken), FakeRunner())
    work._attempt(Unit("slow", "case", store.CASES, hangs), FakeRunner())
    assert work.records.done() == {"broken", "slow"}
    assert work.records.rows(store.CASES)[0]["error"] == "ZeroDivisionError: oops"
    work.records.forget_failures()
    assert Records(tmp_path).done() == set()

    late = session(tmp_path, seconds=50)
    late._attempt(Unit("slow", "case", store.CASES, hangs), FakeRunner())
    assert (late.left, late.records.done()) == (["slow"], set())
    late = session(tmp_path, seconds=1)
    late._attempt(Unit("broken", "case", store.CASES, broken), FakeRunner())
    assert (late.left, late.records.done()) == (["broken"], set())


def test_a_line_cut_short_is_dropped_and_other_cards_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / store.CASES).write_text('{"unit": "a", "error": "x"}\n{"unit": "b", "err')
    records = Records(tmp_path)
    records.add(store.CASES, [{"unit": "c", "error": "x"}])
    assert Records(tmp_path).done() == {"a", "c"}
    assert same_kind(H200_X8, H200_X8 | {"gpus": [CARD]})
    assert not same_kind(H200_X8, H200_X8 | {"gpus": [CARD | {"name": "NVIDIA A100"}]})


def test_numbers_of_ranks() -> None:
    from benchmarks.several_gpus.__main__ import numbers

    assert numbers("8, 2,4") == [2, 4, 8]
    for text in ("", "1", "two"):
        with pytest.raises(InputError, match="--gpus"):
            numbers(text)


@pytest.mark.cuda
@pytest.mark.launch
@pytest.mark.parametrize("setting", ["ddp", "z3"])
def test_on_a_gpu_a_rank_that_is_not_the_first_is_rehearsed(setting: str) -> None:
    """One GPU is enough for this; NCCL's collectives are called on one rank."""
    from benchmarks.several_gpus.machine import describe
    from dsconf.live.processes.launcher import SubprocessRunner

    machine = describe()
    known = in_a_row(machine) | {"gpus_per_node": 2}
    case = next(one for one in cases([2]) if one.setting.name == setting)
    [row] = measure(case, request_of(case, 3, on_cpu=False, rehearse=1), known, 350, no_progress, SubprocessRunner())
    assert "error" not in row, row
    assert abs(accuracy.result_of(row).error) < 5
    assert row["measured"]["outside_mib"] > 100
    rows = collectives.measure(1, 2**20, known, 100, no_progress, SubprocessRunner(), "torchrun")
    assert [len(rows), *(row["error"] for row in rows if "error" in row)] == [33]


UNITS = "collectives-w2,llama-ddp-w2,llama-z2-w2,llama-z3-w2,rehearse-llama-z3-w2-r1"


@pytest.mark.launch
def test_the_command_with_two_real_ranks(tmp_path: Path) -> None:
    """Stopped by Ctrl-C after the first unit, started again, and once more with nothing left to do."""
    for package in ("torch", "deepspeed", "transformers"):
        pytest.importorskip(package)
    from test_live_launch import descendants_of, gone

    folder, temporary = tmp_path / "records", tmp_path / "tmp"
    temporary.mkdir()
    command = [sys.executable, "-m", "benchmarks.several_gpus", "--record", str(folder), "--only", UNITS]
    variables = os.environ | {"CUDA_VISIBLE_DEVICES": "", "TMPDIR": str(temporary)}
    words: dict[str, Any] = {"cwd": REPO, "env": variables, "stderr": subprocess.PIPE, "text": True}
    first = subprocess.Popen([*command, "--largest", "1MiB"], **words)
    assert first.stderr is not None
    assert first.stderr.readline().startswith("collectives-w2: measured")
    limit = time.monotonic() + 300
    while not descendants_of(temporary) and time.monotonic() < limit:
        time.sleep(0.05)
    first.send_signal(signal.SIGINT)
    assert first.wait(150) == 130
    assert gone(temporary, 5)
    assert list(temporary.iterdir()) == []
    assert "goes on from here" in first.stderr.read()
    again = subprocess.run(command, stdout=subprocess.PIPE, timeout=1500, check=False, **words)
    assert again.returncode == 0, again.stderr
    assert [line.partition(":")[0] for line in again.stderr.splitlines()] == UNITS.split(",")[1:]
    _complete(folder, again.stdout)
    kept = (folder / store.CASES).read_bytes()
    third = subprocess.run(command, stdout=subprocess.PIPE, timeout=150, check=False, **words)
    assert (third.returncode, third.stderr, third.stdout) == (0, "", again.stdout)
    assert (folder / store.CASES).read_bytes() == kept


def _complete(folder: Path, said: str) -> None:
    """Every rank and size is there, and the summary says so."""
    rows = [json.loads(line) for line in (folder / store.CASES).read_text().splitlines()]
    ranks = {(row["case"], row["rank"], row["rehearsed"]) for row in rows}
    real = {(f"llama-{name}-w2", rank, False) for name in ("ddp", "z2", "z3") for rank in (0, 1)}
    assert ranks == real | {("llama-z3-w2", 1, True)}
    for row in rows:
        measured = row["measured"]
        assert measured["init_peak_mib"] > 0
        assert len(measured["iterations"]) == len(measured["step_seconds"]) == 3
        assert row["measured"]["host_peak_mib"] > 100
        assert abs(accuracy.result_of(row).error) < 1
        assert accuracy.comparable(row)
        assert not speed.timed(row)
    of = {
        (row["rank"], row["rehearsed"]): row["measured"]["iterations"] for row in rows if row["case"] == "llama-z3-w2"
    }
    assert of[1, True] == of[1, False]
    lines = [json.loads(line) for line in (folder / store.COLLECTIVES).read_text().splitlines()]
    assert {(line["collective"], line["bytes"]) for line in lines} == {
        (kind, 2**power) for kind in collectives.KINDS for power in range(10, 21)
    }
    assert all(line["seconds"] > 0 for line in lines)
    assert "peak of every rank: 6 ranks" in said
    assert "rehearsed against real: 1 ranks, worst 0.000 %, within 0.1 %" in said
    assert said == (folder / store.SUMMARY).read_text()
