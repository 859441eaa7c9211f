"""A sweep over numbers of GPUs as a person reads it, and as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dsconf.cluster.read import assumption, figures_text
from dsconf.cluster.spec import Cluster
from dsconf.report.as_json import candidate_json, cluster_json, model_json, reasons_json
from dsconf.report.reasons import sentence, sentences
from dsconf.report.table import as_gib, as_rate, table
from dsconf.search.names import offload_name, strategy_name
from dsconf.search.sweep import Sweep, SweepRow, conclusions
from dsconf.units import format_count, format_seconds

HEADERS = (
    "GPUs",
    "strategy",
    "offload",
    "recom-\nputes",
    "batch ×\naccum.",
    "GPU GiB\na rank",
    "fits",
    "tokens/s",
    "tokens/s\na GPU",
    "effi-\nciency",
)
COSTS = ("hours", "GPU-\nhours", "cost")


def sweep_text(found: Sweep, shape: str, files: Mapping[int, Sequence[str]], configs: Mapping[int, str]) -> str:
    """Write model, table, what follows, and the files written; ``shape`` is the sentence on the model.

    ``files`` and ``configs`` (the path that the launch lines name) are by the number of GPUs.
    """
    return "\n".join(_lines(found, shape, files, configs))


def _lines(found: Sweep, shape: str, files: Mapping[int, Sequence[str]], configs: Mapping[int, str]) -> Iterator[str]:
    cluster, rates = found.rows[0].found.cluster, figures_text(*_matters(found))
    yield shape
    most = max(row.found.cluster.gpus_per_node for row in found.rows)
    yield f"GPUs: {cluster.gpu.name}, up to {most} in a node{rates}"
    yield ""
    headers = HEADERS + (COSTS[: 2 + (found.price is not None)] if found.tokens else ())
    yield table(headers, [_row(row, found) for row in found.rows], (1, 2))
    yield ""
    yield from sentences(conclusions(found))
    yield from (f"On {row.gpus}: {sentence(row.found.why[0])}" for row in found.rows if row.found.recommended is None)
    for row in found.rows:
        if files.get(row.gpus):
            yield ""
            yield from (f"Wrote {file}" for file in files[row.gpus])
            yield from ("Launch:", *(f"  {line}" for line in row.found.launch_with(configs[row.gpus])))


def _matters(found: Sweep) -> tuple[Cluster, bool, bool]:
    """Return the cluster of the last row, and whether network and hosts matter on any number of GPUs."""
    networked = any(row.found.cluster.nodes > 1 for row in found.rows)
    offloads = any(row.found.recommended is not None and row.found.recommended.offloads for row in found.rows)
    return found.rows[-1].found.cluster, networked, offloads


def _row(row: SweepRow, found: Sweep) -> list[str]:
    winner, cost = row.found.recommended, row.found.cost
    if winner is None:
        return [f"{row.gpus}", *["-"] * 5, "no"]
    workload = winner.workload
    cells = [
        f"{row.gpus}",
        strategy_name(winner),
        offload_name(winner),
        "yes" if workload.checkpointing else "no",
        f"{workload.micro_batch} × {workload.accumulation}",
        as_gib(winner.estimate.process_bytes),
        winner.fits,
        as_rate(row.tokens_per_second),
        as_rate(row.tokens_per_second / row.gpus),
        f"{100 * (row.efficiency or 0):.0f} %",
    ]
    if cost is None:
        return cells
    money = [] if cost.price is None else [format_count(cost.price)]
    return [*cells, format_seconds(cost.hours), format_count(cost.gpu_hours), *money]


def sweep_json(found: Sweep, files: Mapping[int, Sequence[str]], configs: Mapping[int, str]) -> dict[str, Any]:
    """Make the document of ``recommend`` with several numbers of GPUs; each row has the keys of a single answer.

    ``files`` and ``configs`` (the path that the launch lines name) are by the number of GPUs.
    """
    first = found.rows[0].found
    return {
        "sweep": [_row_json(row, files.get(row.gpus, ()), configs[row.gpus]) for row in found.rows],
        "fastest": found.fastest,
        "cheapest": found.cheapest,
        "notes": sentences(conclusions(found)),
        "reasons": reasons_json(conclusions(found), "notes"),
        "model": model_json(first.model),
        "assumption": assumption(*_matters(found)),
        "tokens": found.tokens,
        "price": found.price,
        "files": [file for row in found.rows for file in files.get(row.gpus, ())],
    }


def _row_json(row: SweepRow, files: Sequence[str], config: str) -> dict[str, Any]:
    winner = row.found.recommended
    return {
        "gpus": row.gpus,
        "fits": winner.fits if winner is not None else "no",
        "recommended": candidate_json(winner, row.found, "; ".join(sentences(row.found.why)))
        if winner is not None
        else None,
        "tokens_per_second": winner.tokens_per_second if winner is not None else None,
        "efficiency": row.efficiency,
        "cost": row.found.cost._asdict() if row.found.cost is not None else None,
        "why": sentences(row.found.why),
        "notes": sentences(row.found.notes),
        "reasons": [*reasons_json(row.found.why, "why"), *reasons_json(row.found.notes, "notes")],
        "cluster": cluster_json(row.found.cluster),
        "launch": list(row.found.launch_with(config)),
        "files": list(files),
    }
