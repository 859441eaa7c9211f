"""One door: every word is declared once, means the same everywhere, and is refused in one sentence."""

from __future__ import annotations

import ast
import json
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import dsconf
from dsconf import request
from dsconf.cli import group
from dsconf.errors import InputError
from dsconf.read_job import offload_of, read_job
from dsconf.search.stages import stages
from dsconf.word import option_of, read, words_of

CONFIG = {"train_micro_batch_size_per_gpu": 1, "bf16": {"enabled": True}, "zero_optimization": {"stage": 2}}
KINDS = [kind for name, kind in vars(request).items() if name.endswith("Words")]
# What a person says of a job, whichever command is asked about it.
VOCABULARY = {
    "offload",
    "precision",
    "optimizer",
    "seq_len",
    "micro_batch_size",
    "gradient_accumulation_steps",
    "activation_checkpointing",
    "attention",
    "load_dtype",
    "zero_init",
    "lora_rank",
    "quantize",
    "allocator",
    "sequence_parallel",
    "tiled_loss",
    "host_memory",
    "gpu",
    "gpu_memory",
    "gpus_per_node",
}


def run(*words: str, given: str | None = None) -> Any:
    return CliRunner().invoke(group, [*words], prog_name="dsconf", input=given)


def test_each_word_is_declared_once() -> None:
    classes = [node for node in ast.parse(Path(request.__file__).read_text()).body if isinstance(node, ast.ClassDef)]
    fields = [ast.unparse(field.target) for kind in classes for field in kind.body if isinstance(field, ast.AnnAssign)]
    # A live module and a function that makes one; one number of GPUs and several.
    assert {name for name in fields if fields.count(name) > 1} == {"module", "gpus"}


@pytest.mark.parametrize("command", ["estimate", "recommend", "stages", "validate", "check"])
def test_every_command_that_takes_a_job_takes_the_whole_vocabulary(command: str) -> None:
    options = {param.name: param for param in import_module(f"dsconf.cli.{command}").command.params}
    assert set(options) >= VOCABULARY
    known = {name: word for kind in KINDS for name, word in words_of(kind).items()}
    for name in VOCABULARY:
        assert options[name].opts == [option_of(name, known[name])]


