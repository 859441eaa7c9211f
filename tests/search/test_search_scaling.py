"""What more GPUs, or fewer, would give, and when it is said that they bring nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
from search_fakes import FAKES, fake_cluster, fake_model
from search_said import codes, figures

from dsconf.cluster.spec import Cluster
from dsconf.search.answer import Recommendation
from dsconf.search.constraints import Constraints
from dsconf.search.explain.scaling import Scale, scaling_notes, sizes
from dsconf.search.question import Question
from dsconf.search.recommend import answer

SMALL = fake_model(1024, 8)


def ask(gpus: int, link: float = 4e11, fixed: Constraints = Constraints()) -> Recommendation:  # noqa: B008
    cluster = fake_cluster(gpus)
    slow: Cluster = replace(cluster, gpu=replace(cluster.gpu, link_bandwidth=link))
    return answer(Question(SMALL, slow, fixed, 8, FAKES, lambda rank: SMALL), "deepspeed")


@pytest.mark.parametrize(
    ("gpus", "others"),
    [
        (1, [2, 8]),
        (2, [1, 4, 8]),
        (4, [1, 2, 6, 8]),
        (8, [1, 4, 16]),
        (12, [1, 6, 8, 16, 24]),
        (16, [1, 8, 24, 32]),
        (64, [1, 8, 32, 72, 128]),
    ],
)
def test_the_numbers_worth_a_look(gpus: int, others: list[int]) -> None:
    assert sizes(gpus, 8) == others


def test_each_number_is_what_a_question_of_its_own_says() -> None:
    found = ask(4)
    assert found.recommended is not None
    assert [scale.gpus for scale in found.scales] == [1, 2, 6, 8]
    for scale in found.scales:
        alone = ask(scale.gpus).recommended
        assert alone is not None
        assert scale.candidate.tokens_per_second == alone.tokens_per_second
        assert scale.gain == alone.tokens_per_second / found.recommended.tokens_per_second - 1
        each = alone.tokens_per_second / scale.gpus / (found.recommended.tokens_per_second / 4)
        assert scale.efficiency(found.recommended) == pytest.approx(each)


def test_a_single_gpu_that_is_as_fast_is_named() -> None:
    """Over so slow a link the all-reduce of a step takes longer than the step itself."""
    said = figures(ask(8, link=1e7).notes, "fewer_gpus_as_fast")
    assert (said["gpus"], said["now"], said["config"]) == (1, 8, None)
    assert said["waits"]["part"] == "communication"
    assert not {"fewer_gpus_as_fast", "each_gpu_gives_less"} & set(codes(ask(8).notes))


def test_gpus_that_wait_for_each_other_are_said_to() -> None:
    """A link at which the two numbers for each parameter that stage 0 sends take as long as computing."""
    fixed = Constraints(micro_batch=1)
    alone = ask(1, fixed=fixed).recommended
    assert alone is not None
    notes = ask(8, link=2 * SMALL.num_params / alone.step.seconds, fixed=fixed).notes
    said = figures(notes, "each_gpu_gives_less")
    assert (said["gpus"], said["fewer"]) == (8, 1)
    assert said["gain"] == pytest.approx(-0.5)
    assert said["waits"] == {"part": "communication", "share": pytest.approx(0.5), "gpus": 8}


def test_more_gpus_than_the_global_batch_has_work_for_do_not_help() -> None:
    """At a global batch of 16, 16 GPUs have a sequence each; communication takes nearly all of the step."""
    said = figures(ask(8, link=1e8, fixed=Constraints(global_batch=16)).notes, "more_gpus_bring_nothing")
    assert said["gpus"] == 16
    assert said["gain"] <= 0.03
    assert said["waits"]["share"] > 0.9
    assert "more_gpus_bring_nothing" not in codes(ask(8).notes)


def test_numbers_that_cannot_share_the_global_batch_are_left_out() -> None:
    assert [scale.gpus for scale in ask(4, fixed=Constraints(global_batch=4)).scales] == [1, 2]


def test_one_node_more_of_many_is_measured_by_its_own_share() -> None:
    """Of 1024 GPUs eight more are 0.78 %: a gain of a third of that is something, less is nothing."""
    winner = ask(8).recommended
    assert winner is not None
    many = winner._replace(job=replace(winner.job, cluster=replace(winner.job.cluster, world_size=1024)))

    def told(gpus: int, gain: float) -> bool:
        larger = many._replace(job=replace(many.job, cluster=replace(many.job.cluster, world_size=gpus)))
        return "more_gpus_bring_nothing" in codes(scaling_notes(many, [Scale(gpus, larger, gain)]))

    assert not told(1032, 0.007), "small, but nearly all that eight of 1024 can give"
    assert not told(1032, 0.003)
    assert told(1032, 0.002)
    assert told(1032, -0.01)
    assert told(2048, 0.02), "twice as many for what is equal speed"
    assert not told(2048, 0.04)
