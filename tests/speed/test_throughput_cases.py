"""Predicted step times against measured and published ones; benchmarks/speed/accuracy.py prints them case by case."""

import subprocess
import sys
from pathlib import Path
from statistics import median

import pytest

from benchmarks.memory.accuracy import read
from benchmarks.speed import accuracy as speed

REPO = Path(__file__).parents[2]

OWN = [row for path in speed.FILES[:-1] for row in read(path) if speed.timed(row)]
PUBLISHED = read(speed.FILES[-1])
RESULTS = [speed.result_of(row) for row in PUBLISHED]


def middle(results):
    return median(abs(result.error) for result in results)


def test_own_step_times():
    assert sum(row["name"].startswith("t-") for row in OWN) == 12
    assert middle(map(speed.result_of, OWN)) < 15


def test_published_tables():
    assert middle(RESULTS) < 25


@pytest.mark.parametrize("held_out", [False, True], ids=["looked at", "held out"])
def test_published_tables_by_who_saw_them(held_out):
    assert middle(result for result in RESULTS if result.held_out == held_out) < 25


def test_half_of_the_sources_are_within_the_bound_on_their_own():
    """One source with many rows must not carry the median."""
    sources = {result.source for result in RESULTS}
    assert median(middle(r for r in RESULTS if r.source == source) for source in sources) < 25


def test_every_case_says_where_it_was_read():
    assert len(PUBLISHED) >= 40
    assert len({row["source"] for row in PUBLISHED}) >= 4
    assert len({row["name"] for row in PUBLISHED}) == len(PUBLISHED)
    assert all(row["url"].startswith("https://") and row["date"] for row in PUBLISHED)
    assert {r.held_out for r in RESULTS} == {True, False}
    assert not {r.source for r in RESULTS if r.held_out} & {r.source for r in RESULTS if not r.held_out}


def test_the_cases_reach_many_nodes_consumer_cards_and_offload():
    jobs = [result.job for result in RESULTS]
    assert max(job.cluster.nodes for job in jobs) >= 64
    assert any(job.cluster.gpu.name == "RTX 4090" for job in jobs)
    assert any(job.settings.offload_optimizer == "cpu" for job in jobs)
    assert any(job.workload.quantize for job in jobs)


def test_a_models_parameters_are_those_of_its_source():
    """MPT without ALiBi is a GPT-2 with another activation: the tables give the count to the parameter."""
    given = [(row, result) for row, result in zip(PUBLISHED, RESULTS, strict=True) if "parameters" in row["published"]]
    assert len(given) > 200
    for row, result in given:
        assert result.job.model.num_params == row["published"]["parameters"], row["name"]


def tokens(row):
    return row["micro_batch_size"] * row["gradient_accumulation_steps"] * row["seq_len"]


@pytest.mark.parametrize("row", PUBLISHED, ids=lambda row: row["name"])
def test_seconds_are_what_the_published_figure_means(row):
    (seconds,) = row["measured"]["step_seconds"]
    sequences = tokens(row) / row["seq_len"] * row["world_size"]
    published = {
        "tokens_per_second_per_gpu": lambda figure: tokens(row) / figure,
        "samples_per_second": lambda figure: sequences / figure,
        "seconds_of_1024_samples": lambda figure: figure * sequences / 1024,
        "step_seconds": lambda figure: figure,
    }
    for figure, of in published.items():
        if figure in row["published"]:
            assert seconds == pytest.approx(of(row["published"][figure]), rel=1e-4)


def megatron_flops(row):
    """With recomputation (https://arxiv.org/abs/2104.04473, equation 3), of one GPU's step."""
    model, s = row["model"], row["seq_len"]
    layers, h = model["n_layer"], model["n_embd"]
    return 96 * tokens(row) * layers * h**2 * (1 + s / (6 * h) + model["vocab_size"] / (16 * layers * h))


def causal_flops(row):
    """Without recomputation, attention's lower triangle alone: what ml-engineering's benchmark counts."""
    m, s = row["model"], row["seq_len"]
    h, keys = m["hidden_size"], m["num_key_value_heads"] * 128
    layer = 3 * h * m["intermediate_size"] + h * (2 * h + 2 * keys)
    return 6 * s * (layer * m["num_hidden_layers"] + m["vocab_size"] * h) + 6 * s**2 * h * m["num_hidden_layers"]


def test_published_flops_are_counted_as_their_source_counts():
    given = [row for row in PUBLISHED if "tflops_per_gpu" in row["published"]]
    assert len(given) > 20
    for row in given:
        flops = megatron_flops(row) if row["model"]["model_type"] == "gpt2" else causal_flops(row)
        (seconds,) = row["measured"]["step_seconds"]
        assert seconds == pytest.approx(flops / row["published"]["tflops_per_gpu"] / 1e12, rel=1e-4), row["name"]


def test_rows_of_the_grid_are_read():
    """Its engine and adapters in its own words; DDP trains fp32 weights under autocast."""
    row = {**OWN[0], "world_size": 1, "lora_rank": 8, "engine": "deepspeed"}
    assert speed.job_of(row).model.lora_rank == 8
    plain = speed.job_of({**row, "lora_rank": 0, "engine": "ddp", "ds_config": {"bf16": {"enabled": True}}})
    assert (plain.settings.engine, plain.settings.precision, plain.model.lora_rank) == ("ddp", "autocast", 0)


def run(*words):
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.speed.accuracy", *words], cwd=REPO, capture_output=True, text=True
    )


def test_the_program_prints_both_tables_and_holds_its_bounds():
    printed = run("--strict")
    assert printed.returncode == 0, printed.stderr
    assert "t-llama1b-z2-w8-b8-s2048-ckpt" in printed.stdout
    assert "source: torchtitan, H100" in printed.stdout
    assert "mpt-7b" not in run("--summary").stdout


def test_a_file_that_is_no_case_file_ends_in_one_line(tmp_path):
    missing, broken = tmp_path / "none.jsonl", tmp_path / "broken.jsonl"
    broken.write_text('{"name": "x"}\n', encoding="utf-8")
    for file in (missing, broken):
        printed = run(str(file))
        assert printed.returncode == 1
        assert len(printed.stderr.splitlines()) == 1
        assert file.name in printed.stderr
