"""What ``recommend`` prints, with a small memory and speed model in place of the real ones."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from search_fakes import FAKES, fake_cluster, fake_model

from dsconf import recommend
from dsconf.live.processes.launcher import Failure
from dsconf.live.result import CheckResult, Figures
from dsconf.report.as_json import document, estimate_json, recommendation_json
from dsconf.report.model import model_sentence
from dsconf.report.recommendation import check_sentence, cluster_sentence, recommendation_text
from dsconf.search.answer import Recommendation
from dsconf.search.constraints import Constraints
from dsconf.search.question import Question
from dsconf.search.recommend import answer
from dsconf.units import GIB

SMALL = fake_model(2048, 16)


@pytest.fixture(scope="module")
def found() -> Recommendation:
    return answer(Question(SMALL, fake_cluster(8), Constraints(), 8, FAKES, lambda rank: SMALL), "deepspeed")


@pytest.fixture(scope="module")
def nothing() -> Recommendation:
    question = Question(SMALL, fake_cluster(8, GIB), Constraints(offload="none"), 8, FAKES, lambda rank: SMALL)
    return answer(question, "deepspeed")


def test_the_text_has_facts_table_reasons_files_and_launch(found: Recommendation) -> None:
    lines = recommendation_text(found, "the shape", ["run/ds_config.json"], "run/ds_config.json").splitlines()
    assert lines[:2] == ["the shape", "GPUs: 8 × fake-gpu, 80.00 GiB each"]
    table = lines[: lines.index("")] + lines[3 : lines.index("", 3)]
    rows = [line for line in table if line.startswith(("torch DDP", "DeepSpeed stage", "ZeRO stage"))]
    assert len(rows) == 18, "on eight GPUs of 80 GiB all fit; the six with states in bf16 are not needed"
    bf16 = "those with bf16 states, which nothing here needs"
    assert f"6 more combinations are in the JSON: those that miss by more, and {bf16}." in lines
    assert sum("recommended" in row for row in rows) == 1
    assert f"{found.examined} candidates examined, {found.ruled_out} larger micro-batches ruled out" in "\n".join(lines)
    assert lines[-3:-1] == ["Wrote run/ds_config.json", "Launch:"]
    assert lines[-1].endswith("--deepspeed_config run/ds_config.json")


def test_without_an_answer_there_is_no_launch_line(nothing: Recommendation) -> None:
    text = recommendation_text(nothing, "the shape", [], "ds_config.json")
    assert len([line for line in text.splitlines() if " too much on each GPU" in line]) == 8 + 1
    assert "8 more combinations are in the JSON: those that miss by more." in text
    assert "\nNothing fits." in text
    assert "Launch" not in text
    assert "recommended" not in text.lower()


def test_json_has_the_contract_keys(found: Recommendation) -> None:
    answered: dict[str, Any] = json.loads(document(recommendation_json(found, "ds_config.json", ["ds_config.json"])))
    assert {"recommended", "candidates", "launch", "files", "examined"} <= set(answered)
    for candidate in (answered["recommended"], *answered["candidates"]):
        keys = {"config", "estimate", "step_seconds", "tokens_per_second", "fits", "why"}
        assert keys <= set(candidate)
        assert sum(candidate["estimate"]["terms"].values()) == candidate["estimate"]["peak_bytes"]
        assert (candidate["config"] is None) == candidate["name"].startswith("torch DDP")
    assert answered["files"] == ["ds_config.json"]


def test_json_of_a_no(nothing: Recommendation) -> None:
    answered = recommendation_json(nothing, "ds_config.json", [])
    assert answered["recommended"] is None
    assert answered["launch"] == []
    assert all(candidate["fits"] == "no" for candidate in answered["candidates"])


def test_estimate_json_says_fits_only_when_asked(found: Recommendation) -> None:
    estimate = found.candidates[0].estimate
    assert "fits" not in estimate_json(estimate, SMALL)
    assert estimate_json(estimate, SMALL, "yes")["fits"] == "yes"
    assert estimate_json(estimate, SMALL)["parameters"] == {
        "total": SMALL.num_params,
        "trainable": SMALL.num_params,
    }


def test_a_named_model_is_described_without_a_rule() -> None:
    assert model_sentence(SMALL) == (
        "fake: llama, 16 layers of hidden size 2048, 16 heads, vocabulary 32000: 871M parameters."
    )
    sparse = replace(SMALL, experts=8, experts_per_token=2)
    assert "16 heads, 8 experts (2 a token), vocabulary" in model_sentence(sparse)


def test_several_nodes_and_the_host_are_named() -> None:
    assert cluster_sentence(fake_cluster(16, host=512 * GIB)) == (
        "GPUs: 16 × fake-gpu, 80.00 GiB each in 2 nodes, 512.00 GiB of host memory a node, "
        "network 400 Gbit/s a GPU (assumed, --network)"
    )


def test_what_offload_rests_on_is_said() -> None:
    fixed = Constraints(offload="optimizer")
    found = answer(Question(SMALL, fake_cluster(8), fixed, 8, FAKES, lambda rank: SMALL), "deepspeed", False)
    hosts = (
        "64 CPU cores a node (assumed, --cpu-cores)",
        "300 GB/s of host memory bandwidth a node (assumed, --host-bandwidth)",
    )
    text = recommendation_text(found, "the shape", [], "ds_config.json").splitlines()
    assert text[1] == f"GPUs: 8 × fake-gpu, 80.00 GiB each, {', '.join(hosts)}"
    assert found.assumption == "; ".join(hosts)
    cluster = recommendation_json(found, "ds_config.json", [])["cluster"]
    assert cluster["network_bytes_per_second"] == 50_000_000_000
    assert (cluster["cpu_cores"], cluster["host_bandwidth_bytes_per_second"]) == (64, 300_000_000_000)


def test_a_check_is_one_sentence() -> None:
    done = CheckResult(True, "real", Figures(103 * GIB // 100), Figures(GIB), error_percent=3.0, device="NVIDIA H200")
    assert check_sentence(done) == (
        "Check: real steps ran on NVIDIA H200: measured peak 1.00 GiB, predicted 1.03 GiB (+3.0 %)."
    )
    failed = CheckResult(False, "real", failure=Failure("oom", "out of memory in forward"))
    assert check_sentence(failed) == "Check: out of memory in forward"


def test_the_recommended_candidate_has_the_first_row(found: Recommendation) -> None:
    """Though another one of its combination, with finer settings of its own, is a little faster."""
    assert found.recommended is not None
    other = found.recommended._replace(job=replace(found.recommended.job))
    twice = found._replace(candidates=(other, *found.candidates))
    rows = recommendation_json(twice, "ds_config.json", [])["candidates"]
    assert rows[0]["why"] == "recommended"
    assert sum(row["why"] == "recommended" for row in rows) == 1
    lines = recommendation_text(twice, "the shape", [], "ds_config.json").splitlines()
    assert lines[6].endswith("recommended")


def test_the_front_shows_where_the_recommended_config_stands() -> None:
    """Stage 1 is 3 % faster with a little less memory, and so on the front; the plainer stage 0 stands beside it."""
    found = recommend(params="125M", gpus=2, gpu="a100-40gb")
    assert not any(point is found.recommended for point in found.pareto)
    lines = recommendation_text(found, "the shape", [], "ds_config.json").splitlines()
    start = next(at for at, line in enumerate(lines) if line.startswith("Speed against memory, the Pareto front ("))
    assert lines[start].endswith(" configs that no other beats in both, and the recommended one):")
    front = lines[start + 4 : lines.index("", start)]
    assert [line.split("  ")[0] for line in front if line.endswith("recommended")] == ["DeepSpeed stage 0"]
    offloaded = [line for line in front if " on cpu " in line]
    assert offloaded
    assert all(line.endswith("if the host has the memory") for line in offloaded)
