"""The answer of ``recommend``, as data."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from dsconf.cluster.spec import Cluster
from dsconf.errors import DoesNotFitError, DsconfError
from dsconf.model.spec import Model
from dsconf.search.candidates import Candidate
from dsconf.search.explain.changes import Change
from dsconf.search.explain.headroom import Headroom
from dsconf.search.explain.limits import Limit
from dsconf.search.explain.reason import Reason
from dsconf.search.explain.scaling import Scale

if TYPE_CHECKING:
    from dsconf.speed.run_cost import Cost


class Recommendation(NamedTuple):
    """The answer and everything it rests on. ``recommended`` is None when nothing fits."""

    model: Model
    cluster: Cluster
    target: str
    recommended: Candidate | None
    candidates: tuple[Candidate, ...]
    """All that were examined, best first; torch DDP is among them for comparison and is never recommended."""
    ruled_out: int
    """Larger micro-batches not examined because the same settings already fail at a smaller one."""
    why: tuple[Reason, ...]
    """Why the winner won, the rule that decided first; or by how much nothing fits, and what would."""
    notes: tuple[Reason, ...]
    """What to know or do before training."""
    assumption: str | None
    pareto: tuple[Candidate, ...] = ()
    """Those that nothing beats in both speed and memory of a GPU, fastest first."""
    headroom: Headroom | None = None
    limits: tuple[Limit, ...] = ()
    """What a resource twice as fast would gain, the most first."""
    scales: tuple[Scale, ...] = ()
    """The best on other numbers of GPUs, fewest first."""
    changes: tuple[Change, ...] = ()
    """What one change would do; the reason of each is among ``why``."""
    tokens: int | None = None
    cost: Cost | None = None
    """Hours and money for ``tokens`` tokens with what is recommended."""

    @property
    def examined(self) -> int:
        """Number of candidates whose memory was estimated."""
        return len(self.candidates)

    @property
    def launch(self) -> tuple[str, ...]:
        """The shell lines that start training with ./ds_config.json."""
        return self.launch_with("ds_config.json")

    def launch_with(self, config: str) -> tuple[str, ...]:
        """Return the shell lines that start training with the file ``config``."""
        from dsconf.search.launch import launch_lines

        return launch_lines(self.recommended, self.target, config) if self.recommended else ()

    @property
    def config_text(self) -> str:
        """The recommended ds_config.json, checked against DeepSpeed's schema.

        Raises:
            DoesNotFitError: nothing is recommended.
        """
        from dsconf.config.render import render

        if self.recommended is None:
            raise DoesNotFitError("nothing fits, so there is no config; `why` says by how much, and what would help")
        text = render(self.recommended.settings, self.target)
        _require_valid(text)
        return text


def _require_valid(text: str) -> None:
    """Refuse to show anything unchecked; a config that fails here is a fault of the templates, not of a person."""
    import json

    from dsconf.config.certain import surely_reads
    from dsconf.config.names import RELEASES

    config = json.loads(text)
    if surely_reads(config, RELEASES[-1]):
        return
    from dsconf.config.finding import dotted
    from dsconf.config.schema import schema_problems

    for problem in schema_problems(config):
        where = f"{dotted(problem.path)} {problem.message}"
        raise DsconfError(f"dsconf made a config that DeepSpeed's schema refuses, please report it: {where}")
