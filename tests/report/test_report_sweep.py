"""What a sweep prints, with a small memory and speed model in place of the real ones."""

from __future__ import annotations

import json

import pytest
from search_fakes import FAKES
from search_said import codes, figures

from dsconf.report.as_json import document
from dsconf.report.sweep import sweep_json, sweep_text
from dsconf.search.names import name
from dsconf.search.sweep import Sweep, conclusions, sweep

WORDS = {"params": "13B", "gpu_memory": "40GiB", "offload": "none", "tools": FAKES}
CONFIGS = {gpus: f"run/{gpus}-gpus/ds_config.json" for gpus in (1, 8, 16, 32, 64)}


def lines(found: Sweep) -> list[str]:
    return sweep_text(found, "the shape", {16: ["run/16-gpus/ds_config.json"]}, CONFIGS).splitlines()


def test_a_row_for_each_number_and_what_follows() -> None:
    found = sweep([1, 8, 16], **WORDS, tokens="1T", price=2.5)
    text = lines(found)
    assert text[0] == "the shape"
    assert text[1].startswith("GPUs: ")
    assert text[1].endswith(", up to 8 in a node, network 400 Gbit/s a GPU (assumed, --network)")
    rows = {int(line.split()[0]): line for line in text if line.split()[:1] in (["1"], ["8"], ["16"])}
    assert sorted(rows) == [1, 8, 16]
    assert rows[1].split()[1:] == ["-", "-", "-", "-", "-", "no"]
    assert "100 %" in rows[8]
    cost = found.rows[1].found.cost
    assert cost is not None
    assert rows[8].split()[-3] == f"{cost.hours:,.0f}"
    assert "Fastest and cheapest: 16 GPUs." in text
    assert any(line.startswith("On 1: Nothing fits. The nearest, ") for line in text)
    assert text[text.index("Wrote run/16-gpus/ds_config.json") + 1] == "Launch:"
    assert text[-1].endswith("run/16-gpus/ds_config.json")


def test_without_tokens_there_are_no_costs() -> None:
    text = "\n".join(lines(sweep([8, 16], **WORDS)))
    assert "hours" not in text
    assert "cost" not in text
    assert "cost" in "\n".join(lines(sweep([8, 16], **WORDS, tokens="1B", price=1)))
    hours_alone = "\n".join(lines(sweep([8, 16], **WORDS, tokens="1B")))
    assert "hours" in hours_alone
    assert "cost" not in hours_alone


def test_numbers_that_bring_nothing_and_batches_that_differ_are_said() -> None:
    words = {"params": "125M", "gpu": "rtx-4090", "seq_len": 128}
    told = list(conclusions(sweep([8, 16], **words, global_batch_size=16, gpus_per_node=16)))
    useless = figures(told, "sweep_brings_nothing")
    assert (useless["gpus"], useless["fewer"], useless["waits"]["part"]) == (16, 8, "launch")
    assert "sweep_batches_differ" not in codes(told)
    both = sweep([8, 16], **words)
    batches = sorted(row.found.recommended.global_batch for row in both.rows if row.found.recommended is not None)
    assert figures(conclusions(both), "sweep_batches_differ") == {"least": batches[0], "most": batches[1]}
    nothing = sweep([1], params="70B", gpu_memory="16GiB", offload="none", tools=FAKES)
    assert codes(conclusions(nothing)) == ["sweep_nothing_fits"]


def test_what_a_gpu_gives_among_more_is_compared_between_rows_that_train_alike() -> None:
    """70B on L40S: 8 to 32 offload to the host, 64 need not; more than 100 % has its reason."""
    rows = sweep([8, 32, 64], params="70B", gpu="l40s")
    told = list(conclusions(rows))
    eight, *_, most = (row.found.recommended for row in rows.rows)
    assert eight is not None
    assert most is not None
    assert eight.offloads > 0 == most.offloads
    above = figures(told, "sweep_each_gives_more")
    assert (above["gpus"], above["fewer"]) == (64, 8)
    assert above["gain"] > 0
    assert (above["config_of_fewer"]["name"], above["config"]["name"]) == (name(eight), name(most))
    assert "sweep_brings_nothing" not in codes(told)


def test_a_gpu_that_gives_much_less_among_more_is_said_with_what_it_waits_for() -> None:
    words = {"params": "1.3B", "gpu": "a10", "global_batch_size": 64, "seq_len": 512}
    rows = sweep([8, 64], **words)
    eight, most = rows.rows
    each = most.tokens_per_second / 64 / (eight.tokens_per_second / 8)
    assert each < 0.8
    said = figures(conclusions(rows), "sweep_each_gives_less")
    assert (said["gpus"], said["fewer"], said["waits"]["gpus"]) == (64, 8, 64)
    assert said["gain"] == pytest.approx(each - 1)


def test_json_has_a_row_for_each_number_with_the_keys_of_a_single_answer() -> None:
    found = sweep([1, 8, 16], **WORDS, tokens="1T", price=2.5)
    answered = json.loads(document(sweep_json(found, {8: ["a"], 16: ["b"]}, CONFIGS)))
    assert [row["gpus"] for row in answered["sweep"]] == [1, 8, 16]
    assert [row["fits"] for row in answered["sweep"]] == ["no", "yes", "yes"]
    assert answered["sweep"][0]["recommended"] is answered["sweep"][0]["cost"] is None
    for row in answered["sweep"][1:]:
        assert {"config", "estimate", "step_seconds", "tokens_per_second", "fits", "why"} <= set(row["recommended"])
        assert row["tokens_per_second"] == row["recommended"]["tokens_per_second"]
        assert set(row["cost"]) == {"hours", "gpu_hours", "price"}
        assert row["launch"][-1].endswith(f"run/{row['gpus']}-gpus/ds_config.json")
    assert (answered["fastest"], answered["cheapest"], answered["files"]) == (16, 16, ["a", "b"])
    assert (answered["tokens"], answered["price"]) == (10**12, 2.5)


def test_the_cores_named_are_those_of_the_largest_number() -> None:
    words = {"params": "13B", "gpu": "rtx-4090", "offload": "optimizer", "host_memory": "2TiB"}
    (line,) = (line for line in lines(sweep([1, 8, 16], **words)) if line.startswith("GPUs: "))
    assert "64 CPU cores a node (assumed, --cpu-cores)" in line
