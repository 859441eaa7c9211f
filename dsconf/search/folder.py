"""The folder that ``recommend -o`` writes: the winner's config, and what starts training with it."""

from __future__ import annotations

import json
from collections.abc import Sequence

from dsconf.errors import InputError
from dsconf.search.answer import Recommendation
from dsconf.search.launch import launch_of_winner


def config_name(comments: bool) -> str:
    """Return the name of the config in a written folder: HJSON, where it has comments."""
    return "ds_config.hjson" if comments else "ds_config.json"


def every_name() -> tuple[str, ...]:
    """List every name that a written folder may have, whatever it is for."""
    from dsconf.launch.folder import EVERY

    return (config_name(False), config_name(True), *EVERY)


def config_file(recommendation: Recommendation, *, comments: bool, reasons: Sequence[str] = ()) -> str:
    """Write the recommended config: strict JSON, or HJSON with ``reasons`` at its head and comments on values.

    Raises:
        InputError: comments for a loader that reads strict JSON alone.
        DoesNotFitError: nothing is recommended.
    """
    if not comments:
        return recommendation.config_text
    from dsconf.config.commented import commented

    refuse_comments(recommendation.target)
    config, winner = json.loads(recommendation.config_text), recommendation.recommended
    assert winner is not None
    return commented(config, winner.settings, recommendation.model, recommendation.cluster, winner.workload, reasons)


def refuse_comments(target: str) -> None:
    """Refuse comments for all but DeepSpeed's own reading.

    Raises:
        InputError: the HF Trainer and Accelerate read strict JSON (accelerate/utils/deepspeed.py: HfDeepSpeedConfig).
    """
    if target != "deepspeed":
        reader = "the Hugging Face Trainer" if target == "hf" else "Accelerate"
        raise InputError(f"--comments: {reader} reads strict JSON, without comments; use --for deepspeed")


def folder_files(
    recommendation: Recommendation,
    folder: str,
    *,
    slurm: bool = False,
    comments: bool = False,
    reasons: Sequence[str] = (),
) -> dict[str, str]:
    """Map file names to texts of a folder that can be launched, the config first. ``folder`` is its path for scripts.

    Raises:
        InputError: what ``config_file`` raises.
        DoesNotFitError: nothing is recommended.
    """
    from dsconf.launch.folder import launch_files

    name = config_name(comments)
    files = {name: config_file(recommendation, comments=comments, reasons=reasons)}
    assert recommendation.recommended is not None
    hours = recommendation.cost.hours if recommendation.cost is not None else None
    launch = launch_of_winner(recommendation.recommended, recommendation.target)
    return files | launch_files(launch, folder, name, slurm=slurm, hours=hours)