def test_a_planner_takes_the_vocabulary_too() -> None:
    assert set(words_of(request.PlanWords)) >= VOCABULARY - set(words_of(request.BatchWords))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ({"seq_len": 0}, "--seq-len: 0 is not a positive whole number"),
        ({"micro_batch_size": -1}, "--micro-batch-size: -1 is not a positive whole number"),
        ({"attention": "sdp"}, "--attention: 'sdp' is not one of sdpa, eager, flash; did you mean 'sdpa'?"),
        ({"offload": "optimiser"}, "--offload: 'optimiser' is not one of none, optimizer, optimizer+param, nvme"),
        ({"stage": 4}, "--stage: 4 is not one of 0, 1, 2, 3"),
        ({"stage": 2, "offload": "optimizer+param"}, "--offload: optimizer+param needs stage 3, not 2"),
        ({"stage": 0, "offload": "optimizer"}, "--offload: optimizer needs stage 1, 2 or 3, not 0"),
        ({"stage": 3, "offload": "nvme"}, "--offload: nvme needs --nvme PATH"),
        ({"quantize": "4bit"}, "--quantize 4bit: quantized weights are frozen; say --lora-rank"),
        ({"tiled_loss": "many"}, "--tiled-loss: 'many' is neither 'auto' nor a number of shards"),
        ({"gpu_memory": 24}, "--gpu-memory: 24 is 24 bytes; did you mean 24GiB?"),
    ],
)
def test_the_command_line_and_python_refuse_in_one_sentence(words: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError) as refused:
        dsconf.estimate(params="1B", gpus=8, **words)
    assert str(refused.value).startswith(sentence)
    options = [part for name, value in words.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    result = run("estimate", "--params", "1B", "--gpus", "8", *options)
    assert (result.exit_code, result.stderr) == (2, f"dsconf: {refused.value}\n")


def test_a_misspelt_word_of_python_names_the_nearest() -> None:
    misspelt: dict[str, Any] = {"micro_batchsize": 2}
    with pytest.raises(TypeError, match="'micro_batchsize'; did you mean 'micro_batch_size'"):
        dsconf.estimate(params="1B", gpus=8, **misspelt)


def test_what_has_been_read_can_be_read_again() -> None:
    """The command line reads its options, and the function behind it reads what it is given."""
    said = {"stage": "3", "seq_len": "4096", "offload": "param", "optimizer": "AdamW"}
    once = read(request.JobWords, said)
    assert read(request.JobWords, once) == once
    assert (once["stage"], once["seq_len"]) == (3, 4096)
    assert (once["offload"], once["optimizer"]) == ("optimizer+param", "adamw")


def test_a_config_on_standard_input_is_read_once() -> None:
    words = ("estimate", "--params", "1B", "--gpus", "2", "--config", "-", "--sequence-parallel", "2")
    result = run(*words, "--format", "json", given=json.dumps(CONFIG))
    assert result.exit_code == 0, result.stderr
    shared = dsconf.estimate(params="1B", gpus=2, config=CONFIG, sequence_parallel=2)
    assert json.loads(result.stdout)["peak_bytes"] == shared.peak_bytes


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({"stage": 3}, "--stage: 3, but the config says 2"),
        ({"precision": "fp16"}, "--precision: fp16, but the config says bf16"),
        ({"offload": "optimizer"}, "--offload: optimizer, but the config says none"),
    ],
)
def test_a_word_must_agree_with_the_config(words: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        read_job(params="1B", gpus=8, config=CONFIG, **words)
    (report,) = dsconf.validate(CONFIG, gpus=8, params="1B", **words).files
    assert [says in finding.message for finding in report.findings if finding.code == "DS901"] == [True]


def test_a_word_that_agrees_with_the_config_changes_nothing() -> None:
    alone = read_job(params="1B", gpus=8, config=CONFIG)
    agreeing = read_job(params="1B", gpus=8, config=CONFIG, stage=2, precision="bf16", offload="none")
    assert (agreeing.settings, agreeing.workload) == (alone.settings, alone.workload)


@pytest.mark.parametrize("offload", request.OFFLOADS)
def test_the_word_for_an_offload_is_found_again(offload: str) -> None:
    job = read_job(params="1B", gpus=8, stage=3, offload=offload, nvme="/disk")
    assert offload_of(job.settings) == offload


def test_the_answer_of_recommend_can_be_asked_of_estimate() -> None:
    """The words that a search chose mean the same to an estimate."""
    words: dict[str, Any] = {"params": "7B", "gpus": 8, "gpu": "h100-80gb", "offload": "optimizer+param"}
    winner = dsconf.recommend(
        **words, tiled_loss=4, load_dtype="fp32", zero_init=False, allocator="default"
    ).recommended
    assert winner is not None
    workload = winner.workload
    assert (workload.loss_shards, workload.load_dtype, workload.zero_init, workload.allocator) == (
        4,
        "fp32",
        False,
        "default",
    )
    assert offload_of(winner.settings) == "optimizer+param"


def test_recommend_keeps_to_an_accumulation() -> None:
    words: dict[str, Any] = {"params": "1B", "gpus": 8, "gpu": "h100-80gb"}
    candidates = dsconf.recommend(**words, gradient_accumulation_steps=4, global_batch_size=64).candidates
    assert {(each.workload.micro_batch, each.workload.accumulation) for each in candidates} == {(2, 4)}
    with pytest.raises(InputError, match="--gradient-accumulation-steps 3: does not make --global-batch-size 64"):
        dsconf.recommend(**words, gradient_accumulation_steps=3, global_batch_size=64)


def test_stages_offload_where_they_can_and_share_sequences() -> None:
    rows = stages(params="7B", gpus=8, gpu="h100-80gb", offload="optimizer").rows
    assert [row.candidate.settings.offload_optimizer for row in rows] == ["none", "cpu", "cpu", "cpu"]
    shown = run("stages", "--params", "7B", "--gpus", "8", "--gpu", "h100-80gb", "--offload", "optimizer").stdout
    assert "Offload: optimizer, at the stages that allow it: 1, 2, 3" in shown
    shared = stages(params="7B", gpus=8, gpu="h100-80gb", seq_len=32768, sequence_parallel=4).rows
    whole = stages(params="7B", gpus=8, gpu="h100-80gb", seq_len=32768).rows
    assert shared[3].candidate.estimate.peak_bytes < whole[3].candidate.estimate.peak_bytes
