"""Which config trains this model on these GPUs fastest without running out of memory?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import Any, NamedTuple

from dsconf.cluster.read import assumption, read_cluster
from dsconf.errors import InputError
from dsconf.model.read import read_model
from dsconf.search.answer import Recommendation
from dsconf.search.candidates import Candidate, Tools, evaluate, examine, real_tools
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
from dsconf.search.words import read_seq_len, read_target, read_wish
from dsconf.workload import read_quantize


def recommend(
    params: str | int | None = None,
    model: str | Path | Mapping[str, Any] | None = None,
    gpus: str | int = 1,
    gpu: str | None = None,
    gpu_memory: str | int | None = None,
    gpus_per_node: str | int = 8,
    host_memory: str | int | None = None,
    nvme: str | None = None,
    seq_len: int | None = None,
    global_batch_size: int | None = None,
    micro_batch_size: int | None = None,
    precision: str | None = None,
    optimizer: str = "adamw",
    stage: int | None = None,
    offload: str | None = None,
    activation_checkpointing: bool | None = None,
    attention: str = "sdpa",
    lora_rank: int | None = None,
    quantize: str | None = None,
    optimizer_states: str | None = None,
    sequence_parallel: int | None = None,
    target: str = "deepspeed",
    tokens: str | int | None = None,
    price: float | None = None,
    *,
    network: str | None = None,
    cpu_cores: str | int | None = None,
    host_bandwidth: str | None = None,
    tools: Tools | None = None,
) -> Recommendation:
    """Searches the whole space (docs/recommend.md) and ranks what fits by tokens a second.

    ``params`` (``70B``) or ``model`` (a config.json, its folder, its content, or a known name); ``gpus`` is the
    world size; ``gpu_memory`` and ``host_memory`` (of one node) are bytes or text such as ``80GiB``; ``seq_len``
    is in tokens (by default 2048, or what a model has positions for), batch sizes in sequences; ``offload`` is
    ``none``, ``optimizer``, ``param`` or ``nvme``;
    ``optimizer_states`` is ``fp32``, or ``bf16`` for master weights and moments in bf16 (left open, they are chosen
    only where nothing else fits); ``sequence_parallel`` is the number of ranks that share a sequence;
    ``network`` is what one GPU sends to other nodes (``400Gbit/s``), ``cpu_cores`` and ``host_bandwidth`` (``300GB/s``)
    are a node's; those left out are assumed, and ``assumption`` says so;
    ``price`` is for one GPU-hour. ``None`` leaves a choice to the search; ``precision`` then is bf16, or fp16
    where the card has no bf16. ``tools`` replaces the memory and the speed model.

    Raises:
        InputError: an argument that cannot be used as given.
    """
    asked = read_asked(**dict(locals()))
    return with_cost(answer(asked.question, asked.target), asked.tokens, asked.price)


class Asked(NamedTuple):
    """The words of ``recommend``, read and checked. ``price`` is of one GPU-hour."""

    question: Question
    target: str
    tokens: int | None
    price: float | None


def read_asked(**words: Any) -> Asked:
    """``words`` of ``recommend`` as one value; those left out have the defaults of its signature.

    Raises:
        InputError: an argument that cannot be used as given.
    """
    bound = signature(recommend).bind(**words)
    bound.apply_defaults()
    word = bound.arguments
    if word["price"] is not None and word["tokens"] is None:
        raise InputError("--price needs --tokens: the cost is that of a number of tokens")
    shape = (word["params"], word["model"])
    model = read_model(*shape, word["lora_rank"])
    wish = read_wish(
        read_seq_len(word["seq_len"], model),
        word["global_batch_size"],
        word["micro_batch_size"],
        word["precision"],
        word["optimizer"],
        word["stage"],
        word["offload"],
        word["activation_checkpointing"],
        word["attention"],
        read_quantize(word["quantize"], word["lora_rank"]),
        word["optimizer_states"],
        word["sequence_parallel"],
    )
    cards = ("gpus", "gpu", "gpu_memory", "gpus_per_node", "host_memory", "nvme")
    rates = ("network", "cpu_cores", "host_bandwidth")
    question = Question(
        cluster=read_cluster(**{name: word[name] for name in (*cards, *rates)}),
        model=model,
        wish=wish,
        node_size=int(word["gpus_per_node"]),
        tools=word["tools"] or real_tools(),
        with_lora=lambda rank: read_model(*shape, rank),
    )
    return Asked(question, read_target(word["target"]), _count(word["tokens"]), word["price"])


def _count(tokens: str | int | None) -> int | None:
    from dsconf.units import parse_count

    return parse_count(tokens) if isinstance(tokens, str) else tokens


def with_cost(found: Recommendation, tokens: int | None, price: float | None) -> Recommendation:
    """``found`` with what training the winner on ``tokens`` takes; unchanged without them, or when nothing fits.

    Raises:
        InputError: tokens or price that are not positive.
    """
    from dsconf.speed.cost import run_cost

    if found.recommended is None or tokens is None:
        return found
    rate = found.recommended.tokens_per_second
    return found._replace(tokens=tokens, cost=run_cost(tokens, rate, found.cluster.world_size, price))


def answer(question: Question, target: str, alternatives: bool = True) -> Recommendation:
    """Examines the whole space of ``question`` and says why the best is the best, or why nothing fits.

    Without ``alternatives`` it does not ask what other numbers of GPUs or another change would do.
    """
    model, cluster, wish, tools = question.model, question.cluster, question.wish, question.tools
    examined = examine(model, cluster, combinations(model, cluster, wish), tools)
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


def _without_zero_init(winner: Candidate, tools: Tools) -> Candidate | None:
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
