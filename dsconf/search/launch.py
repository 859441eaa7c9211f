"""What starts training with the winner of a search."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dsconf.search.candidates import Candidate

if TYPE_CHECKING:
    from dsconf.launch.plan import Launch


def launch_lines(candidate: Candidate, target: str, config: str = "ds_config.json") -> tuple[str, ...]:
    """The shell lines for ``target`` (``deepspeed``, ``hf`` or ``accelerate``), to be run on every node."""
    from dsconf.launch.command import launch_lines as lines

    return lines(_launch(candidate, target), config)


def _launch(candidate: Candidate, target: str) -> Launch:
    from dsconf.launch.plan import launch_of
    from dsconf.search.rank import name

    return launch_of(candidate.job, target, f"{candidate.job.model.name}: {name(candidate)}")
