"""The answers as the JSON of the outside contract: bytes, seconds and tokens a second, never GiB."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from dsconf.cluster.spec import Cluster
from dsconf.memory.estimate import Estimate
from dsconf.model.spec import Model

if TYPE_CHECKING:
    from dsconf.search.answer import Recommendation
    from dsconf.search.candidates import Candidate
    from dsconf.search.explain.changes import Change
    from dsconf.search.explain.reason import Reason
    from dsconf.search.explain.scaling import Scale


def document(answer: dict[str, Any]) -> str:
    """Write ``answer`` as the one document on stdout."""
    return json.dumps(answer, indent=2, ensure_ascii=False)


def estimate_json(estimate: Estimate, model: Model, fits: str | None = None) -> dict[str, Any]:
    """Make the document of ``estimate``; ``fits`` only with a GPU named. ``terms`` sums to ``peak_bytes``."""
    answer = {
        "peak_bytes": estimate.peak_bytes,
        "rank": estimate.rank,
        "peak_phase": estimate.peak_phase,
        "init_peak_bytes": estimate.init_peak_bytes,
        "between_steps_bytes": estimate.between_steps_bytes,
        "reserved_bytes": estimate.reserved_bytes,
        "process_bytes": estimate.process_bytes,
        "host_bytes_per_node": estimate.host_bytes_per_node,
        "loading_host_bytes_per_node": estimate.loading_host_bytes_per_node,
        "nvme_bytes_per_node": estimate.nvme_bytes_per_node,
        "terms": terms_json(estimate),
        "parameters": {"total": model.num_params, "trainable": model.parameters.trainable()},
    }
    return answer | ({"fits": fits} if fits is not None else {})


def terms_json(estimate: Estimate) -> dict[str, int]:
    """Map names to bytes at the peak; terms of one name are added up."""
    terms: dict[str, int] = {}
    for term in estimate.peak.terms:
        terms[term.name] = terms.get(term.name, 0) + term.num_bytes
    return terms


def cluster_json(cluster: Cluster) -> dict[str, Any]:
    """State the facts about the GPUs that the answer rests on."""
    return {
        "gpus": cluster.world_size,
        "gpus_per_node": cluster.gpus_per_node,
        "gpu": cluster.gpu.name,
        "gpu_memory_bytes": cluster.gpu.memory_bytes,
        "host_memory_bytes": cluster.host_memory_bytes,
        "network_bytes_per_second": max(1, round(cluster.network_rate)),
        "cpu_cores": cluster.cores,
        "host_bandwidth_bytes_per_second": max(1, round(cluster.host_rate)),
    }


def model_json(model: Model) -> dict[str, Any]:
    """State the shape the answer rests on."""
    return {
        "name": model.name,
        "family": model.family,
        "layers": model.layers,
        "hidden": model.hidden,
        "heads": model.heads,
        "kv_heads": model.kv_heads,
        "mlp": model.mlp,
        "vocab": model.vocab,
        "parameters": model.num_params,
    }


def recommendation_json(found: Recommendation, config: str, files: Sequence[str]) -> dict[str, Any]:
    """Make the document of ``recommend``: the best candidate of each combination, the winner first of its own.

    ``config`` is the path that the launch lines name.
    """
    from dsconf.report.reasons import sentences
    from dsconf.search.rank import best_of_each

    winner = found.recommended
    cost = found.cost._asdict() if found.cost is not None else None
    return {
        "recommended": candidate_json(winner, found, "; ".join(sentences(found.why))) if winner else None,
        "candidates": [candidate_json(candidate, found) for candidate in best_of_each(found.candidates, winner)],
        "examined": found.examined,
        "ruled_out": found.ruled_out,
        "why": sentences(found.why),
        "notes": sentences(found.notes),
        "reasons": [*reasons_json(found.why, "why"), *reasons_json(found.notes, "notes")],
        "headroom": found.headroom._asdict() if found.headroom is not None else None,
        "limits": {limit.resource: limit.gain for limit in found.limits},
        "changes": [_change_json(change) for change in found.changes],
        "scaling": [_scale_json(scale, found) for scale in found.scales],
        "pareto": [_point_json(candidate) for candidate in found.pareto],
        "model": model_json(found.model),
        "cluster": cluster_json(found.cluster),
        "assumption": found.assumption,
        "launch": list(found.launch_with(config)),
        "files": list(files),
    } | ({"cost": cost} if cost is not None else {})


def reasons_json(reasons: Iterable[Reason], part: str) -> list[dict[str, Any]]:
    """List findings by their codes; ``part`` is the key of the document that has their sentences alone."""
    from dsconf.report.reasons import sentence

    return [{"code": r.code, "in": part, "figures": r.figures, "text": sentence(r)} for r in reasons]


def _change_json(change: Change) -> dict[str, Any]:
    """State a change with its sentence, and the code and figures of that."""
    from dsconf.report.reasons import sentence

    values = change._asdict()
    reason = values.pop("reason")
    return {
        "kind": values.pop("kind"),
        "text": sentence(reason),
        **values,
        "code": reason.code,
        "figures": reason.figures,
    }


def _scale_json(scale: Scale, found: Recommendation) -> dict[str, Any]:
    """State the best on another number of GPUs; ``gain`` and ``efficiency`` are against the winner."""
    from dsconf.search.names import name

    assert found.recommended is not None
    return {
        "gpus": scale.gpus,
        "name": name(scale.candidate),
        "fits": scale.candidate.fits,
        "tokens_per_second": scale.candidate.tokens_per_second,
        "gain": scale.gain,
        "efficiency": scale.efficiency(found.recommended),
    }


def _point_json(candidate: Candidate) -> dict[str, Any]:
    """State a point of the front: enough to find it among ``candidates`` or to ask for it again."""
    from dsconf.search.names import name

    workload = candidate.workload
    return {
        "name": name(candidate),
        "activation_checkpointing": workload.checkpointing,
        "micro_batch_size": workload.micro_batch,
        "gradient_accumulation_steps": workload.accumulation,
        "fits": candidate.fits,
        "peak_bytes": candidate.estimate.peak_bytes,
        "process_bytes": candidate.estimate.process_bytes,
        "host_bytes_per_node": candidate.estimate.host_bytes_per_node,
        "tokens_per_second": candidate.tokens_per_second,
    }


def candidate_json(candidate: Candidate, found: Recommendation, why: str | None = None) -> dict[str, Any]:
    """State one candidate. ``config`` is null for plain DDP, which has none."""
    from dsconf.report.reasons.phrases import phrase
    from dsconf.search.names import name

    workload = candidate.workload
    return {
        "name": name(candidate),
        "config": config_json(candidate, found.target),
        "activation_checkpointing": workload.checkpointing,
        "micro_batch_size": workload.micro_batch,
        "gradient_accumulation_steps": workload.accumulation,
        "global_batch_size": candidate.global_batch,
        "estimate": estimate_json(candidate.estimate, found.model, candidate.fits),
        "step_seconds": candidate.step.seconds,
        "step_parts": candidate.step.parts,
        "tokens_per_second": candidate.tokens_per_second,
        "fits": candidate.fits,
        "why": why if why is not None else phrase(candidate, found.recommended),
    }


def config_json(candidate: Candidate, target: str) -> dict[str, Any] | None:
    """Make the ds_config of ``candidate``, as its template writes it."""
    from dsconf.config.render import render

    if candidate.settings.engine != "deepspeed":
        return None
    config: dict[str, Any] = json.loads(render(candidate.settings, target))
    return config
