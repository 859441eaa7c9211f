"""A recommendation as a person reads it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from dsconf.cluster.read import figures_text
from dsconf.cluster.spec import Cluster
from dsconf.report.reasons import sentence, sentences
from dsconf.report.reasons.phrases import phrase
from dsconf.report.table import as_gib, as_rate, table
from dsconf.search.names import offload_name, strategy_name
from dsconf.search.rank import best_of_each, needs_unstated_host, spread
from dsconf.units import format_bytes, format_count, format_seconds

if TYPE_CHECKING:
    from dsconf.live.result import CheckResult
    from dsconf.search.answer import Recommendation
    from dsconf.search.candidates import Candidate

HEADERS = (
    "strategy",
    "offload",
    "recom-\nputes",
    "batch ×\naccum.",
    "GPU GiB\na rank",
    "host GiB\na node",
    "fits",
    "tokens/s",
    "seconds\na step",
    "",
)
MISSING = 4
"""Rows of what does not fit; twice as many where nothing does."""


def recommendation_text(recommendation: Recommendation, shape: str, files: Sequence[str] | None, config: str) -> str:
    """Write everything ``recommend`` prints: facts, table, reasons, files, launch lines.

    ``shape`` is the sentence on the model; ``files`` those that were written, None where none were asked for;
    ``config`` the path that the launch lines name.
    """
    return "\n".join(_lines(recommendation, shape, files, config))


def _lines(recommendation: Recommendation, shape: str, files: Sequence[str] | None, config: str) -> Iterator[str]:
    yield shape
    yield cluster_sentence(
        recommendation.cluster, recommendation.recommended is not None and recommendation.recommended.offloads > 0
    )
    yield ""
    rows = best_of_each(recommendation.candidates, recommendation.recommended)
    shown = _shown(rows, recommendation.recommended)
    yield table(HEADERS, [_row(candidate, recommendation) for candidate in shown], (0, 1, 2, 9))
    yield _examined(recommendation)
    if len(shown) < len(rows):
        left = (
            "those that miss by more, and those with bf16 states, which nothing here needs"
            if recommendation.recommended
            else "those that miss by more"
        )
        yield f"{len(rows) - len(shown)} more combinations are in the JSON: {left}."
    yield ""
    changes = [change.reason for change in recommendation.changes]
    lead = "Recommended: " if recommendation.recommended is not None else ""
    yield f"{lead}{sentence(recommendation.why[0])}"
    yield from (
        f"  {sentence(reason)}" for reason in (*recommendation.why[1:], *recommendation.notes) if reason not in changes
    )
    if recommendation.cost is not None:
        yield f"  {format_count(recommendation.tokens or 0)} tokens: {recommendation.cost.sentence()}."
    if changes:
        yield from ("", "What one change would do:", *(f"  {text}" for text in sentences(changes)))
    yield from _front(recommendation)
    if recommendation.recommended is not None:
        yield ""
        yield from (f"Wrote {file}" for file in files or ())
        yield "Launch:" if files is not None else "Launch, once -o DIR has written the files:"
        yield from (f"  {line}" for line in recommendation.launch_with(config))


def _shown(rows: Sequence[Candidate], winner: Candidate | None) -> list[Candidate]:
    """Keep what fits, and the nearest of what does not; states in bf16 only where the winner has them."""
    if winner is not None and not winner.settings.bf16_optimizer_states:
        rows = [row for row in rows if not row.settings.bf16_optimizer_states]
    missing = [row for row in rows if row.fits == "no"]
    return [*(row for row in rows if row.fits != "no"), *missing[: MISSING if winner is not None else 2 * MISSING]]


def _front(recommendation: Recommendation) -> Iterator[str]:
    """Show speed against memory, shortened; what is recommended stands among it, simpler where others beat it."""
    shown, winner = list(spread(recommendation.pareto)), recommendation.recommended
    if len(shown) < 2 or winner is None:
        return
    if not any(point is winner for point in shown):
        shown = sorted([*shown, winner], key=lambda candidate: -candidate.tokens_per_second)
    on_it = any(point is winner for point in recommendation.pareto)
    number, beside = (len(shown), "") if on_it else (len(shown) - 1, ", and the recommended one")
    fastest = recommendation.pareto[0].tokens_per_second
    rows = [
        [*_row(c, recommendation)[:-4], as_rate(c.tokens_per_second), _share(c, fastest), _mark(c, winner)]
        for c in shown
    ]
    yield ""
    among = f"{number} of the {len(recommendation.pareto)} configs that no other beats in both{beside}"
    yield f"Speed against memory, the Pareto front ({among}):"
    yield table((*HEADERS[:-4], "tokens/s", "of the\nfastest", ""), rows, (0, 1, 2, 8))


def _mark(candidate: Candidate, winner: Candidate | None) -> str:
    """Say what a person must know of a point of the front before taking it."""
    if candidate is winner:
        return "recommended"
    return "if the host has the memory" if needs_unstated_host(candidate) else ""


def _share(candidate: Candidate, fastest: float) -> str:
    return f"{100 * candidate.tokens_per_second / fastest:.0f} %"


def cluster_sentence(cluster: Cluster, offloads: bool = False) -> str:
    """Name the GPUs, what joins several nodes, and the hosts that take part, with what was assumed about them."""
    nodes = f" in {cluster.nodes} nodes" if cluster.nodes > 1 else ""
    host = cluster.host_memory_bytes
    memory = f", {format_bytes(host)} of host memory a node" if host is not None else ""
    each = format_bytes(cluster.gpu.memory_bytes)
    rates = figures_text(cluster, cluster.nodes > 1, offloads)
    return f"GPUs: {cluster.world_size} × {cluster.gpu.name}, {each} each{nodes}{memory}{rates}"


def check_sentence(checked: CheckResult) -> str:
    """Say in a line what a real step showed."""
    if checked.failure is not None:
        return f"Check: {checked.failure.message}"
    measured, predicted, error = checked.measured.peak_bytes, checked.predicted.peak_bytes, checked.error_percent
    ran = f"Check: {checked.ranks} steps ran on {checked.device}"
    if measured is None:
        return f"{ran}."
    compared = f", predicted {format_bytes(predicted)}" if predicted is not None else ""
    off = f" ({error:+.1f} %)" if error is not None else ""
    return f"{ran}: measured peak {format_bytes(measured)}{compared}{off}."


def _examined(recommendation: Recommendation) -> str:
    best = f"Best micro-batch of each combination; {recommendation.examined} candidates examined"
    if not recommendation.ruled_out:
        return f"{best}."
    return f"{best}, {recommendation.ruled_out} larger micro-batches ruled out because a smaller one already fails."


def _row(candidate: Candidate, recommendation: Recommendation) -> list[str]:
    workload, fitting = candidate.workload, candidate.fits != "no"
    return [
        strategy_name(candidate),
        offload_name(candidate),
        "yes" if workload.checkpointing else "no",
        f"{workload.micro_batch} × {workload.accumulation}",
        as_gib(candidate.estimate.process_bytes),
        as_gib(candidate.estimate.host_bytes_per_node),
        candidate.fits,
        as_rate(candidate.tokens_per_second) if fitting else "-",
        format_seconds(candidate.step.seconds) if fitting else "-",
        phrase(candidate, recommendation.recommended),
    ]
