"""The bench: its table by hand from a stand-in, and real strategies that agree on the CPU."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner
from live_fakes import CPU, H200, TINY, FakeRunner

from dsconf.cli.bench import command
from dsconf.errors import InputError, UnavailableError
from dsconf.live.bench import STRATEGIES, bench
from dsconf.live.processes.launcher import Failure, Outcome
from dsconf.live.processes.order import Order, Probe
from dsconf.model.read import read_model
from dsconf.report.bench import bench_text


class Recorder(FakeRunner):
    """Remembers every order; strategy number n holds n thousand bytes."""

    def __init__(self, probe: Probe = CPU, failing: str = "") -> None:
        super().__init__(probe)
        self.orders: list[Order] = []
        self.failing = failing

    def run(self, decide: Callable[[Probe], Order], progress: Callable[[str], None], timeout: float) -> Outcome:
        self.peaks = (1000 * (len(self.orders) + 1), 500)
        outcome = super().run(decide, progress, timeout)
        assert self.order is not None
        self.orders.append(self.order)
        kind = f"{self.order.backend}{self.order.ds_config['zero_optimization']['stage']}"
        return outcome._replace(failure=Failure("exception", "no", "init") if kind == self.failing else None)


def ask(runner: FakeRunner, **words: Any) -> Any:
    return bench(**{"model": TINY, "gpus": 2, "seq_len": 64, "steps": 3, "runner": runner} | words)


def test_every_strategy_takes_the_same_sequences_from_the_same_seed() -> None:
    runner = Recorder()
    result = ask(runner, micro_batch_size=2, gradient_accumulation_steps=2)
    assert [row.strategy for row in result.rows] == list(STRATEGIES)
    assert {order.tokens // order.workload.seq_len for order in runner.orders} == {8}
    assert result.global_batch == 8
    assert len({o.seed for o in runner.orders}) == 1
    assert not any(o.workload.zero_init for o in runner.orders)
    assert [o.world_size for o in runner.orders] == [1, 2, 2, 2, 2, 2]
    assert [o.backend for o in runner.orders] == ["ddp", "ddp", "deepspeed", "deepspeed", "deepspeed", "accelerate"]
    stages = [o.ds_config["zero_optimization"]["stage"] for o in runner.orders]
    assert stages == [0, 0, 1, 2, 3, 2]
    assert {o.ds_config["optimizer"]["params"]["lr"] for o in runner.orders} == {1e-4}


def test_figures_by_hand() -> None:
    result = ask(Recorder())
    assert [row.peak_bytes for row in result.rows] == [1000, 2000, 3000, 4000, 5000, 6000]
    # the median of the second and third step: 0.51 and 0.52 s, for 2 sequences of 64 tokens
    assert {row.step_seconds for row in result.rows} == {0.515}
    assert result.rows[1].tokens_per_second == pytest.approx(2 * 64 / 0.515)
    assert [row.speedup for row in result.rows] == [1.0] * 6
    assert [row.loss_difference for row in result.rows] == [0.0] * 6
    assert result.exit_code == 0
    text = bench_text(result)
    assert "zero3" in text
    assert "1.00 ×" in text
    assert "resumes" not in text
    json.dumps(result.to_json())


def test_a_strategy_that_fails_leaves_the_others() -> None:
    result = ask(Recorder(failing="deepspeed3"))
    assert result.exit_code == 1
    assert [row.strategy for row in result.rows if row.failure] == ["zero3"]
    assert "failed: exception" in bench_text(result)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ({"strategies": "single,zero4"}, "--strategies: 'zero4' is not one of"),
        ({"precision": "int8"}, "--precision"),
        ({"attention": "flesh"}, "--attention"),
        ({"gpus": 0}, "--gpus: 0 is not a positive whole number"),
        ({"model": None}, "--params"),
        ({"launcher": "mpirun"}, "--launcher"),
        ({"resume": True, "steps": 1}, "--steps 1: --resume saves half-way"),
    ],
)
def test_a_wrong_word_is_refused(words: dict[str, Any], line: str) -> None:
    with pytest.raises(InputError, match=line):
        ask(Recorder(), **words)


@pytest.mark.parametrize("strategies", ["ddp", "single,ddp"])
def test_a_bench_is_never_rehearsed_and_refused_before_anything_runs(strategies: str) -> None:
    runner = Recorder(H200)
    with pytest.raises(UnavailableError, match="--gpus 2: 1 here"):
        ask(runner, strategies=strategies)
    assert runner.orders == []


def test_a_checkpoint_is_refused_where_the_disk_has_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    free = 16 * read_model(model=TINY).num_params
    lines: list[str] = []
    for left, refused in ((free, False), (free - 1, True)):
        runner = Recorder()
        monkeypatch.setattr("shutil.disk_usage", lambda _, left=left: SimpleNamespace(free=left))
        with pytest.raises(UnavailableError, match="set TMPDIR") if refused else nullcontext():
            ask(runner, strategies="ddp,zero2", resume=True, progress=lines.append)
        assert [order.resume_at for order in runner.orders] == ([] if refused else [0, 1, 0, 1])
    assert "strategy zero2, from its checkpoint" in lines
    assert any(line.startswith("a checkpoint of at most ") for line in lines)


def test_a_launcher_is_for_two_ranks_or_more_unless_it_is_named() -> None:
    default, named = Recorder(), Recorder()
    ask(default, strategies="single,zero2")
    assert [order.launcher for order in default.orders] == ["direct", "torchrun"]
    ask(named, strategies="single,zero2", launcher="deepspeed")
    assert [order.launcher for order in named.orders] == ["deepspeed", "deepspeed"]


def test_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr("dsconf.live.bench.SubprocessRunner", Recorder)
    model = tmp_path / "config.json"
    model.write_text(json.dumps(TINY))
    words = ["--model", str(model), "--gpus", "2", "--steps", "3", "--seq-len", "64", "--strategies", "ddp,zero2"]
    for kind, start in ((".svg", b"<?xml"), (".png", b"\x89PNG")):
        plot = tmp_path / f"bench{kind}"
        result = CliRunner().invoke(command, [*words, "--plot", str(plot)], standalone_mode=False)
        assert result.return_value == 0, result.output
        assert plot.read_bytes().startswith(start)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bench.png", "bench.svg", "config.json"]
    again = CliRunner().invoke(command, [*words, "--plot", str(tmp_path / "bench.svg")], standalone_mode=False)
    assert isinstance(again.exception, InputError)
    found = CliRunner().invoke(command, [*words, "--format", "json"], standalone_mode=False)
    assert [row["strategy"] for row in json.loads(found.stdout)["rows"]] == ["ddp", "zero2"]


@pytest.fixture
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("torch", "deepspeed", "transformers", "accelerate"):
        pytest.importorskip(name)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


@pytest.mark.launch
@pytest.mark.usefixtures("on_the_cpu")
@pytest.mark.parametrize(
    "strategies",
    ["single,ddp,zero1", pytest.param("ddp,zero2,zero3,accelerate", marks=pytest.mark.newest)],
)
def test_all_strategies_agree_over_20_steps(strategies: str) -> None:
    """One rank, two under DDP, ZeRO 1 to 3 and Accelerate: the same losses but for the order of fp32 sums."""
    words = {"model": TINY, "gpus": 2, "seq_len": 32, "precision": "fp32", "learning_rate": 1e-3, "steps": 20}
    result = bench(**words, strategies=strategies)
    count = len(strategies.split(","))
    assert [row.failure for row in result.rows] == [None] * count
    assert [len(row.losses) for row in result.rows] == [20] * count
    first = result.rows[0].losses
    assert first[-1] < first[0] - 1  # it learned, so there was something to agree on
    for row in result.rows:
        assert row.loss_difference is not None
        assert row.loss_difference < 2e-3 * first[0], row.strategy


@pytest.mark.launch
@pytest.mark.usefixtures("on_the_cpu")
def test_each_backend_goes_on_from_its_checkpoint() -> None:
    result = bench(
        model=TINY, gpus=2, seq_len=32, precision="fp32", steps=4, strategies="ddp,zero3,accelerate", resume=True
    )
    assert [(row.failure, row.resumed) for row in result.rows] == [(None, True)] * 3
