"""Evaluates the combinations: memory first, speed of what was estimated, nothing dropped unsaid."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from dsconf.cluster.spec import Cluster
from dsconf.job import Job
from dsconf.memory.estimate import Estimate
from dsconf.memory.fit import host_shortfall_bytes
from dsconf.model.spec import Model
from dsconf.search.space import Combination
from dsconf.workload import Workload

if TYPE_CHECKING:
    from dsconf.config.settings import Settings
    from dsconf.speed.step_time import StepTime


class CostModels(NamedTuple):
    """The two models the search asks, and the judge; replaced by small ones in tests."""

    estimate: Callable[[Job], Estimate]
    step_time: Callable[[Job], StepTime]
    shortfall_bytes: Callable[[Estimate, Cluster], int]
    """By how much one GPU is too small, headroom included."""
    verdict: Callable[[Estimate, Cluster], str]
    """``yes``, ``tight`` or ``no`` from the GPU's side."""
    never_fits: Callable[[Job], bool] = lambda _job: False
    """Whether the job certainly does not fit, whatever its batch; no says nothing."""


class Candidate(NamedTuple):
    """One examined way to train. ``short`` figures are bytes: by how much it misses fitting with headroom."""

    job: Job
    estimate: Estimate
    step: StepTime
    fits: str
    """``yes``, ``tight`` or ``no``: the GPU's verdict, and ``no`` where the host or the disk is too small."""
    gpu_short_bytes: int
    host_short_bytes: int

    @property
    def settings(self) -> Settings:
        """Its ds_config, as DeepSpeed sees it."""
        return self.job.settings

    @property
    def workload(self) -> Workload:
        """Its micro-batch, accumulation and checkpointing."""
        return self.job.workload

    @property
    def global_batch(self) -> int:
        """Sequences of one optimizer step over all ranks."""
        replicas = self.job.cluster.world_size // self.settings.sequence_parallel
        return self.workload.micro_batch * self.workload.accumulation * replicas

    @property
    def tokens_per_second(self) -> float:
        """Tokens a second of the whole cluster."""
        return self.step.tokens_per_second

    @property
    def offloads(self) -> int:
        """How many of optimizer and parameters live in host memory or on disk."""
        return (self.settings.offload_optimizer != "none") + (self.settings.offload_param != "none")


class Examined(NamedTuple):
    """``ruled_out`` counts the larger micro-batches of combinations that already fail at a smaller one."""

    candidates: tuple[Candidate, ...]
    ruled_out: int


def real_models() -> CostModels:
    """Return the memory model and the speed model of this package."""
    from dsconf.memory.estimate import estimate, never_fits
    from dsconf.memory.fit import shortfall_bytes, verdict
    from dsconf.speed.step_time import step_time

    return CostModels(
        estimate,
        step_time,
        lambda found, cluster: shortfall_bytes(found, cluster.gpu),
        lambda found, cluster: verdict(found, cluster.gpu),
        never_fits,
    )


def examine(model: Model, cluster: Cluster, space: Iterable[Combination], tools: CostModels) -> Examined:
    """Estimate every combination from its smallest micro-batch up, until it no longer fits.

    Memory grows with the micro-batch, except that DeepSpeed keeps extra gradients while it accumulates
    (stage_1_and_2.py:924-932), so an accumulation of 1 is judged apart from the larger ones.
    """
    candidates: list[Candidate] = []
    ruled_out = 0
    for combination in space:
        for run in _runs(combination):
            found = [
                _with_its_batch(asked, one, tools) for asked, one in _ascend(model, cluster, combination, run, tools)
            ]
            candidates += found
            ruled_out += len(run) - len(found)
    return Examined(tuple(candidates), ruled_out)


def fitting(model: Model, cluster: Cluster, space: Iterable[Combination], tools: CostModels) -> list[Candidate]:
    """List those that ``examine`` finds to fit, in its order; of the others it asks no more than that they do not."""
    return [
        _with_its_batch(asked, one, tools)
        for combination in space
        if not tools.never_fits(Job(model, cluster, combination.settings, combination.workloads[0]))
        for run in _runs(combination)
        for asked, one in _ascend(model, cluster, combination, run, tools)
        if one.fits != "no"
    ]


def _runs(combination: Combination) -> tuple[list[Workload], list[Workload]]:
    """Split its workloads into runs in which memory grows: those that accumulate, and those that do not."""
    accumulating = [workload for workload in combination.workloads if workload.accumulation > 1]
    return accumulating, [workload for workload in combination.workloads if workload.accumulation == 1]


def _ascend(
    model: Model, cluster: Cluster, combination: Combination, run: Iterable[Workload], tools: CostModels
) -> Iterator[tuple[Job, _Judged]]:
    """Yield each workload of ``run`` up to the first that does not fit, and what the memory model says of it."""
    for workload in run:
        # The models are asked with the same settings for each batch, which the workload says: they know them sooner.
        asked = Job(model, cluster, combination.settings, workload)
        judged = _judge(asked, tools)
        yield asked, judged
        if judged.fits == "no":
            return


def with_batch(settings: Settings, workload: Workload, cluster: Cluster) -> Settings:
    """Write the batch sizes of ``workload`` into ``settings``, as the config file will have them."""
    micro, accumulation = workload.micro_batch, workload.accumulation
    replicas = cluster.world_size // settings.sequence_parallel
    return settings.with_batch(micro, accumulation, micro * accumulation * replicas)


def evaluate(job: Job, tools: CostModels) -> Candidate:
    """Judge one candidate: its memory, its time, and by how much it misses."""
    return _timed(job, job, _judge(job, tools), tools)


class _Judged(NamedTuple):
    """What the memory model says of a job, in fields as ``Candidate`` has them."""

    estimate: Estimate
    fits: str
    gpu_short_bytes: int
    host_short_bytes: int


def _judge(job: Job, tools: CostModels) -> _Judged:
    estimate, cluster = tools.estimate(job), job.cluster
    host_short = host_shortfall_bytes(estimate, cluster)
    return _Judged(
        estimate=estimate,
        fits="no" if host_short else tools.verdict(estimate, cluster),
        gpu_short_bytes=tools.shortfall_bytes(estimate, cluster),
        host_short_bytes=host_short,
    )


def _with_its_batch(asked: Job, judged: _Judged, tools: CostModels) -> Candidate:
    """Return the candidate that the models were ``asked`` about, its batch sizes in its settings."""
    settings = with_batch(asked.settings, asked.workload, asked.cluster)
    return _timed(Job(asked.model, asked.cluster, settings, asked.workload), asked, judged, tools)


def _timed(job: Job, asked: Job, judged: _Judged, tools: CostModels) -> Candidate:
    """Return the candidate ``job``, which was ``judged``, with the time that ``asked`` takes."""
    return Candidate(
        job=job,
        estimate=judged.estimate,
        step=tools.step_time(asked),
        fits=judged.fits,
        gpu_short_bytes=judged.gpu_short_bytes,
        host_short_bytes=judged.host_short_bytes,
    )
