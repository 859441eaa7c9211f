"""What starts training with the winner of a search."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dsconf.search.candidates import Candidate

if TYPE_CHECKING:
    from dsconf.launch.plan import Launch


def launch_lines(candidate: Candidate, target: str, config: str = "ds_config.json") -> tuple[str, ...]:
    """Return the shell lines for ``target`` (``deepspeed``, ``hf`` or ``accelerate``), to be run on every node."""
    from dsconf.launch.command import launch_lines as lines

    return lines(launch_of_winner(candidate, target), config)


def launch_of_winner(candidate: Candidate, target: str) -> Launch:
    """Make what starts ``candidate``, as the templates of scripts take it."""
    from dsconf.launch.plan import launch_of
    from dsconf.memory.timeline.common import shape
    from dsconf.search.names import name

    rank, quantize = candidate.job.model.lora_rank, candidate.workload.quantize
    adapters = f"{f'QLoRA {quantize}' if quantize else 'LoRA'}, rank {rank}, " if rank else ""
    found = candidate.estimate
    host_bytes = max(found.host_bytes_per_node, found.loading_host_bytes_per_node)
    title = f"{candidate.job.model.name}: {adapters}{name(candidate)}"
    return launch_of(candidate.job, target, title, host_bytes, shape(candidate.job).loss_shards)
