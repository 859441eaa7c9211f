"""Many jobs in a row: memory and step time of each, with every model and every cluster read a single time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from pathlib import Path
from sys import maxsize
from typing import TYPE_CHECKING, Any, cast

from dsconf.accepted import accepted
from dsconf.cluster.spec import Cluster
from dsconf.config.settings import Settings
from dsconf.errors import InputError
from dsconf.job import Job
from dsconf.memory.estimate import Estimate, estimate
from dsconf.memory.fit import host_shortfall_bytes, verdict
from dsconf.model.read import read_model
from dsconf.model.spec import Model, sequence_length
from dsconf.read_job import OFFLOAD_STAGES, plain_settings, read_workload, stated_cluster
from dsconf.request import PlanWords, StageWords
from dsconf.speed.step_time import step_time
from dsconf.units import whole
from dsconf.word import read
from dsconf.workload import Workload, require_adapters

if TYPE_CHECKING:
    from typing_extensions import Unpack


@dataclass(frozen=True, slots=True)
class PlannedJob:
    """One job of a plan; ``dataclasses.asdict`` makes a plain dict of it. Memory is that of the fullest rank."""

    model: str
    """What it was called: ``7B``, ``meta-llama/Llama-3.1-8B``, a path."""
    parameters: int
    gpus: int
    gpu: str
    """Name of the card."""
    seq_len: int
    micro_batch_size: int
    gradient_accumulation_steps: int
    stage: int
    fits: str
    """``yes``, ``tight`` or ``no``, as ``recommend`` says it: headroom on the GPU and the host's memory included."""
    peak_bytes: int
    process_bytes: int
    host_bytes_per_node: int
    step_seconds: float
    tokens_per_second: float
    """Of the whole cluster."""


class Planner:
    """Answers one job after another. What is said here holds for all of them, in the words of ``dsconf.estimate``
    and those of ``dsconf.recommend`` on network and hosts.

    Raises:
        InputError: a word that cannot be used as given.
    """

    def __init__(self, **words: Unpack[PlanWords]) -> None:
        self._word = read(PlanWords, words)
        require_adapters(self._word["quantize"], self._word["lora_rank"])
        self._stages = OFFLOAD_STAGES[self._word["offload"] or "none"]
        self._mappings: dict[int, tuple[Mapping[str, Any], Model]] = {}
        self._too_long: dict[tuple[Model, int, int, tuple[int, int]], int] = {}
        # Settings and workloads are kept so that equal ones are one object, which the caches of estimates find sooner.
        self._cluster = lru_cache(maxsize=4096)(self._read_cluster)
        self._named = lru_cache(maxsize=1024)(self._read_model)
        self._settings = lru_cache(maxsize=4096)(self._read_settings)
        self._workload = lru_cache(maxsize=4096)(self._read_workload)
        self._settings(self._stages[-1])

    def job(
        self,
        params: str | int | None = None,
        model: str | Path | Mapping[str, Any] | None = None,
        gpus: int = 1,
        seq_len: int | None = None,
        *,
        micro_batch_size: int = 1,
        gradient_accumulation_steps: int = 1,
        stage: int | None = None,
    ) -> PlannedJob:
        """Memory and time of one job, at ``stage`` or else at the smallest ZeRO stage that fits (3 where none does).

        Raises:
            InputError: a word that cannot be used as given.
        """
        shape, cluster = self._model(params, model), self._cluster(gpus)
        batch = (micro_batch_size, gradient_accumulation_steps)
        workload = self._workload(
            sequence_length(None if seq_len is None else whole("--seq-len", seq_len), shape), *batch
        )
        if stage is not None:
            only = self._settings(cast("int", read(StageWords, {"stage": stage})["stage"]))
            return _planned(*_judged(accepted(Job(shape, cluster, only, workload))))
        return self._smallest(accepted(Job(shape, cluster, self._settings(self._stages[-1]), workload)), batch)

    def _smallest(self, last: Job, batch: tuple[int, int]) -> PlannedJob:
        """Plan it at the first stage with headroom, else the first that is tight, else the ``last``."""
        tight, seq_len = None, last.workload.seq_len
        for stage in self._stages[:-1]:
            # Memory never falls as samples grow, so what is too long once is so for good.
            key = (last.model, last.cluster.world_size, stage, batch)
            shortest = self._too_long.get(key)
            if shortest is not None and seq_len >= shortest:
                continue
            job = replace(last, settings=self._settings(stage))
            judged = _judged(job)
            self._too_long[key] = seq_len if judged[2] == "no" else shortest or maxsize
            if judged[2] == "yes":
                return _planned(*judged)
            tight = tight or (judged if judged[2] == "tight" else None)
        judged = _judged(last)
        return _planned(*(judged if judged[2] == "yes" or tight is None else tight))

    def _model(self, params: str | int | None, model: str | Path | Mapping[str, Any] | None) -> Model:
        if not isinstance(model, Mapping):
            return self._named(params, model)
        if id(model) not in self._mappings:
            self._mappings[id(model)] = (model, read_model(params, model, self._word["lora_rank"]))
        return self._mappings[id(model)][1]

    def _read_model(self, params: str | int | None, model: str | Path | None) -> Model:
        return read_model(params, model, self._word["lora_rank"])

    def _read_cluster(self, gpus: int) -> Cluster:
        return stated_cluster(gpus, self._word)

    def _read_settings(self, stage: int) -> Settings:
        """Without batch sizes, which the workload says: so they are the same for each batch."""
        return plain_settings(stage, self._word, self._word["nvme"])

    def _read_workload(self, seq_len: int, micro_batch: int, accumulation: int) -> Workload:
        steps = whole("--gradient-accumulation-steps", accumulation)
        return read_workload(self._word, seq_len, whole("--micro-batch-size", micro_batch), steps)


