"""The command line that starts training with the winner, from the launcher's template."""

from __future__ import annotations

from shlex import quote

from dsconf.resources import text
from dsconf.search.candidates import Candidate

ALLOCATOR = "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True"
"""Keeps reserved memory near allocated memory when micro-batches differ in length
(https://pytorch.org/docs/stable/notes/cuda.html#optimizing-memory-usage-with-pytorch-cuda-alloc-conf)."""


def launch_lines(candidate: Candidate, target: str, config: str = "ds_config.json") -> tuple[str, ...]:
    """The shell lines for ``target`` (``deepspeed``, ``hf`` or ``accelerate``), to be run on every node.

    The deepspeed launcher starts the other nodes itself, from a hostfile; it takes their environment
    from .deepspeed_env (launcher/runner.py).
    """
    from jinja2 import StrictUndefined, Template

    cluster, settings, workload = candidate.job.cluster, candidate.settings, candidate.workload
    per_node = min(cluster.gpus_per_node, cluster.world_size)
    rendered = Template(text("templates", f"launch_{target}.j2"), undefined=StrictUndefined).render(
        allocator=ALLOCATOR,
        config=quote(config),
        nodes=cluster.nodes,
        per_node=per_node,
        last_node=cluster.world_size - (cluster.nodes - 1) * per_node,
        world_size=cluster.world_size,
        stage=settings.stage,
        precision=settings.precision,
        clipping=settings.gradient_clipping,
        micro_batch=workload.micro_batch,
        accumulation=workload.accumulation,
        checkpointing=workload.checkpointing,
    )
    return tuple(line for line in rendered.splitlines() if line.strip())
