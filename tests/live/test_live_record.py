"""Records, snapshots, the furthest part and the limits of a smaller card, with a stand-in for the processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from live_fakes import CPU, H200, TINY, FakeRunner

from benchmarks.memory import accuracy
from dsconf.errors import InputError
from dsconf.live import result as results
from dsconf.live.check import check
from dsconf.live.processes.launcher import Failure
from dsconf.live.result import CheckResult

CONFIG = {
    "train_micro_batch_size_per_gpu": 2,
    "bf16": {"enabled": True},
    "zero_optimization": {"stage": 2},
    "optimizer": {"type": "AdamW", "params": {"lr": 1e-4}},
}
MIB = 2**20


def ask(runner: FakeRunner, **words: Any) -> CheckResult:
    return check(**{"config": CONFIG, "model": TINY, "gpus": 8, "seq_len": 64, "runner": runner} | words)


def test_a_record_is_read_by_the_accuracy_benchmark(tmp_path: Path) -> None:
    place = tmp_path / "results.jsonl"
    for _ in range(2):
        ask(FakeRunner(H200, peaks=(3 * MIB,)), record=place)
    rows = [json.loads(line) for line in place.read_text().splitlines()]
    assert len(rows) == 2
    assert rows[0]["measured"]["peak_mib"] == 3.0
    assert [it["bwd_mib"] for it in rows[0]["measured"]["iterations"]][-1] == 3.0
    assert (rows[0]["world_size"], rows[0]["micro_batch_size"], rows[0]["device"]) == (8, 2, "NVIDIA H200")

    read = accuracy.result_of(accuracy.read(place)[0])
    predicted = ask(FakeRunner(H200)).predicted.peak_bytes
    assert predicted is not None
    assert read.error == pytest.approx(100 * (predicted - 3 * MIB) / (3 * MIB), abs=0.1)


def test_only_whole_runs_on_a_gpu_are_recorded(tmp_path: Path) -> None:
    place, lines = tmp_path / "results.jsonl", []
    ask(FakeRunner(CPU), record=place, progress=lines.append)
    ask(FakeRunner(H200, failure=Failure("oom", "CUDA out of memory.", "backward")), record=place)
    assert not place.exists()
    assert any("not recorded" in line for line in lines)


@pytest.mark.parametrize("word", ["record", "memory_snapshot"])
def test_a_place_that_cannot_be_written_is_refused_before_the_run(word: str, tmp_path: Path) -> None:
    for place, why in ((tmp_path, "is a folder"), (tmp_path / "no" / "file", "does not exist")):
        runner = FakeRunner(H200)
        with pytest.raises(InputError, match=why):
            ask(runner, **{word: place})
        assert runner.order is None


def test_a_snapshot_never_overwrites(tmp_path: Path) -> None:
    there = tmp_path / "snapshot.pickle"
    there.write_bytes(b"mine")
    with pytest.raises(InputError, match="exists"):
        ask(FakeRunner(H200), memory_snapshot=there)
    runner = FakeRunner(H200)
    ask(runner, memory_snapshot=tmp_path / "new.pickle")
    assert runner.order is not None
    assert runner.order.snapshot == str(tmp_path / "new.pickle")


def test_a_smaller_card_leaves_room_for_cuda_and_nccl() -> None:
    """40 GB cards have 40 960 MiB less what the driver keeps; CUDA takes 840 MiB of it, NCCL 558 and its rings,
    the second communicator of stages 0 to 2 another 484."""
    from dsconf.cluster.catalogue import find_gpu

    runner = FakeRunner(H200)
    ask(runner, gpu="a100-40gb")
    assert runner.order is not None
    rings = 24 * (524_288 + 4_915_200 + 4_194_304)
    clone = 24 * (484 * MIB // 24)
    assert runner.order.cap_bytes == find_gpu("a100-40gb").memory_bytes - (840 + 558) * MIB - rings - clone


def test_the_fullest_rank_is_rehearsed() -> None:
    from dsconf.api import estimate

    big = TINY | {"vocab_size": 30_000, "tie_word_embeddings": False}
    runner = FakeRunner(H200, peaks=(5000,))
    result = ask(runner, model=big, gpus=4)
    assert runner.order is not None
    words: dict[str, Any] = {"model": big, "gpus": 4, "config": runner.order.ds_config, "seq_len": 64}
    assert runner.order.rank == estimate(**words).rank == result.rank
    assert result.predicted.peak_bytes == estimate(**words, rank=result.rank).peak_bytes
    assert any(f"rank {result.rank}, the fullest," in note for note in result.notes)


def test_the_part_that_is_furthest_off_by_hand() -> None:
    predicted = {
        "forward": {"parameters": 100, "saved activations": 50},
        "backward": {"parameters": 100, "saved activations": 50, "reduce bucket": 30},
        "step": {"parameters": 100, "flat gradient": 10},
    }
    step = {"forward_bytes": 151, "backward_bytes": 200, "step_bytes": 112, "step_end_bytes": 101}
    part = results.furthest_off([step], predicted, {"parameters": 100})
    assert part is not None  # backward adds 80 by the prediction and 99 by measurement
    assert (part.name, part.off_bytes) == ("what backward adds", -19)
    assert part.terms == ("saved activations", "reduce bucket")
    part = results.furthest_off([step | {"step_end_bytes": 10}], predicted, {"parameters": 100})
    assert part is not None
    assert (part.name, part.off_bytes) == ("what backward adds", -110)
    assert results.furthest_off([], predicted, {"parameters": 100}) is None


@pytest.mark.parametrize(
    ("message", "log", "line"),
    [
        ("RuntimeError: Error building extension 'fused_adam'", (), "CUDA toolkit"),
        ("RuntimeError: The NVIDIA driver on your system is too old (found version 11040)", (), "driver is too old"),
        ("RuntimeError: No CUDA GPUs are available", (), "no usable GPU"),
        ("ValueError: boom", ("nothing",), "^DeepSpeed failed in init: ValueError: boom$"),
    ],
)
def test_known_failures_say_what_to_do(message: str, log: tuple[str, ...], line: str) -> None:
    result = ask(FakeRunner(H200, failure=Failure("exception", message, "init", 0, None, log)))
    assert result.failure is not None
    pytest.importorskip("re").search(line, result.failure.message) or pytest.fail(result.failure.message)


def test_out_of_memory_names_the_largest_term_and_the_cheapest_change() -> None:
    failure = Failure("oom", "CUDA out of memory.", "backward", 0, 2**31)
    found = ask(FakeRunner(H200, failure=failure), gpu="a100-40gb").failure
    assert found is not None
    assert "39." in found.message or "38." in found.message or "37." in found.message  # GiB that were allowed
    assert "most of it " in found.message
    assert "try --micro-batch-size 1, --activation-checkpointing, ZeRO stage 3" in found.message


@pytest.mark.parametrize(
    ("module", "line"),
    [("mymodel", "package.file:function"), ("a b:c", "package.file:function"), ("m:1", "package.file:function")],
)
def test_a_module_is_named_as_a_function_of_a_file(module: str, line: str) -> None:
    with pytest.raises(InputError, match=line):
        check(CONFIG, module=module, gpus=2, runner=FakeRunner())
    with pytest.raises(InputError, match="leave --params"):
        check(CONFIG, module="a:b", model=TINY, gpus=2, runner=FakeRunner())