def plan(
    params: str | int | Iterable[str | int] | None = None,
    model: str | Path | Mapping[str, Any] | Iterable[str | Path | Mapping[str, Any]] | None = None,
    gpus: int | Iterable[int] = 1,
    seq_len: int | Iterable[int] | None = None,
    *,
    micro_batch_size: int | Iterable[int] = 1,
    gradient_accumulation_steps: int = 1,
    stage: int | None = None,
    **words: Unpack[PlanWords],
) -> Iterator[PlannedJob]:
    """Yield every combination of models, GPUs, sequence lengths and micro-batches, each a value or several of them.

    ``words`` are those of :class:`Planner`. Jobs come one by one, models slowest and micro-batches fastest.

    Raises:
        InputError: a word that cannot be used as given.
    """
    planner = Planner(**words)
    if model is None:
        models = [(one, None) for one in _several("--params", params)]
    else:
        models = [(params, one) for one in _several("--model", model)]
    sizes = (_several("--gpus", gpus), _several("--seq-len", seq_len), _several("--micro-batch-size", micro_batch_size))
    for (size, name), world_size, length, micro in product(models, *sizes):
        yield planner.job(
            size,
            name,
            world_size,
            length,
            micro_batch_size=micro,
            gradient_accumulation_steps=gradient_accumulation_steps,
            stage=stage,
        )


def _several(option: str, value: Any) -> tuple[Any, ...]:
    """Return one value, or what an iterable holds; text, a path and a config are one.

    Raises:
        InputError: it holds nothing, which would be a plan without jobs.
    """
    values = tuple(value) if isinstance(value, Iterable) and not isinstance(value, str | Mapping) else (value,)
    if not values:
        raise InputError(f"{option}: give at least one")
    return values


def _judged(job: Job, rank: int | None = None) -> tuple[Job, Estimate, str]:
    found = estimate(job, rank)
    return job, found, "no" if host_shortfall_bytes(found, job.cluster) else verdict(found, job.cluster.gpu)


def _planned(job: Job, found: Estimate, fits: str) -> PlannedJob:
    step = step_time(job)
    return PlannedJob(
        model=job.model.name,
        parameters=job.model.num_params,
        gpus=job.cluster.world_size,
        gpu=job.cluster.gpu.name,
        seq_len=job.workload.seq_len,
        micro_batch_size=job.workload.micro_batch,
        gradient_accumulation_steps=job.workload.accumulation,
        stage=job.settings.stage,
        fits=fits,
        peak_bytes=found.peak_bytes,
        process_bytes=found.process_bytes,
        host_bytes_per_node=found.host_bytes_per_node,
        step_seconds=step.seconds,
        tokens_per_second=step.tokens_per_second,
    )
