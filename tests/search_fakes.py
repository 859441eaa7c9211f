"""A small memory model and a small speed model: sharded states plus activations, compute plus traffic."""

from __future__ import annotations

from typing import NamedTuple

from dsconf.cluster.spec import Cluster, Gpu
from dsconf.job import Job
from dsconf.memory.estimate import Estimate, Moment, Term
from dsconf.model.spec import Model, Param, Parameters
from dsconf.search.candidates import CostModels
from dsconf.units import GIB


class FakeStep(NamedTuple):
    seconds: float
    parts: dict[str, float]
    tokens_per_second: float


def fake_model(hidden: int = 4096, layers: int = 32, vocab: int = 32000) -> Model:
    """About 12·L·h² + v·h parameters."""
    return Model(
        name="fake",
        family="llama",
        layers=layers,
        hidden=hidden,
        heads=hidden // 128,
        kv_heads=hidden // 128,
        head_dim=128,
        mlp=4 * hidden,
        vocab=vocab,
        positions=4096,
        tied=True,
        parameters=Parameters(
            (Param("embed", (vocab, hidden)),),
            (Param("matrices", (12 * hidden, hidden)),),
            layers,
            (Param("norm", (hidden,)),),
        ),
    )


def fake_cluster(
    gpus: int = 8, memory: int = 80 * GIB, host: int | None = None, nvme: str | None = None, bf16: bool = True
) -> Cluster:
    gpu = Gpu("fake-gpu", memory, 1e15, 5e13, 3e12, 4e11, 5e10, has_bf16=bf16)
    return Cluster(gpu, gpus, min(8, gpus), host, nvme)


def _state_bytes(job: Job) -> tuple[int, int]:
    """Bytes on the GPU and on the host of one rank: 2 + 2 + 12 bytes a parameter, sharded as ZeRO says."""
    settings, ranks = job.settings, job.cluster.world_size
    params, trainable = job.model.num_params, job.model.parameters.trainable()

    def part(num_bytes: int, from_stage: int) -> int:
        return num_bytes // (ranks if settings.stage >= from_stage else 1)

    weights, gradients, optimizer = part(2 * params, 3), part(2 * trainable, 2), part(12 * trainable, 1)
    host = 0
    if settings.offload_optimizer != "none":
        host, optimizer, gradients = host + part(18 * trainable, 1), 0, 0
    if settings.offload_param != "none":
        host, weights = host + weights, 0
    return weights + gradients + optimizer, host


def fake_estimate(job: Job, rank: int | None = None) -> Estimate:
    workload, model = job.workload, job.model
    states, host = _state_bytes(job)
    kept = 2 if workload.checkpointing else 34
    activations = kept * workload.micro_batch * workload.seq_len * model.hidden * model.layers
    activations += 6 * workload.micro_batch * workload.seq_len * model.vocab
    peak = Moment(
        "backward", "start of backward", (Term("states", states, "", ""), Term("activations", activations, "", ""))
    )
    host_bytes = host * min(job.cluster.gpus_per_node, job.cluster.world_size)
    on_disk = host_bytes if "nvme" in (job.settings.offload_optimizer, job.settings.offload_param) else 0
    total = peak.num_bytes
    return Estimate(rank or 0, total, states, total, total + GIB, host_bytes - on_disk, on_disk, lambda: (peak,))


def fake_step_time(job: Job) -> FakeStep:
    workload, settings = job.workload, job.settings
    tokens = workload.micro_batch * workload.accumulation * workload.seq_len
    params, gpu = job.model.num_params, job.cluster.gpu
    parts = {
        "compute": (8 if workload.checkpointing else 6) * params * tokens / gpu.bf16_flops,
        "communication": 0.0,
        "offload": 0.0,
    }
    if job.cluster.world_size > 1:
        parts["communication"] = (2, 3, 3, 6)[settings.stage] * params / gpu.link_bandwidth
    if settings.offload_optimizer != "none":
        parts["offload"] = 16 * params / job.cluster.world_size / 1e10
    seconds = sum(parts.values())
    return FakeStep(seconds, parts, tokens * job.cluster.world_size / seconds)


def fake_verdict(estimate: Estimate, cluster: Cluster) -> str:
    share = estimate.process_bytes / cluster.gpu.memory_bytes
    return "yes" if share <= 0.9 else "tight" if share <= 1 else "no"


def fake_missing(estimate: Estimate, cluster: Cluster) -> int:
    return max(0, estimate.peak_bytes + GIB - int(0.9 * cluster.gpu.memory_bytes))


FAKES = CostModels(fake_estimate, fake_step_time, fake_missing, fake_verdict)  # type: ignore[arg-type]
