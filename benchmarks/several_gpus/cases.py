"""The training cases, and each of their ranks measured, real or rehearsed, beside its prediction."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from benchmarks.several_gpus.machine import HostMemory, Row
from benchmarks.speed import accuracy as speed
from dsconf.config.render import render
from dsconf.config.settings import Settings
from dsconf.live.plan import CheckRequest, settled
from dsconf.live.predict import of_estimate
from dsconf.live.processes.launcher import Failure, Runner
from dsconf.live.record import record_of
from dsconf.live.result import CheckResult, RankFigures
from dsconf.live.run import launch
from dsconf.memory.estimate import estimate
from dsconf.memory.timeline.reserved import nccl_bytes
from dsconf.model.read import read_model
from dsconf.speed.step_time import step_time
from dsconf.units import MIB
from dsconf.workload import Workload

MODELS = {
    "llama": "meta-llama/Llama-3.2-1B",
    "qwen2": "Qwen/Qwen2.5-1.5B",
    "gpt2": "openai-community/gpt2-large",
}
FAMILIES = tuple(MODELS)


class Setting(NamedTuple):
    """What is tried with every number of ranks, each time with another family."""

    name: str
    stage: int
    engine: str = "deepspeed"
    checkpointing: bool = False
    offload: str = "none"
    """``none``, ``optimizer``, or ``both``: the parameters, too."""
    accumulation: int = 1


SETTINGS = (
    Setting("ddp", 0, "ddp"),
    Setting("ddp-ckpt", 0, "ddp", True, accumulation=2),
    Setting("z0", 0),
    Setting("z0-ckpt", 0, checkpointing=True, accumulation=2),
    Setting("z1", 1),
    Setting("z1-ckpt-off", 1, checkpointing=True, offload="optimizer"),
    Setting("z2", 2, accumulation=2),
    Setting("z2-ckpt", 2, checkpointing=True),
    Setting("z2-off", 2, offload="optimizer"),
    Setting("z3", 3),
    Setting("z3-ckpt", 3, checkpointing=True, accumulation=2),
    Setting("z3-ckpt-off", 3, checkpointing=True, offload="both"),
)


class Case(NamedTuple):
    """One setting of one family on some ranks. Sequences are of ``seq_len`` tokens."""

    family: str
    setting: Setting
    world_size: int
    micro_batch: int = 2
    seq_len: int = 1024

    @property
    def name(self) -> str:
        """Return a name such as ``llama-z3-w8``."""
        return f"{self.family}-{self.setting.name}-w{self.world_size}"


def cases(world_sizes: Iterable[int]) -> list[Case]:
    """List every setting on each number of ranks; the families take turns, so that each meets each kind of setting."""
    return [
        Case(FAMILIES[(number + turn) % len(FAMILIES)], setting, world_size)
        for number, setting in enumerate(SETTINGS)
        for turn, world_size in enumerate(world_sizes)
    ]


def config(case: Case, on_cpu: bool) -> dict[str, Any]:
    """Return the ds_config: DeepSpeed's own bucket sizes, communication beside computation from stage 2 on.

    On the CPU torch's AdamW, which needs no compiler.
    """
    setting = case.setting
    settings = Settings(
        stage=setting.stage,
        precision="bf16",
        overlap_comm=setting.stage >= 2,
        offload_optimizer="none" if setting.offload == "none" else "cpu",
        offload_param="cpu" if setting.offload == "both" else "none",
        micro_batch=case.micro_batch,
        accumulation=setting.accumulation,
        train_batch=case.micro_batch * setting.accumulation * case.world_size,
    )
    ds_config: dict[str, Any] = json.loads(render(settings, learning_rate=1e-4))
    if on_cpu:
        ds_config["optimizer"]["params"]["torch_adam"] = True
        ds_config["zero_force_ds_cpu_optimizer"] = False
    return ds_config


def request_of(
    case: Case, steps: int, on_cpu: bool, launcher: str | None = None, rehearse: int | None = None
) -> CheckRequest:
    """Return what is launched: every rank, or (``rehearse``) that one alone."""
    ddp = case.setting.engine == "ddp"
    return settled(
        CheckRequest(
            config(case, on_cpu),
            read_model(model=MODELS[case.family]),
            case.world_size,
            Workload(
                seq_len=case.seq_len,
                checkpointing=case.setting.checkpointing,
                load_dtype="fp32" if ddp else None,
            ),
            micro_batch=case.micro_batch,
            accumulation=case.setting.accumulation,
            steps=steps,
            backend=case.setting.engine,
            real_gpus=case.world_size if rehearse is None else 0,
            rehearse_rank=rehearse,
            launcher=launcher,
        )
    )


def measure(
    case: Case, wanted: CheckRequest, machine: Row, limit: float, tell: Callable[[str], None], runner: Runner
) -> list[Row]:
    """Return a row for every rank that ran, or one with the error. ``machine`` is what all rows say of the machine."""
    with HostMemory() as host:
        result = launch(wanted, (), limit, tell, runner)
    name = case.name if wanted.rehearse_rank is None else rehearsal(case.name, wanted.rehearse_rank)
    about: Row = {"unit": name, "case": case.name, "world_size": case.world_size}
    if result.failure is not None:
        return [{**about, "name": name, **error_of(result.failure)}]
    node: Row = {"host_peak_mib": _mib(sum(figures.host_peak_bytes or 0 for figures in result.every_rank))}
    if wanted.rehearse_rank is None:
        node["host_used_mib"] = _mib(host.used_bytes)
    return [_row(result, figures, {**about, **machine, "node": node}) for figures in result.every_rank]


def rehearsal(case: str, rank: int) -> str:
    """Name the unit in which ``rank`` of ``case`` is rehearsed."""
    return f"rehearse-{case}-r{rank}"


def error_of(failure: Failure) -> Row:
    """Return what a row says of a run that failed."""
    return {"error": failure.message, "kind": failure.kind, "phase": failure.phase, "log": list(failure.log)}


def _row(result: CheckResult, figures: RankFigures, about: Row) -> Row:
    row = {**record_of(result, figures), **about}
    row["world_size"] = result.world_size_run
    row["name"] = f"{row['case']}-r{figures.rank}" + ("-rehearsed" if row["rehearsed"] else "")
    row["measured"].update(_outside(figures), after_init_mib=_mib(figures.after_init_bytes))
    row["measured"]["host_peak_mib"] = _mib(figures.host_peak_bytes)
    row["scaled_down"] = list(result.scaled_down)
    row["predicted"] = predicted(row)
    return row


def _outside(figures: RankFigures) -> Row:
    """Return what the process holds beside torch's allocator: CUDA's context, kernels, and NCCL where it runs.

    Where the driver does not tell one process from another, all that is in use on its card.
    """
    last = figures.iterations[-1]
    reserved = last.get("reserved_end_bytes")
    used = last.get("process_bytes") or last.get("card_used_bytes")
    outside: Row = {"reserved_end_mib": _mib(reserved), "card_used_mib": _mib(last.get("card_used_bytes"))}
    outside["outside_mib"] = None if used is None or reserved is None else _mib(used - reserved)
    return outside


def predicted(row: Row) -> Row:
    """Return the figures of the memory and speed models for the very rank of ``row``, in MiB and seconds."""
    job = speed.job_of(row)
    memory = estimate(job, row["rank"])
    on_cpu = row["device"] == "CPU"
    figures = of_estimate(memory, "cpu" if on_cpu else "cuda")
    peaks = {"peak_mib": _mib(figures.peak_bytes)}
    peaks |= {f"{phase}_mib": _mib(sum(terms.values())) for phase, terms in figures.phases.items()}
    if on_cpu and job.settings.offload_optimizer != "none":  # what is offloaded lies in the same memory there
        peaks = dict.fromkeys(peaks)
    return {
        **peaks,
        "init_peak_mib": _mib(figures.init_bytes),
        "reserved_mib": _mib(figures.reserved_bytes),
        "process_mib": _mib(figures.process_bytes),
        "nccl_mib": _mib(nccl_bytes(job.cluster, job.settings)),
        "host_mib": _mib(memory.host_bytes_per_node),
        "loading_host_mib": _mib(memory.loading_host_bytes_per_node),
        "step_seconds": None if on_cpu else speed.seconds_of(row, step_time(job)),
    }


def _mib(num_bytes: int | None) -> float | None:
    return None if num_bytes is None else round(num_bytes / MIB, 2)
