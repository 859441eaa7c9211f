"""With a model and GPUs, ``validate`` says what ``estimate`` says."""

from __future__ import annotations

import pytest

import dsconf
from dsconf.api import estimate, read_asked, validate
from dsconf.cluster.read import read_cluster
from dsconf.errors import InputError
from dsconf.memory.fit import verdict
from dsconf.model.read import read_model
from dsconf.units import format_bytes

CONFIG = {
    "train_micro_batch_size_per_gpu": 2,
    "gradient_clipping": 1.0,
    "bf16": {"enabled": True},
    "zero_optimization": {"stage": 2},
}
JOB = {"params": "7B", "gpus": 8, "seq_len": 1024}


def fits(config=CONFIG, **words):
    (report,) = validate(config, **{**JOB, **words}).files
    return [(f.code, f.severity, f.message) for f in report.findings if f.code.startswith("DS9")]


@pytest.mark.parametrize("memory", ["20GiB", "41GiB", "80GiB"])
def test_the_severity_is_the_verdict_of_the_estimate(memory):
    found = estimate(**JOB, gpu_memory=memory, config=CONFIG)
    gpu = read_cluster(8, None, memory).gpu
    answer = verdict(found, gpu)
    ((code, severity, message),) = fits(gpu_memory=memory)
    assert (code, severity) == ("DS901", {"yes": "note", "tight": "warning", "no": "error"}[answer])
    assert f"a GPU needs {format_bytes(found.process_bytes)} of {format_bytes(gpu.memory_bytes)}" in message


def test_all_three_verdicts_come_out():
    needed = estimate(**JOB, gpu_memory="80GiB", config=CONFIG).process_bytes
    severities = [fits(gpu_memory=size)[0][1] for size in (needed // 2, needed - 2**20, needed + 2**20)]
    assert severities == ["error", "warning", "note"]


def test_a_node_with_too_little_memory():
    config = {**CONFIG, "zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}
    assert [code for code, *_ in fits(config, gpu="h100", host_memory="1TiB")] == ["DS901"]
    codes = {code: severity for code, severity, _ in fits(config, gpu="h100", host_memory="32GiB")}
    assert codes["DS902"] == "error"


def test_the_batch_and_the_sequence_are_those_of_the_job():
    message = fits(gpu="h100", micro_batch_size=3, seq_len=512)[0][2]
    assert "micro-batch 3, 512 tokens" in message
    assert "micro-batch 2, 1024 tokens" in fits(gpu="h100")[0][2]


def test_auto_is_filled_in_as_the_trainer_does():
    config = {**CONFIG, "train_micro_batch_size_per_gpu": "auto", "bf16": {"enabled": "auto"}}
    assert "micro-batch 4," in fits(config, gpu="h100", micro_batch_size=4)[0][2]


def test_a_config_that_cannot_be_estimated_is_a_note():
    ((code, severity, message),) = fits({**CONFIG, "zero_optimization": {"stage": "two"}}, gpu="h100")
    assert (code, severity) == ("DS901", "note")
    assert message.startswith("cannot say whether it fits: zero_optimization.stage")


def test_without_a_model_there_is_no_such_finding():
    assert dsconf.validate(CONFIG, gpus=8).files[0].findings == ()


def test_the_model_reaches_the_rules():
    """A rule about buckets needs to know how large the model is."""
    asked = read_asked(8, None, params="7B")
    assert asked.model_params == read_model(params="7B").parameters.total()


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ({"params": "7B"}, "--gpus: give the total number"),
        ({"lora_rank": 8}, "--lora-rank: says whether the job fits"),
        ({"gpu": "h100"}, "--gpu: says whether the job fits"),
        ({"params": "7B", "gpus": 8, "gpu": "h1000"}, "h1000"),
    ],
)
def test_words_that_do_not_go_together(words, problem):
    with pytest.raises(InputError, match=problem):
        validate(CONFIG, **words)
