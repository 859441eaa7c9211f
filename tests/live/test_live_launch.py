"""Real DeepSpeed training on the CPU over two gloo ranks, and that nothing survives it however it ends."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from live_fakes import TINY

from dsconf.live.check import check
from dsconf.model.read import read_model

pytest.importorskip("torch")
pytest.importorskip("deepspeed")
pytest.importorskip("transformers")

pytestmark = pytest.mark.launch
can_build = shutil.which("c++") is not None and (
    shutil.which("ninja") is not None or (Path(sys.executable).parent / "ninja").exists()
)
needs_compiler = pytest.mark.skipif(not can_build, reason="DeepSpeed's CPU Adam needs a C++ compiler and ninja")
on_cpu = pytest.mark.usefixtures("without_gpus")


@pytest.fixture(autouse=True)
def without_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Run on the CPU even where there are GPUs, and keep the temporary folder where it can be looked at."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def config(stage: int, **zero: Any) -> dict[str, Any]:
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 2,
        "bf16": {"enabled": True},
        "zero_optimization": {"stage": stage, "reduce_bucket_size": 100_000, "allgather_bucket_size": 100_000, **zero},
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "torch_adam": not can_build}},
    }


def descendants_of(folder: Path) -> list[int]:
    """Processes whose environment names a run under ``folder``."""
    found = []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        try:
            marked = f"DSCONF_CHECK={folder}".encode() in environ.read_bytes()
            stat = (environ.parent / "stat").read_text()
        except OSError:
            continue
        if marked and stat.rpartition(")")[2].split()[0] != "Z":
            found.append(int(environ.parent.name))
    return found


def gone(folder: Path, seconds: float) -> bool:
    """Whether the last process of ``folder`` ended within ``seconds``."""
    limit = time.monotonic() + seconds
    while descendants_of(folder):
        if time.monotonic() > limit:
            return False
        time.sleep(0.05)
    return True


@pytest.mark.parametrize("stage", [0, *(pytest.param(stage, marks=pytest.mark.newest) for stage in (1, 2, 3))])
def test_two_real_ranks_train_and_the_prediction_holds(stage: int, tmp_path: Path) -> None:
    lines: list[str] = []
    result = check(config(stage), model=TINY, gpus=2, seq_len=64, steps=3, progress=lines.append)
    assert result.failure is None
    assert (result.ran, result.ranks, result.world_size_run) == (True, "real", 2)
    assert len(result.iterations) == 3
    assert result.measured.peak_bytes is not None
    assert 1_000_000 < result.measured.peak_bytes < 20_000_000
    assert result.scaled_down == ()
    assert result.iterations[2]["loss"] < result.iterations[0]["loss"]  # the same batch thrice: it must learn
    assert result.predicted.peak_bytes is not None
    more = result.measured.peak_bytes - result.predicted.peak_bytes
    # gloo's own thread lets go of stage 0's flat 16-bit gradients when it is done: on a busy machine after the next are
    # made.
    late = 2 * read_model(model=TINY).num_params if stage == 0 else 0
    assert abs(more) < 0.05 * result.measured.peak_bytes or abs(more - late) < 0.05 * result.measured.peak_bytes
    assert "starting 2 ranks with torchrun" in lines
    assert any(line.startswith("iteration 3: loss") for line in lines)
    assert list(tmp_path.iterdir()) == []
    spent = result.phase_seconds
    assert sum(spent.values()) == pytest.approx(result.seconds, abs=0.1)
    assert sum(spent[name] for name in ("import", "build", "init", "train")) > result.seconds / 2


@pytest.mark.parametrize(
    ("stage", "words"),
    [(2, {"sequence_parallel": 2}), (1, {"tiled_loss": 2}), (3, {"sequence_parallel": 2, "tiled_loss": "auto"})],
)
def test_ranks_share_sequences_and_make_the_loss_in_shards(stage: int, words: dict[str, Any]) -> None:
    untied = {**TINY, "hidden_size": 128, "intermediate_size": 256, "vocab_size": 512, "num_key_value_heads": 4}
    untied["tie_word_embeddings"] = False
    result = check(config(stage), model=untied, gpus=2, seq_len=64, steps=3, **words)
    assert result.failure is None
    assert result.order is not None
    assert result.order.sequence_parallel == words.get("sequence_parallel", 1)
    assert result.iterations[2]["loss"] < result.iterations[0]["loss"]
    # On the CPU stage 3 holds some hundred KiB more than is predicted while ranks share sequences; on CUDA it does not.
    assert result.error_percent == pytest.approx(0, abs=10 if stage == 3 else 5)


@pytest.mark.parametrize("launcher", ["deepspeed", "direct"])
def test_the_other_launchers_train_the_same(launcher: str, tmp_path: Path) -> None:
    lines: list[str] = []
    words = {"model": TINY, "gpus": 2, "seq_len": 64, "steps": 1, "launcher": launcher}
    result = check(config(3), **words, progress=lines.append)
    assert result.failure is None
    assert (result.ranks, result.world_size_run) == ("real", 2)
    assert result.order is not None
    assert result.order.launcher == launcher
    assert ("starting 2 ranks with deepspeed" in lines) == (launcher == "deepspeed")
    assert list(tmp_path.iterdir()) == []


@needs_compiler
def test_offloaded_optimizer_states_train_too() -> None:
    result = check(config(2, offload_optimizer={"device": "cpu"}), model=TINY, gpus=2, seq_len=32, steps=2)
    assert result.failure is None
    assert result.iterations[1]["loss"] < result.iterations[0]["loss"]


def test_what_deepspeed_refuses_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dsconf.live.check.precheck", lambda *_: __import__("dsconf").live.precheck.Precheck())
    broken = config(2) | {"optimizer": {"type": "NoSuchOptimizer", "params": {"lr": 1e-3}}}
    result = check(broken, model=TINY, gpus=2, seq_len=32)
    assert result.exit_code == 1
    assert result.failure is not None
    assert result.failure.kind == "exception"
    assert "NoSuchOptimizer" in result.failure.message
    assert "\n" not in result.failure.message
    assert result.failure.log != ()


def test_a_diverging_loss_is_told() -> None:
    diverging = config(0) | {"optimizer": {"type": "AdamW", "params": {"lr": 1e30, "torch_adam": not can_build}}}
    result = check(diverging | {"gradient_clipping": 0.0}, model=TINY, gpus=1, seq_len=32, steps=5)
    assert result.exit_code == 1
    assert result.failure is not None
    assert result.failure.kind == "nan"


def test_the_time_limit_ends_everything(tmp_path: Path) -> None:
    result = check(config(1), model=TINY, gpus=2, seq_len=32, timeout=3)
    assert result.exit_code == 3
    assert result.failure is not None
    assert "time limit of 3 s" in result.failure.message
    assert result.seconds < 10
    assert descendants_of(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("launcher", "keeper", "rank", "line"),
    [
        ("torchrun", False, 1, "rank 1 ended by SIGKILL"),
        ("torchrun", True, None, "the launcher ended with exit code 1"),
        ("direct", True, 1, "rank 1 ended by SIGKILL"),
    ],
)
def test_a_killed_rank_is_named(launcher: str, keeper: bool, rank: int | None, line: str, tmp_path: Path) -> None:
    """The process that trains is killed, or that and its keeper."""

    def kill_rank_1(progress: str) -> None:
        if progress == "building the model":
            pids = [
                p for p in descendants_of(tmp_path) if b"\0LOCAL_RANK=1\0" in Path(f"/proc/{p}/environ").read_bytes()
            ]
            assert len(pids) >= 2  # the rank, its keeper, and what the rank may just have started
            for pid in pids:
                with suppress(ProcessLookupError):  # one may have ended with another that was killed before it
                    if keeper or pid != os.getsid(pid):
                        os.kill(pid, signal.SIGKILL)

    result = check(config(2), model=TINY, gpus=2, seq_len=32, progress=kill_rank_1, launcher=launcher)
    assert result.exit_code == 1
    assert result.failure is not None
    assert (result.failure.kind, result.failure.rank) == ("died", rank)
    assert result.failure.message.startswith(line)
    assert gone(tmp_path, 0.5)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)], ids=lambda v: str(v)
)
@pytest.mark.parametrize("moment", [0.4, 2.0, random.Random().uniform(0.3, 9)], ids=["start", "import", "random"])
def test_nothing_is_left_when_the_parent_is_stopped(
    number: signal.Signals, exit_code: int, moment: float, tmp_path: Path
) -> None:
    files = tmp_path / "files"
    files.mkdir()
    (files / "ds.json").write_text(json.dumps(config(2)))
    (files / "model.json").write_text(json.dumps(TINY))
    words = ["check", str(files / "ds.json"), "--model", str(files / "model.json"), "--gpus", "2", "--steps", "500"]
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    parent = subprocess.Popen(
        [sys.executable, "-m", "dsconf", *words, "--seq-len", "64"],
        env=os.environ | {"TMPDIR": str(scratch), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert parent.stderr is not None
    parent.stderr.readline()  # the first process says that it is importing
    time.sleep(moment)
    parent.send_signal(number)
    _, errors = parent.communicate(timeout=150)
    assert parent.returncode == exit_code
    assert "Traceback" not in errors
    assert gone(scratch, seconds=5 if number == signal.SIGKILL else 0.2)
    assert list(scratch.iterdir()) == []


START = "crew = Crew(pathlib.Path(sys.argv[1])); crew.start_first()\n"
WAIT = "while not crew.new_events(): pass\n"
WORKER, KEEPER = "crew.events[0][0]['pid']", "crew.events[0][0]['session']"
DEATHS = {
    "at once": "",
    "with a worker": f"{WAIT}os.kill({WORKER}, 9)\n",
    "with a keeper": f"{WAIT}os.kill({KEEPER}, 9)\n",
}


@pytest.mark.parametrize("death", DEATHS)
def test_nothing_is_left_of_a_parent_that_dies_before_the_ranks_are_ready(death: str, tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    imports = "import os, pathlib, sys; from dsconf.live.processes.crew import Crew"
    code = f"{imports}\n{START}{DEATHS[death]}os.kill(os.getpid(), 9)"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    subprocess.run([sys.executable, "-c", code, str(scratch)], env=environment, check=False)
    # What was started a moment ago may not bear the folder's name yet: the folder is what its last process takes along.
    limit = time.monotonic() + 10
    while scratch.exists() and time.monotonic() < limit:
        time.sleep(0.05)
    assert not scratch.exists()
    assert gone(scratch, seconds=5)


@needs_compiler
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=lambda v: v.name)
def test_a_half_built_kernel_leaves_neither_compiler_nor_lock(number: signal.Signals, tmp_path: Path) -> None:
    """torch waits for such a lock for ever: a stopped check would hang every later one on the machine."""
    (tmp_path / "ds.json").write_text(json.dumps(config(2)))
    (tmp_path / "model.json").write_text(json.dumps(TINY))
    scratch, kernels = tmp_path / "scratch", tmp_path / "kernels"
    scratch.mkdir()
    words = ["check", str(tmp_path / "ds.json"), "--model", str(tmp_path / "model.json"), "--gpus", "2"]
    environment = os.environ | {"TMPDIR": str(scratch), "TORCH_EXTENSIONS_DIR": str(kernels)}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    parent = subprocess.Popen(
        [sys.executable, "-m", "dsconf", *words, "--seq-len", "64"], env=environment, stderr=subprocess.DEVNULL
    )
    limit = time.monotonic() + 300
    while not list(kernels.rglob("lock")) and time.monotonic() < limit:
        time.sleep(0.05)
    time.sleep(1)
    assert list(kernels.rglob("lock")) != []
    parent.send_signal(number)
    parent.wait(timeout=150)
    assert gone(scratch, seconds=5)
    assert list(kernels.rglob("lock*")) == []
