"""What is left of a GPU, and the longest sample it is worth, worked out from the small memory model."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from search_fakes import FAKES, fake_cluster, fake_model
from search_said import figures

import dsconf
from dsconf.job import Job
from dsconf.search.candidates import Candidate, evaluate
from dsconf.search.constraints import Constraints
from dsconf.search.explain.headroom import STEP, _last, headroom, longest_sequence
from dsconf.search.space import plain_settings
from dsconf.units import GIB
from dsconf.workload import Workload

MODEL = replace(fake_model(2048, 16), positions=2**20)


def candidate(memory: int, workload: Workload, positions: int = 2**20) -> Candidate:
    cluster, model = fake_cluster(8, memory), replace(MODEL, positions=positions)
    return evaluate(Job(model, cluster, plain_settings(model, cluster, Constraints(), 3), workload), FAKES)


def by_hand(memory: int, micro_batch: int) -> int:
    """16 bytes of each parameter shared by 8, a GiB beside them, 34 bytes a hidden element and 6 a logit; a tenth
    of the card stays free."""
    free = 0.9 * memory - GIB - 16 * MODEL.num_params / 8
    return int(free // (micro_batch * (34 * 2048 * 16 + 6 * 32000)))


@pytest.mark.parametrize(("memory", "micro_batch"), [(24, 1), (80, 4), (141, 8)])
def test_the_longest_sample_is_what_the_rest_of_the_card_holds(memory: int, micro_batch: int) -> None:
    one = candidate(memory * GIB, Workload(seq_len=256, micro_batch=micro_batch))
    assert longest_sequence(one, FAKES) == by_hand(memory * GIB, micro_batch) // STEP * STEP > 256


def test_the_figures_add_up_to_the_card() -> None:
    one = candidate(80 * GIB, Workload(seq_len=1024, micro_batch=2))
    room = headroom(one, FAKES)
    assert room.free_bytes + one.estimate.process_bytes == 80 * GIB
    assert (room.fragmentation_bytes, room.outside_bytes) == (0, GIB)
    assert room.longest_seq_len == by_hand(80 * GIB, 2) // STEP * STEP


def test_nobody_looks_beyond_the_models_positions() -> None:
    short = candidate(80 * GIB, Workload(seq_len=1000), positions=3000)
    assert headroom(short, FAKES).longest_seq_len == 3000 // STEP * STEP


def test_who_asks_for_more_than_the_positions_is_told_what_fits() -> None:
    beyond = candidate(80 * GIB, Workload(seq_len=4000), positions=3000)
    assert headroom(beyond, FAKES).longest_seq_len > 4000


def test_a_tight_fit_has_less_than_nothing_free() -> None:
    needed = candidate(80 * GIB, Workload(seq_len=2048)).estimate.process_bytes
    tight = candidate(needed, Workload(seq_len=2048))
    assert tight.fits == "tight"
    assert headroom(tight, FAKES).longest_seq_len == 2048


@given(st.integers(0, 300), st.integers(0, 300), st.integers(0, 300))
def test_the_last_yes_is_found(known: int, more: int, most: int) -> None:
    last = known + more
    assert _last(lambda number: number <= last, known, known + most) == min(last, known + most)


def test_with_the_real_models_a_sample_one_step_longer_does_not_fit() -> None:
    found = dsconf.recommend(params="8B", gpus=8, gpu="h100-80gb", seq_len=2048)
    assert found.recommended is not None
    assert found.headroom is not None
    words = {
        "params": "8B",
        "gpus": 8,
        "gpu": "h100-80gb",
        "config": json.loads(found.config_text),
        "activation_checkpointing": found.recommended.workload.checkpointing,
    }
    longest = found.headroom.longest_seq_len
    card = found.cluster.gpu.memory_bytes
    assert longest > 2048
    assert dsconf.estimate(seq_len=longest, **words).process_bytes <= card
    assert dsconf.estimate(seq_len=longest + STEP, **words).process_bytes > card
    assert figures(found.notes, "sample_longer") == {"seq_len": 2048, "longest": longest}
