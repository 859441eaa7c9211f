"""What is found out about an answer, as data; :mod:`dsconf.report.reasons` has the sentence of each."""

from __future__ import annotations

from typing import Any, NamedTuple

from dsconf.search.candidates import Candidate
from dsconf.search.names import name, offload_name


class Reason(NamedTuple):
    """One finding: which, and its figures as JSON can hold them, in bytes, seconds and parts of one."""

    code: str
    figures: dict[str, Any]


def reason(code: str, **figures: Any) -> Reason:
    """Make a finding."""
    return Reason(code, figures)


def facts(candidate: Candidate) -> dict[str, Any]:
    """State what a person must know of another config before taking it."""
    estimate = candidate.estimate
    return {
        "name": name(candidate),
        "offload": offload_name(candidate),
        "fits": candidate.fits,
        "gpus": candidate.job.cluster.world_size,
        "tokens_per_second": candidate.tokens_per_second,
        "host_bytes_per_node": estimate.host_bytes_per_node,
        "nvme_bytes_per_node": estimate.nvme_bytes_per_node,
    }


def shortage(candidate: Candidate) -> dict[str, Any]:
    """State by how much a candidate misses, and the host memory it is judged by."""
    cluster = candidate.job.cluster
    return {
        "gpu_bytes": candidate.gpu_short_bytes,
        "host_bytes": candidate.host_short_bytes,
        "host_limit_bytes": cluster.host_limit_bytes,
        "host_stated": cluster.host_memory_bytes is not None,
    }


def gained(candidate: Candidate, winner: Candidate) -> float:
    """Return how many more tokens a second ``candidate`` gives, as a part of those of ``winner``."""
    return candidate.tokens_per_second / winner.tokens_per_second - 1
