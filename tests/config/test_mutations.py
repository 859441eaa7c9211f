"""Broken configs get the verdict that DeepSpeed's own reading gives them.

benchmarks/validate/mutations.py runs thousands.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rule_rows import faults, zero

from dsconf.config.validate import ValidationOptions, check_text

pytest.importorskip("deepspeed")
REPO = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def mutations():
    """The benchmark, which is not installed with the package; what it changes in the process is put back."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DS_ACCELERATOR", "cpu")
        from benchmarks.validate import mutations as module

        yield module
        logging.disable(logging.NOTSET)


@pytest.fixture(scope="module")
def judge(mutations):
    return mutations.Judge()


@given(chance=st.randoms(use_true_random=False))
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_what_deepspeed_refuses_or_drops_is_an_error_and_what_means_nothing_is_none(mutations, judge, chance):
    made = mutations.mutant(chance)
    what, verdict = mutations.outcome(made, judge)
    assert what in ("found", "clean", "stricter"), (made, verdict)


def test_every_kind_is_made_and_only_the_odd_value_is_refused_beyond_the_parser(mutations):
    found = mutations.score(600, seed=3)
    kinds = {kind for kind, _ in found.counts}
    assert kinds == {mutations.mutant(Random(seed)).kind for seed in range(400)}
    assert len(kinds) == 13
    assert not [row for row in found.worth_a_look if row[0] != "stricter"]
    assert sum(number for (_, what), number in found.counts.items() if what == "found") > 300
    assert {row[1].kind for row in found.worth_a_look} <= {
        *("wrong value", "out of range", "not finite", "unknown name", "left out", "misplaced")
    }


@pytest.mark.parametrize(
    ("change", "refused", "dropped"),
    [
        ({"overlap_comm": True}, False, "overlap_comm"),
        ({"zero_optimization": {"stagee": 2}}, True, None),
        ({"aio": {"queue_dept": 8}}, False, "aio.queue_dept"),
        ({"aio": {"queue_depth": 8}}, False, None),
        ({"_comment": "why"}, False, None),
        ({"scheduler": {"params": {"warmup_num_steps": 1}}}, False, "scheduler"),
        ({"scheduler": {"type": "WarmupLR", "params": {"warmup_steps": 1}}}, True, None),
        ({"optimizer": {"type": "AdamW", "params": {"learning_rate": 1}}}, True, None),
    ],
)
def test_the_judge_sees_what_deepspeed_refuses_and_what_it_never_looks_up(mutations, judge, change, refused, dropped):
    (block, inner) = next(iter(change.items()))
    path = (block, next(iter(inner))) if isinstance(inner, dict) else (block,)
    data = json.dumps({"train_batch_size": 8, **change}).encode()
    verdict = judge(mutations.Mutant("by hand", data, path))
    assert (verdict.error is not None, verdict.dropped) == (refused, dropped)


@pytest.mark.parametrize("name", ["optimizer", "scheduler"])
def test_a_block_without_its_type_is_an_error(name):
    assert faults({"train_batch_size": 8, name: {"params": {"lr": 1}}}) == [("DS614", name)]
    assert ("DS614", name) in faults({"train_batch_size": 8, name: {"type": None, "params": {}}})
    assert faults({"train_batch_size": 8, name: {}}) == faults({"train_batch_size": 8, name: {"_why": 1}}) == []


@pytest.mark.parametrize(
    ("keys", "wrong"),
    [
        ({"reduce_bucket_size": 1e300}, ["reduce_bucket_size"]),
        ({"reduce_bucket_size": 2.0**63}, ["reduce_bucket_size"]),
        ({"reduce_bucket_size": 9e18}, []),
        ({"reduce_bucket_size": 10**30}, []),
        ({"reduce_bucket_size": "9" * 400}, []),
        ({"zenflow": {"select_interval": "5"}}, ["zenflow.select_interval"]),
        ({"zenflow": {"select_interval": 5, "update_interval": "auto"}}, []),
    ],
)
def test_whole_numbers_as_pydantic_reads_them(keys, wrong):
    found = {path for code, path in faults(zero(0, **keys)) if code in ("DS102", "DS104")}
    assert found == {f"zero_optimization.{path}" for path in wrong}


@pytest.mark.parametrize(("scale", "works"), [("1e400", False), ("9" * 400, False), ("1e3", True), (1e300, True)])
def test_a_loss_scale_is_finite(scale, works):
    codes = [code for code, _ in faults({"train_batch_size": 8, "fp16": {"enabled": True, "loss_scale": scale}})]
    assert codes == ([] if works else ["DS102"])


@pytest.mark.parametrize("block", ['"expert_parallel": "auto"', '"zero_optimization": {"zenflow": "auto"}'])
def test_a_block_that_knows_the_word_auto_cannot_be_auto_itself(block):
    report = check_text("f", f'{{"train_batch_size": 8, {block}}}', ValidationOptions("deepspeed"))
    assert [finding.code for finding in report.findings if finding.severity == "error"] == ["DS110"]
