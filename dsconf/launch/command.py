"""The command that starts training, from its launcher's template: one option to a line."""

from __future__ import annotations

from shlex import quote
from typing import Any

from dsconf.launch.plan import PORT, Launch


def rendered(template: str, launch: Launch, **words: Any) -> str:
    """Render ``template`` with the job as ``job``, its settings and workload as ``s`` and ``w``, and ``words``."""
    from dsconf.config.render import text_environment

    template_of = text_environment().get_template
    return template_of(template).render(job=launch, s=launch.settings, w=launch.workload, **words)


def command(launch: Launch, launcher: str, **words: str) -> list[str]:
    """Return the words of the command, an option with its value as one, ready for a shell.

    ``words`` are shell words: ``config`` and ``hostfile`` are files, ``yaml`` is the one for ``accelerate launch``
    or empty, ``script`` is the training script, ``ranks`` are those of a node, ``node_rank``, ``host`` and ``port``
    say which node this is and where they meet.
    """
    lines = rendered(f"command_{launcher}.j2", launch, **words).splitlines()
    return [line.strip() for line in lines if line.strip()]


def environment_lines(launch: Launch, launcher: str, config: str, *, yaml: bool) -> list[str]:
    """Return ``NAME=VALUE`` for a shell, or ``NAME?=VALUE`` where a value that is set already may stay, each after a
    comment.

    ``yaml`` says that ``accelerate launch`` reads the rest from its own file.
    """
    lines = rendered("environment.j2", launch, launcher=launcher, config=config, yaml=yaml).splitlines()
    return [line for line in lines if line]


def launch_lines(launch: Launch, config: str = "ds_config.json") -> tuple[str, ...]:
    """Return the shell lines that start train.py with the file ``config``, to be run on every node.

    The deepspeed launcher alone starts the other nodes itself, from a hostfile beside ``config``; it takes their
    environment from .deepspeed_env (deepspeed/launcher/runner.py).
    """
    launcher = launch.launcher
    folder = config.rpartition("/")[0]
    words = command(
        launch,
        launcher,
        config=quote(config),
        hostfile=quote(f"{folder}/hostfile" if folder else "hostfile"),
        yaml="",
        script="train.py",
        ranks=str(launch.per_node),
        node_rank="$NODE_RANK",
        host="$MASTER_ADDR",
        port=str(PORT),
    )
    lines = environment_lines(launch, launcher, quote(config), yaml=False)
    names = [line.replace("?=", "=", 1) for line in lines if not line.startswith("#")]
    return tuple(rendered("lines.j2", launch, launcher=launcher, names=names, command=" ".join(words)).splitlines())
