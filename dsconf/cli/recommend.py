"""``dsconf recommend``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dsconf.cli.options import format_option, word_options
from dsconf.cli.recommend_files import Writing, file_options
from dsconf.request import ModelWords, RecommendWords, SeveralWorldsWords

if TYPE_CHECKING:
    from dsconf.live.result import CheckResult
    from dsconf.search.answer import Recommendation


@click.command("recommend")
@word_options(
    ModelWords,
    SeveralWorldsWords,
    RecommendWords,
    required=["gpus"],
    helps={
        "stage": "Only this ZeRO stage.",
        "offload": "Only this offload.",
        "sequence_parallel": "Ranks that share a sequence (Ulysses) [default: up to a node, for sequences from 16384 "
        "tokens on].",
    },
)
@file_options
@click.option("--check", is_flag=True, help="Prove the winner by a short real DeepSpeed step.")
@format_option("table", "json")
def command(
    output: Path | None, slurm: bool, comments: bool, force: bool, check: bool, output_format: str, **words: Any
) -> int:
    """Choose the fastest config that fits; -o writes it.

    \b
    Example: dsconf recommend --params 70B --gpus 8 --gpu-memory 80GiB -o run
    """
    writing = Writing(output, slurm, comments, force, words["target"])
    writing.check()
    if isinstance(words["gpus"], str):
        from dsconf.cli.recommend_sweep import run_sweep

        return run_sweep(writing, check, output_format, words)
    folder = output or Path()
    path = writing.config(folder)
    from dsconf.search.recommend import recommend

    recommendation = recommend(**words)
    written, refused = writing.attempt({folder: recommendation} if recommendation.recommended is not None else {})
    files = written.get(folder, [])
    if output_format == "table":
        _print_table(recommendation, words["params"] is not None, path, files if output is not None else None)
    checked = _check(recommendation, words) if check and recommendation.recommended and refused is None else None
    if output_format == "json":
        _print_json(recommendation, path, files, checked)
    elif checked is not None:
        _print_check(checked)
    if refused is not None:
        raise refused
    return _exit_code(recommendation, checked)


def _check(recommendation: Recommendation, words: dict[str, Any]) -> CheckResult:
    """Run a real step with the winner, as DeepSpeed itself would load it; progress goes to stderr."""
    import json

    from dsconf.config.render import render
    from dsconf.live.check import check

    winner = recommendation.recommended
    assert winner is not None
    shared = ("params", "model", "gpus", "gpus_per_node", "seq_len", "attention", "lora_rank", "quantize")
    return check(
        json.loads(render(winner.settings, "deepspeed")),
        **{word: words[word] for word in shared},
        activation_checkpointing=winner.workload.checkpointing,
        progress=lambda line: click.echo(line, err=True),
    )


def _exit_code(recommendation: Recommendation, checked: CheckResult | None) -> int:
    """Return 1 where nothing fits or the step failed."""
    if recommendation.recommended is None:
        return 1
    return 0 if checked is None else checked.exit_code


def _print_json(recommendation: Recommendation, path: Path, files: list[str], checked: CheckResult | None) -> None:
    from dsconf.report.as_json import document, recommendation_json

    answer = recommendation_json(recommendation, str(path), files)
    click.echo(document(answer if checked is None else answer | {"check": checked.to_json()}))


def _print_table(recommendation: Recommendation, sized: bool, path: Path, files: list[str] | None) -> None:
    from dsconf.report.model import model_sentence
    from dsconf.report.recommendation import recommendation_text

    shape = model_sentence(recommendation.model, sized=sized)
    click.echo(recommendation_text(recommendation, shape, files, str(path)))


def _print_check(checked: CheckResult) -> None:
    from dsconf.report.recommendation import check_sentence

    click.echo(check_sentence(checked))
