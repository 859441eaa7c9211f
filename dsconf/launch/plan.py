"""What it takes to start a job, whichever launcher starts it."""

from __future__ import annotations

from typing import NamedTuple

from dsconf.config.settings import Settings
from dsconf.job import Job
from dsconf.workload import Workload

PORT = 29500
"""torch's own default port (torch/distributed/run.py), where several nodes meet."""
KERNELS = {"flash": "flash_attention_2"}
"""Hugging Face's name of an attention kernel, where it is not sdpa."""


class Launch(NamedTuple):
    """One way to train, as the templates read it. ``cores`` are CPU cores of one node."""

    title: str
    """What is trained and how, in words."""
    target: str
    """Who loads the config: ``deepspeed``, ``hf`` or ``accelerate``."""
    settings: Settings
    workload: Workload
    world_size: int
    nodes: int
    per_node: int
    """Ranks of each node but the last."""
    last_node: int
    """Ranks of the last node."""
    cores: int
    whole_nodes: bool
    """Whether the job has every GPU of its nodes."""
    lora_rank: int = 0
    """Rank of the adapters that are trained; 0 for the whole model."""
    host_bytes: int = 0
    """Host memory that the job needs on each node, while it loads and while it trains."""
    loss_shards: int = 0
    """Shards in which a rank computes the loss of a micro-batch; 0 where it is computed at once."""
    cores_stated: bool = False
    """Whether somebody said how many ``cores`` there are."""

    @property
    def launcher(self) -> str:
        """Name the launcher. ``accelerate launch`` gives every node the same number of ranks
        (accelerate/utils/launch.py: prepare_deepspeed_cmd_env), so torchrun stands in for it where the last node has
        fewer."""
        if self.target == "accelerate" and self.last_node == self.per_node:
            return "accelerate"
        return "deepspeed" if self.target == "deepspeed" else "torchrun"

    @property
    def attention(self) -> str:
        """Return the attention kernel by Hugging Face's name; sequence parallelism has no eager one."""
        return KERNELS.get(self.workload.attention, "sdpa")


def launch_of(job: Job, target: str, title: str, host_bytes: int = 0, loss_shards: int = 0) -> Launch:
    """Plan how to start ``job`` when ``target`` loads its config.

    ``host_bytes`` is the host memory it needs on each node, ``loss_shards`` the number of shards in which a rank
    computes the loss.
    """
    cluster = job.cluster
    per_node = min(cluster.gpus_per_node, cluster.world_size)
    of_node = cluster.node_gpus or cluster.gpus_per_node
    return Launch(
        title=" ".join(title.split()),  # it stands in comments of scripts, and a model's name comes from a file
        target=target,
        settings=job.settings,
        workload=job.workload,
        world_size=cluster.world_size,
        nodes=cluster.nodes,
        per_node=per_node,
        last_node=cluster.world_size - (cluster.nodes - 1) * per_node,
        cores=cluster.cores,
        whole_nodes=per_node == of_node,
        lora_rank=job.model.lora_rank or 0,
        host_bytes=host_bytes,
        loss_shards=loss_shards,
        cores_stated=cluster.cpu_cores is not None,
    )
