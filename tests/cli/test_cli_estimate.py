"""``dsconf estimate`` as a person runs it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import dsconf
from dsconf.cli import group

LLAMA = ("--model", "meta-llama/Llama-3.2-1B", "--gpus", "8", "--stage", "2")
ALWAYS = {
    "peak_bytes",
    "rank",
    "peak_phase",
    "init_peak_bytes",
    "between_steps_bytes",
    "reserved_bytes",
    "process_bytes",
    "host_bytes_per_node",
    "loading_host_bytes_per_node",
    "nvme_bytes_per_node",
    "terms",
    "parameters",
}


def run(*words: str) -> Result:
    return CliRunner().invoke(group, ["estimate", *words], prog_name="dsconf")


def answer(*words: str, code: int = 0) -> dict[str, Any]:
    """The JSON document, which is all there is on stdout."""
    result = run(*words, "--format", "json")
    assert result.exit_code == code, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_the_document_is_the_contracts() -> None:
    found = answer(*LLAMA)
    assert set(found) == ALWAYS
    assert sum(found["terms"].values()) == found["peak_bytes"]
    assert found["parameters"] == {"total": 1_235_814_400, "trainable": 1_235_814_400}
    assert found["peak_phase"] in ("forward", "backward", "step")
    assert all(isinstance(found[key], int) for key in ALWAYS - {"peak_phase", "terms", "parameters"})


def test_a_verdict_only_with_a_gpu_named() -> None:
    assert answer(*LLAMA, "--gpu", "h100-80gb")["fits"] == "yes"
    assert answer(*LLAMA, "--gpu-memory", "80GiB")["fits"] == "yes"
    assert "fits" not in answer(*LLAMA)


def test_what_does_not_fit_is_exit_1_and_still_answered() -> None:
    found = answer("--params", "70B", "--gpus", "8", "--stage", "2", "--gpu", "h100-80gb", code=1)
    assert found["fits"] == "no"
    assert found["peak_bytes"] > 80 * 2**30
    result = run("--params", "70B", "--gpus", "8", "--stage", "2", "--gpu", "h100-80gb")
    assert (result.exit_code, "Fits H100 SXM 80GB: no" in result.stdout) == (1, True)


def test_tight_is_between_the_peak_and_the_peak_with_headroom() -> None:
    first = answer(*LLAMA)["process_bytes"]
    bare = answer(*LLAMA, "--gpu-memory", f"{first}B")  # the links of a card this size are NCCL's too
    between = (bare["process_bytes"] + bare["peak_bytes"] + bare["process_bytes"] - bare["reserved_bytes"]) // 2
    assert answer(*LLAMA, "--gpu-memory", f"{between}B")["fits"] == "tight"
    assert answer(*LLAMA, "--gpu-memory", f"{bare['process_bytes'] + 2**20}B")["fits"] == "yes"
    assert answer(*LLAMA, "--gpu-memory", f"{bare['peak_bytes']}B", code=1)["fits"] == "no"


def test_the_table_shows_every_term_its_share_and_a_bar() -> None:
    found = answer(*LLAMA)
    text = run(*LLAMA).stdout
    for name, size in found["terms"].items():
        line = next(line for line in text.splitlines() if line.startswith(f"{name}  "))
        assert f"{size / 2**30:,.2f}" in line
        assert f"{100 * size / found['peak_bytes']:.1f} %" in line
        assert "█" in line
    shares = [float(share) for share in re.findall(r"([\d.]+) %", text)]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(100, abs=0.5)
    assert re.search(r"^(forward|backward|step) .+ [\d.]+$", text, re.MULTILINE)
    assert "expandable_segments:True" in text
    assert "Host memory of each node" in text


def test_the_model_is_named_with_its_shape() -> None:
    assert "16 layers of hidden size 2048" in run(*LLAMA).stdout
    assert "7B" in run("--params", "7B", "--gpus", "8", "--stage", "1").stdout


def test_without_a_stage_it_says_which_one_it_took() -> None:
    result = run("--params", "1B", "--gpus", "2", "--format", "json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)
    assert "this is ZeRO stage 2" in result.stderr
    assert run("--params", "1B", "--gpus", "2", "--stage", "2").stderr == ""


def test_explain_shows_one_term() -> None:
    found = answer(*LLAMA)
    for name, size in found["terms"].items():
        result = run(*LLAMA, "--explain", name)
        assert result.exit_code == 0
        assert result.stdout.startswith(f"{name}: {size:,} bytes")
        assert "allocated in" in result.stdout


def test_explain_of_a_term_that_is_not_there() -> None:
    result = run(*LLAMA, "--explain", "paramters")
    assert result.exit_code == 2
    assert result.stderr == "dsconf: --explain: the peak has no term 'paramters'; did you mean 'parameters'?\n"


def test_explain_shows_a_term_of_the_host() -> None:
    """A power of two for each of 8 processes, 4 bytes × 1 235 814 400 ÷ 8 rounded up."""
    text = run(*LLAMA, "--offload", "optimizer", "--explain", "gradients").stdout
    assert text.startswith(f"gradients, host memory of each process: {2**30:,} bytes")
    assert f"{8 * 2**30 / 1_235_814_400:.1f} bytes a parameter" in text
    assert "bytes of rounding pinned memory up to a power of two" in text
    assert "bytes a parameter" not in run(*LLAMA, "--offload", "optimizer", "--explain", "process").stdout
    assert "host memory" not in run(*LLAMA, "--explain", "parameters").stdout


@pytest.mark.parametrize(
    "words", [("--stage", "2", "--offload", "optimizer"), ("--stage", "3", "--offload", "optimizer+param")]
)
def test_every_term_of_the_host_can_be_explained(words: tuple[str, ...]) -> None:
    text = run(*LLAMA[:4], *words).stdout
    line = re.search(r"^Offload keeps ([\d.]+) bytes a parameter: (.+?)[.;]( |$)", text, re.M)
    assert line is not None
    each = [part.rpartition(" ") for part in line[2].rstrip(".").split(", ")]
    assert sum(float(size) for *_, size in each) == pytest.approx(float(line[1]), abs=0.3)
    for name, *_ in each:
        assert "bytes a parameter" in run(*LLAMA[:4], *words, "--explain", name).stdout
    assert "bytes a parameter" not in run(*LLAMA).stdout


def test_initialisation_is_said_first_where_it_fills_the_card() -> None:
    words = ("--model", "meta-llama/Llama-2-7b-hf", "--gpus", "4", "--stage", "3", "--offload", "optimizer+param")
    words = (*words, "--seq-len", "512", "--activation-checkpointing")
    first = run(*words, "--no-zero-init").stdout.splitlines()[1]
    assert first.startswith("Initialisation fills the card, not a step: it peaks at 12.55 GiB")
    assert "Built under deepspeed.zero.Init (--zero-init) it peaks at" in first
    assert run(*words).stdout.splitlines()[1].startswith("Peak of rank 0")


def test_what_more_gpus_do_not_divide() -> None:
    """By the answer for twice the GPUs: named terms are as large, the others at most two thirds."""
    words = ("--model", "meta-llama/Llama-2-7b-hf", "--stage", "3", "--gpus")
    text = run(*words, "8").stdout
    (line,) = re.findall(r"^More GPUs do not make these smaller: (.+)\.$", text, re.M)
    some, more = (answer(*words, gpus)["terms"] for gpus in ("8", "16"))
    for name, size in some.items():
        assert (more[name] > 0.99 * size) if name in line.split(", ") else (more[name] < 0.67 * size)
    states = sum(some[name] for name in ("parameters", "gradients", "master weights", "optimizer states"))
    assert f"Parameters, gradients and optimizer: {states / 2**30:.2f} GiB" in text


@pytest.mark.parametrize(("ratio", "said"), [(0.5, "1 of 3 stays"), (0.2, "2 of 3 stay"), (0.9, "0 of 3 stay")])
def test_a_ratio_is_said_in_sub_groups(ratio: float, said: str, tmp_path: Path) -> None:
    offload = {"offload_optimizer": {"device": "cpu", "ratio": ratio}}
    config = {"bf16": {"enabled": True}, "optimizer": {"type": "AdamW"}, "zero_optimization": {"stage": 3, **offload}}
    (tmp_path / "ds_config.json").write_text(json.dumps(config | {"train_micro_batch_size_per_gpu": 1}))
    text = run("--params", "2.7B", "--gpus", "1", "--config", str(tmp_path / "ds_config.json")).stdout
    assert f"moves whole sub-groups: {said} on the GPU" in text


def test_ranks() -> None:
    fullest = answer(*LLAMA)
    each = [answer(*LLAMA, "--rank", str(rank)) for rank in range(8)]
    assert [found["rank"] for found in each] == list(range(8))
    assert answer(*LLAMA, "--rank", "fullest") == fullest
    assert each[fullest["rank"]] == fullest


def test_a_config_says_what_the_options_say(tmp_path: Path) -> None:
    path = tmp_path / "ds_config.json"
    config = {
        "train_micro_batch_size_per_gpu": 3,
        "gradient_accumulation_steps": 2,
        "zero_optimization": {"stage": 2},
        "bf16": {"enabled": True},
        "optimizer": {"type": "AdamW"},
    }
    path.write_text(json.dumps(config), encoding="utf-8")
    model = ("--model", "gpt2", "--gpus", "4", "--seq-len", "512")
    options = ("--stage", "2", "--micro-batch-size", "3", "--gradient-accumulation-steps", "2")
    assert answer(*model, "--config", str(path)) == answer(*model, *options)
    wins = answer(*model, "--config", str(path), "--micro-batch-size", "1")
    assert wins["peak_bytes"] < answer(*model, "--config", str(path))["peak_bytes"]


@pytest.mark.parametrize(
    ("fewer", "more"),
    [
        (("--activation-checkpointing",), ("--no-activation-checkpointing",)),
        (("--attention", "sdpa"), ("--attention", "eager")),
        (("--seq-len", "512"), ("--seq-len", "1024")),
        (("--micro-batch-size", "1"), ("--micro-batch-size", "2")),
        (("--precision", "bf16"), ("--precision", "fp32")),
        (("--optimizer", "lion"), ("--optimizer", "adamw")),
        (("--offload", "optimizer"), ("--offload", "none")),
        (("--lora-rank", "8"), ()),
        (("--lora-rank", "8", "--quantize", "4bit"), ("--lora-rank", "8", "--quantize", "8bit")),
    ],
)
def test_each_option_counts(fewer: tuple[str, ...], more: tuple[str, ...]) -> None:
    assert answer(*LLAMA, *fewer)["peak_bytes"] < answer(*LLAMA, *more)["peak_bytes"]


def test_offload_is_on_the_host() -> None:
    words = ("--model", "meta-llama/Llama-3.2-1B", "--gpus", "8", "--stage", "3")
    bare = answer(*words)
    off = answer(*words, "--offload", "optimizer+param")
    # Master, gradients and moments, 4 + 4 + 8, 2 of 16-bit gradients and 2 of parameters, on the node's 8 ranks.
    assert off["host_bytes_per_node"] - bare["host_bytes_per_node"] >= 20 * 1_235_814_400
    assert off["peak_bytes"] < bare["peak_bytes"]


BAD = [
    ((), "give either --params SIZE or --model NAME_OR_PATH"),
    (("--params", "seventy", "--gpus", "8"), "--params: 'seventy' is not a count"),
    (("--params", "-7B", "--gpus", "8"), "--params: -7B is not a positive number"),
    (("--params", "7B", "--model", "gpt2", "--gpus", "8"), "not both"),
    (("--params", "7B"), "--gpus"),
    (("--params", "7B", "--gpus", "0"), "--gpus: 0 is not a positive whole number"),
    (("--params", "7B", "--gpus", "-1"), "--gpus: -1 is not a positive whole number"),
    (("--params", "7B", "--gpus", "8", "--seq-len", "0"), "--seq-len: 0 is not a positive whole number"),
    (("--params", "7B", "--gpus", "8", "--gpu", "h10o"), "did you mean"),
    (("--params", "7B", "--gpus", "8", "--gpu-memory", "lots"), "--gpu-memory: 'lots' is not a size"),
    (("--params", "7B", "--gpus", "8", "--stage", "4"), "--stage"),
    (("--params", "7B", "--gpus", "8", "--stage", "2", "--rank", "8"), "--rank: 8 is not one of 0 to 7"),
    (("--params", "7B", "--gpus", "8", "--stage", "2", "--rank", "first"), "neither 'fullest' nor a rank's number"),
    (("--params", "7B", "--gpus", "8", "--stage", "2", "--offload", "optimizer+param"), "needs stage 3"),
    (("--params", "7B", "--gpus", "8", "--config", "no-such.json"), "no-such.json"),
    (("--params", "7B", "--gpus", "8", "--attention", "fast"), "--attention"),
    (("--model", "meta-lama/Llama-3.1-8B", "--gpus", "8"), "did you mean 'meta-llama/Llama-3.1-8B'"),
]


@pytest.mark.parametrize(("words", "message"), BAD, ids=[" ".join(words) or "nothing" for words, _ in BAD])
def test_a_mistake_is_one_line_and_exit_2(words: tuple[str, ...], message: str) -> None:
    result = run(*(words or ("--gpus", "8")))
    assert result.exit_code == 2
    assert result.stdout == ""
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_stage_that_contradicts_the_config_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ds_config.json"
    path.write_text('{"train_batch_size": 8}', encoding="utf-8")
    result = run("--model", "gpt2", "--gpus", "8", "--config", str(path), "--stage", "2")
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1)
    assert "--stage: 2, but the config says 0" in result.stderr
    assert run("--model", "gpt2", "--gpus", "8", "--config", str(path), "--stage", "0").exit_code == 0


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"text"'])
def test_a_config_that_is_none_is_one_line_and_exit_2(text: str, tmp_path: Path) -> None:
    path = tmp_path / "ds_config.json"
    path.write_text(text, encoding="utf-8")
    result = run("--model", "gpt2", "--gpus", "8", "--config", str(path))
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1)
    assert "ds_config.json" in result.stderr


@pytest.mark.parametrize("family", ["starcoder2", "gptj", "gpt_neo"])
def test_every_family_that_is_read_is_estimated(family: str, tmp_path: Path) -> None:
    sizes = {
        "gptj": {"n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 40, "rotary_dim": 8},
        "gpt_neo": {"hidden_size": 64, "num_layers": 2, "num_heads": 4, "max_position_embeddings": 40},
        "starcoder2": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96},
    }[family]
    if family == "gpt_neo":
        sizes = {**sizes, "attention_types": [[["global", "local"], 1]]}  # type: ignore[dict-item]
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model_type": family, "vocab_size": 101, **sizes}), encoding="utf-8")
    result = run("--model", str(path), "--gpus", "8", "--stage", "2", "--seq-len", "32")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output


def test_python_says_the_same() -> None:
    found = dsconf.estimate(model="meta-llama/Llama-3.2-1B", gpus=8, stage=2)
    assert found.peak_bytes == answer(*LLAMA)["peak_bytes"]
    assert {term.name: term.num_bytes for term in found.peak.terms} == answer(*LLAMA)["terms"]


def test_as_a_process() -> None:
    """The answer alone on stdout, nothing on stderr, and no torch imported on the way."""
    program = (
        "import sys; from dsconf.cli import group\n"
        "try: group(prog_name='dsconf')\n"
        "finally: print([m for m in ('torch', 'deepspeed', 'transformers') if m in sys.modules], file=sys.stderr)"
    )
    command = [sys.executable, "-c", program, "estimate", *LLAMA, "--format", "json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=os.environ)
    assert (done.returncode, done.stderr) == (0, "[]\n")
    assert json.loads(done.stdout) == answer(*LLAMA)
