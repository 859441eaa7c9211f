"""Everything an estimate needs, in one value."""

from __future__ import annotations

from dataclasses import dataclass

from dsconf.cluster.spec import Cluster
from dsconf.config.settings import Settings
from dsconf.model.spec import Model
from dsconf.workload import Workload


@dataclass(frozen=True)
class Job:
    """``model`` trained on ``cluster`` with ``settings`` as ``workload`` says."""

    model: Model
    cluster: Cluster
    settings: Settings
    workload: Workload
