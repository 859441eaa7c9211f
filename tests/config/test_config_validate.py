"""Findings: right code, right place, one for each cause, and none on a good config."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsconf.config.validate import validate
from dsconf.errors import InputError

NVME = {"device": "nvme", "nvme_path": "/disk"}
GOOD = {
    "train_micro_batch_size_per_gpu": 4,
    "bf16": {"enabled": True},
    "zero_optimization": {"stage": 3, "offload_param": NVME, "stage3_max_live_parameters": 1e9},
    "optimizer": {"type": "AdamW", "params": {"lr": 1e-4, "betas": [0.9, 0.95]}},
    "scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 100}},
}


HINTS = {"DS204", "DS306", "DS321", "DS410", "DS411", "DS601", "DS603", "DS604"}
"""Notes on what a config leaves to a default; most of those below have one."""


def findings(config, **words):
    return tuple(f for f in validate(config, **words).files[0].findings if f.code not in HINTS)


def codes(config, **words):
    return [(finding.code, finding.severity, finding.path) for finding in findings(config, **words)]


def zero(stage, **keys):
    return {"train_batch_size": 8, "zero_optimization": {"stage": stage, **keys}}


def test_a_good_config_has_no_finding():
    assert validate(GOOD, gpus=8).valid
    assert findings(GOOD, gpus=8) == ()


# Each row: the config with the fault, the same without it, and the one finding between them.
RULES = [
    ({}, {"train_batch_size": 8}, ("DS201", "error", "")),
    ({"gradient_accumulation_steps": 2}, {"train_batch_size": 8}, ("DS201", "error", "")),
    (
        {"train_batch_size": 30, "train_micro_batch_size_per_gpu": 4},
        {"train_batch_size": 32, "train_micro_batch_size_per_gpu": 4},
        ("DS202", "error", "train_batch_size"),
    ),
    ({"train_batch_size": 12}, {"train_batch_size": 24}, ("DS202", "error", "train_batch_size")),
    (
        {"train_batch_size": 64, "train_micro_batch_size_per_gpu": 4, "gradient_accumulation_steps": 1},
        {"train_batch_size": 32, "train_micro_batch_size_per_gpu": 4, "gradient_accumulation_steps": 1},
        ("DS202", "error", "train_batch_size"),
    ),
    (
        zero(1, cpu_offload=True),
        zero(1, offload_optimizer={"device": "cpu"}),
        ("DS107", "warning", "zero_optimization.cpu_offload"),
    ),
    (
        {"train_batch_size": 8, "zero_optimization": True},
        zero(1),
        ("DS107", "warning", "zero_optimization"),
    ),
    (
        {"train_batch_size": 8, "bfloat16": {"enabled": True}},
        {"train_batch_size": 8, "bf16": {"enabled": True}},
        ("DS107", "warning", "bfloat16"),
    ),
    (
        {"train_batch_size": 8, "bf16": {}, "bfloat16": {"enabled": True}},
        {"train_batch_size": 8, "bf16": {}},
        ("DS502", "error", "bfloat16"),
    ),
    (zero(2, allgather_partitions=True), zero(2), ("DS109", "note", "zero_optimization.allgather_partitions")),
    (
        zero(3, max_live_parameters=1, stage3_max_live_parameters=2),
        zero(3, stage3_max_live_parameters=2),
        ("DS302", "error", "zero_optimization.max_live_parameters"),
    ),
    (
        zero(2, stage3_max_live_parameters=2),
        zero(3, stage3_max_live_parameters=2),
        ("DS303", "warning", "zero_optimization.stage3_max_live_parameters"),
    ),
    (
        zero(2, offload_param={"device": "cpu"}),
        zero(3, offload_param={"device": "cpu"}),
        ("DS401", "error", "zero_optimization.offload_param"),
    ),
    (
        zero(0, offload_optimizer={"device": "cpu"}),
        zero(1, offload_optimizer={"device": "cpu"}),
        ("DS402", "error", "zero_optimization.offload_optimizer"),
    ),
    (
        zero(3, offload_param={"device": "nvme"}),
        zero(3, offload_param=NVME),
        ("DS403", "error", "zero_optimization.offload_param.device"),
    ),
    (
        zero(2, offload_optimizer=NVME),
        zero(3, offload_optimizer=NVME),
        ("DS404", "error", "zero_optimization.offload_optimizer.device"),
    ),
    (
        zero(2, offload_optimizer={"device": "cpu", "ratio": 0.5}),
        zero(3, offload_optimizer={"device": "cpu", "ratio": 0.5}),
        ("DS405", "error", "zero_optimization.offload_optimizer.ratio"),
    ),
    (
        {"train_batch_size": 8, "bf16": {"enabled": True}, "fp16": {"enabled": "yes"}},
        {"train_batch_size": 8, "bf16": {"enabled": True}, "fp16": {"enabled": False}},
        ("DS501", "error", "fp16.enabled"),
    ),
    (
        {**zero(0), "bf16": {"enabled": True, "bf16_master_weights_and_grads": True}},
        {
            **zero(1, offload_optimizer={"device": "cpu"}),
            "bf16": {"enabled": True, "bf16_master_weights_and_grads": True},
        },
        ("DS503", "error", "bf16.bf16_master_weights_and_grads"),
    ),
    (
        {**zero(1), "bf16": {"bf16_optimizer_states": True}},
        {**zero(1), "bf16": {"bf16_optimizer_states": True, "bf16_master_weights_and_grads": True}},
        ("DS504", "error", "bf16.bf16_optimizer_states"),
    ),
    (
        {"train_batch_size": 8, "optimizer": {"type": "OneBitAdam"}},
        {"train_batch_size": 8, "optimizer": {"type": "AdamW"}},
        ("DS105", "error", "optimizer.type"),
    ),
    (
        {"train_batch_size": 8, "optimizer": {"type": "Addam"}},
        {"train_batch_size": 8, "optimizer": {"type": "adam"}},
        ("DS511", "error", "optimizer.type"),
    ),
    (
        {"train_batch_size": 8, "scheduler": {"type": "warmuplr", "params": {}}},
        {"train_batch_size": 8, "scheduler": {"type": "WarmupLR", "params": {}}},
        ("DS512", "error", "scheduler.type"),
    ),
    (
        {"train_batch_size": 8, "optimizer": {"type": "Adam", "params": {"learning_rate": 1}}},
        {"train_batch_size": 8, "optimizer": {"type": "Adam", "params": {"lr": 1}}},
        ("DS513", "error", "optimizer.params.learning_rate"),
    ),
]


@pytest.mark.parametrize(("bad", "good", "finding"), RULES, ids=[row[2][0] + "-" + row[2][2] for row in RULES])
def test_each_rule_finds_its_fault_and_nothing_else(bad, good, finding):
    assert codes(bad, gpus=8) == [finding]
    assert codes(good, gpus=8) == []


def test_old_and_new_name_together_are_refused():
    found = codes(zero(1, cpu_offload=True, offload_optimizer={"device": "cpu"}))
    assert found == [("DS108", "error", "zero_optimization.cpu_offload")]


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (
            "deepspeed",
            [("DS110", "error", "train_batch_size"), ("DS110", "error", "zero_optimization.sub_group_size")],
        ),
        ("hf", [("DS110", "error", "zero_optimization.sub_group_size")]),
        ("accelerate", [("DS110", "error", "zero_optimization.sub_group_size")]),
    ],
)
def test_auto_is_judged_by_who_fills_it(target, expected):
    config = {"train_batch_size": "auto", "zero_optimization": {"stage": 3, "sub_group_size": "auto"}}
    assert codes(config, target=target) == expected


def test_auto_says_which_default_is_taken():
    (finding,) = findings({"train_batch_size": 1, "fp16": {"loss_scale_window": "auto"}}, target="hf")
    assert "1000" in finding.message


def test_who_loads_the_file_is_guessed_from_auto():
    assert validate({"train_batch_size": "auto"}).files[0].target == "hf"
    assert validate({"train_batch_size": 1}).files[0].target == "deepspeed"
    own = {"train_batch_size": 1, "data_types": {"keep_in_fp32_modules": "auto"}}
    assert validate(own).files[0].target == "deepspeed"
    assert validate({"train_batch_size": "auto"}, target="deepspeed").files[0].target == "deepspeed"


def test_accelerate_needs_a_zero_block():
    assert codes({"train_batch_size": 8}, target="accelerate") == [("DS301", "error", "")]


def test_batch_rule_counts_sequence_parallel_ranks_once():
    config = {"train_batch_size": 6, "train_micro_batch_size_per_gpu": 3, "gradient_accumulation_steps": 1}
    assert codes({**config, "sequence_parallel_size": 4}, gpus=8) == []
    assert [code for code, _, _ in codes(config, gpus=8)] == ["DS202"]


@given(st.integers(1, 500), st.none() | st.integers(1, 20), st.none() | st.integers(1, 20), st.integers(1, 16))
def test_the_batch_rule_is_deepspeeds(train, micro, accumulation, gpus):
    """Against the rule itself: DeepSpeed fills what is missing by whole division, then compares."""
    filled_micro = micro or train // gpus // (accumulation or 1)
    filled = accumulation or (train // micro // gpus if micro else 1)
    agrees = filled_micro > 0 and filled > 0 and train == filled_micro * filled * gpus
    config = {"train_batch_size": train, "train_micro_batch_size_per_gpu": micro}
    config |= {"gradient_accumulation_steps": accumulation}
    given_ones = {key: value for key, value in config.items() if value is not None}
    assert validate(given_ones, gpus=gpus).valid is agrees


def test_without_gpus_only_what_fits_no_number_of_gpus_is_an_error():
    sizes = {"train_batch_size": 24, "gradient_accumulation_steps": 4}
    assert validate({**sizes, "train_micro_batch_size_per_gpu": 3}).valid
    assert not validate({**sizes, "train_micro_batch_size_per_gpu": 5}).valid


def test_findings_stand_where_their_key_stands(tmp_path):
    file = tmp_path / "ds.json"
    file.write_text('{\n  "train_batch_size": 8,\n  "zero_optimization": {\n    "stagee": 3\n  },\n  "amp": {}\n}\n')
    found = [(finding.code, finding.line, finding.column) for finding in findings(str(file))]
    assert found == [("DS101", 4, 5), ("DS105", 6, 3)]


def test_a_missing_key_is_told_at_the_block_it_is_missing_from(tmp_path):
    file = tmp_path / "ds.json"
    file.write_text('\n {"bf16": {"enabled": true}}')
    (finding,) = findings(file)
    assert (finding.code, finding.line, finding.column) == ("DS201", 2, 2)


def test_one_cause_is_one_finding():
    config = {"train_batch_size": 8, "zero_optimization": {"stage": 2, "nonsense": "auto"}}
    assert codes(config, target="deepspeed") == [("DS101", "error", "zero_optimization.nonsense")]


def test_duplicate_keys_are_an_error_in_a_readable_file(tmp_path):
    file = tmp_path / "ds.json"
    file.write_text('{"train_batch_size": 8,\n "train_batch_size": 16}')
    report = validate(file)
    assert ("DS003", 2, 2) in [(f.code, f.line, f.column) for f in report.files[0].findings]
    assert report.readable
    assert not report.valid


def test_hjson_is_a_note_for_deepspeed_and_an_error_for_the_others(tmp_path):
    pytest.importorskip("hjson")
    file = tmp_path / "ds.json"
    file.write_text('{"train_batch_size": 8, # twice four\n "zero_optimization": {"stage": 1}}')
    for target, severity in (("deepspeed", "note"), ("hf", "error"), ("accelerate", "error")):
        assert codes(file, target=target) == [("DS004", severity, "")]


def test_several_files_keep_their_order(tmp_path):
    report = validate([GOOD, str(tmp_path / "none.json"), {}])
    assert [file.valid for file in report.files] == [True, False, False]
    assert [file.file for file in report.files] == ["<config>", str(tmp_path / "none.json"), "<config>"]
    assert not report.readable


@pytest.mark.parametrize("words", [{"target": "trainer"}, {"gpus": 0}, {"gpus": -1}])
def test_wrong_words_are_one_line(words):
    with pytest.raises(InputError):
        validate(GOOD, **words)


ODD = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats(allow_nan=False) | st.sampled_from(["auto", "x", ""]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["stage", "type", "a"]), inner),
    max_leaves=6,
)
BLOCKS = (
    "zero_optimization",
    "optimizer",
    "scheduler",
    "bf16",
    "fp16",
    "bfloat16",
    "train_batch_size",
    "data_types",
)
BLOCKS += ("gradient_accumulation_steps", "sequence_parallel_size", "train_micro_batch_size_per_gpu", "pipeline")


def odd_zero():
    keys = ("stage", "offload_param", "offload_optimizer", "cpu_offload", "stage3_max_live_parameters")
    return st.fixed_dictionaries({}, optional=dict.fromkeys(keys, ODD))


@given(
    st.fixed_dictionaries({}, optional={**dict.fromkeys(BLOCKS, ODD), "zero_optimization": odd_zero() | ODD}),
    st.sampled_from(["deepspeed", "hf", "accelerate"]),
)
def test_no_config_however_odd_stops_the_rules(config, target):
    for finding in findings(config, gpus=4, target=target):
        assert finding.severity in ("error", "warning", "note")
        assert "\n" not in finding.message


CORPUS = os.environ.get("DSCONF_CONFIG_CORPUS")


@pytest.mark.skipif(not CORPUS, reason="DSCONF_CONFIG_CORPUS names no folder of real configs")
def test_real_configs_are_judged_as_deepspeed_judged_them():
    """``verdicts.jsonl`` has a line a file: what DeepSpeed did with it, and which keys it ignored."""
    folder = Path(str(CORPUS))
    rows = [json.loads(line) for line in (folder / "verdicts.jsonl").read_text().splitlines()]
    false, missed, unreported = [], [], []
    for row in rows:
        report = validate(folder / row["file"]).files[0]
        errors = {finding.path for finding in report.findings if finding.severity == "error"}
        ignored = {path for path in row["ignored"] if not path.rpartition(".")[2].startswith("_")}
        unreported += [(row["file"], path) for path in ignored - errors]
        silent = ignored | {*row["auto_nobody_fills"], *row["unused_at_this_stage"]}
        if row["verdict"].startswith("accept") and errors - silent:
            false.append((row["file"], errors - silent))
        if row["verdict"].startswith("reject") and not errors:
            missed.append(row["file"])
    assert (false, missed, unreported) == ([], [], [])
