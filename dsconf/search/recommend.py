"""Which config trains this model on these GPUs fastest without running out of memory?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from dsconf.cluster.read import assumption
from dsconf.errors import InputError
from dsconf.model.read import read_model
from dsconf.read_job import stated_cluster
from dsconf.request import RecommendWords
from dsconf.search.answer import Recommendation
from dsconf.search.candidates import Candidate, CostModels, evaluate, examine, real_models
from dsconf.search.constraints import read_constraints
from dsconf.search.explain.changes import improvements
from dsconf.search.explain.headroom import headroom
from dsconf.search.explain.limits import limits
from dsconf.search.explain.notes import notes
from dsconf.search.explain.nothing_fits import nothing_fits
from dsconf.search.explain.scaling import scales, scaling_notes
from dsconf.search.explain.winner import why
from dsconf.search.question import Question
from dsconf.search.rank import Decision, decide, pareto, ranked
from dsconf.search.space import combinations
from dsconf.word import read, worded

if TYPE_CHECKING:
    from typing_extensions import Unpack


@worded(RecommendWords)
def recommend(
    params: str | int | None = None,
    model: str | Path | Mapping[str, Any] | None = None,
    gpus: int = 1,
    *,
    tools: CostModels | None = None,
    **words: Unpack[RecommendWords],
) -> Recommendation:
    """Search the whole space (docs/recommend.md) and rank what fits by tokens a second.

    ``params`` (``70B``) or ``model`` (a config.json, its folder, its content, or a known name); ``gpus`` is the
    world size; the other words are those of ``dsconf recommend``, sizes in bytes or as text such as ``80GiB``, sequence
    lengths in tokens, batch sizes in sequences. None leaves a choice to the search; what is assumed of the cluster
    stands in ``assumption``. ``tools`` replaces the memory and the speed model.

    Raises:
        InputError: a word that cannot be used as given.
    """
    asked = read_asked(params, model, gpus, tools, **words)
    return with_cost(answer(asked.question, asked.target), asked.tokens, asked.price)


class Asked(NamedTuple):
    """The words of ``recommend``, read and checked. ``price`` is of one GPU-hour."""

    question: Question
    target: str
    tokens: int | None
    price: float | None


def read_asked(
    params: str | int | None,
    model: str | Path | Mapping[str, Any] | None,
    gpus: int,
    tools: CostModels | None = None,
    **words: Unpack[RecommendWords],
) -> Asked:
    """Return the words of ``recommend`` as one value.

    Raises:
        InputError: a word that cannot be used as given.
    """
    word = read(RecommendWords, words)
    if word["price"] is not None and word["tokens"] is None:
        raise InputError("--price needs --tokens: the cost is that of a number of tokens")
    shape = read_model(params, model, word["lora_rank"])
    low_states = None if word["optimizer_states"] is None else word["optimizer_states"] == "bf16"
    question = Question(
        cluster=stated_cluster(gpus, word),
        model=shape,
        fixed=read_constraints(word, shape)._replace(stage=word["stage"], low_states=low_states),
        node_size=word["gpus_per_node"],
        tools=tools or real_models(),
        with_lora=lambda rank: read_model(params, model, rank),
    )
    return Asked(question, word["target"], cast("int | None", word["tokens"]), word["price"])


def with_cost(found: Recommendation, tokens: int | None, price: float | None) -> Recommendation:
    """Return ``found`` with what training the winner on ``tokens`` takes; unchanged without them, or when nothing fits.

    Raises:
        InputError: tokens or price that are not positive.
    """
    if found.recommended is None or tokens is None:
        return found
    from dsconf.speed.run_cost import run_cost

    rate = found.recommended.tokens_per_second
    return found._replace(tokens=tokens, cost=run_cost(tokens, rate, found.cluster.world_size, price))


def answer(question: Question, target: str, alternatives: bool = True) -> Recommendation:
    """Examine the whole space of ``question`` and say why the best is the best, or why nothing fits.

    Without ``alternatives`` it does not ask what other numbers of GPUs or another change would do.
    """
    model, cluster, fixed, tools = question.model, question.cluster, question.fixed, question.tools
    examined = examine(model, cluster, combinations(model, cluster, fixed), tools)
    candidates = ranked(examined.candidates)
    decision = decide(candidates)
    winner = None if decision is None else decision.winner
    found = Recommendation(
        model=model,
        cluster=cluster,
        target=target,
        recommended=winner,
        candidates=candidates,
        ruled_out=examined.ruled_out,
        why=(),
        notes=(),
        assumption=assumption(cluster, cluster.nodes > 1, winner is not None and winner.offloads > 0),
        pareto=pareto(candidates),
    )
    if decision is not None:
        return _explained(found, decision, question, alternatives)
    nearest = next(candidate for candidate in candidates if candidate.settings.engine == "deepspeed")
    return found._replace(why=tuple(nothing_fits(nearest, question, alternatives)))


def _without_zero_init(winner: Candidate, tools: CostModels) -> Candidate | None:
    """Evaluate ``winner`` where the script builds the whole model on each GPU; None where that is no difference."""
    job = winner.job
    if job.settings.stage < 3 or job.cluster.world_size == 1 or job.workload.quantize is not None:
        return None
    return evaluate(replace(job, workload=replace(job.workload, zero_init=False)), tools)


def _explained(found: Recommendation, decision: Decision, question: Question, alternatives: bool) -> Recommendation:
    winner, candidates = decision.winner, found.candidates
    slowest, room = limits(winner, question.tools), headroom(winner, question.tools)
    others = tuple(scales(winner, question)) if alternatives else ()
    changes = tuple(improvements(winner, candidates, others, slowest, question)) if alternatives else ()
    whole = _without_zero_init(winner, question.tools)
    return found._replace(
        why=(*why(decision, candidates, slowest), *(change.reason for change in changes)),
        notes=(*notes(winner, candidates, room, found.target, whole), *scaling_notes(winner, others)),
        headroom=room,
        limits=slowest,
        scales=others,
        changes=changes,
    )
