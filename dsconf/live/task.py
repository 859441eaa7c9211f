"""A function on real ranks in place of a training: the same launching, watching and cleaning up."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from dsconf.live.processes.launcher import Failure, Runner
from dsconf.live.processes.order import Order, Probe


class Answers(NamedTuple):
    """What the function returned on each rank, by rank; nothing where it failed."""

    answers: tuple[Any, ...]
    probe: Probe | None
    failure: Failure | None


def call(
    task: str,
    words: Mapping[str, Any],
    ranks: int,
    timeout: float,
    progress: Callable[[str], None],
    runner: Runner,
    launcher: str = "torchrun",
) -> Answers:
    """Call ``package.file:function`` with ``words`` on ``ranks`` real ranks, over NCCL or, without a GPU, gloo.

    The function finds ``torch.distributed`` initialised and its own device the current one; it returns something that
    JSON can hold. With fewer GPUs than ``ranks`` NCCL refuses, and that is the failure.
    """
    probes: list[Probe] = []

    def decide(probe: Probe) -> Order:
        probes.append(probe)
        device = "cuda" if probe.cuda_devices else "cpu"
        return Order(device, ranks, processes=ranks, launcher=launcher, task=task, words=dict(words))

    outcome = runner.run(decide, progress, timeout)
    found = [event["answer"] for events in outcome.events for event in events if event["event"] == "answer"]
    answers = tuple(found) if outcome.failure is None else ()
    return Answers(answers, probes[0] if probes else None, outcome.failure)
