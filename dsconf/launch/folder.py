"""The files of a folder from which a job can be launched, beside its ds_config."""

from __future__ import annotations

import json
from shlex import quote

from dsconf.launch.command import command, environment_lines, rendered
from dsconf.launch.plan import Launch

LAUNCH, SLURM, HOSTFILE = "launch.sh", "slurm.sh", "hostfile"
ACCELERATE, TRAINING_ARGUMENTS = "accelerate.yaml", "training_args.json"
EVERY = (LAUNCH, SLURM, HOSTFILE, ACCELERATE, TRAINING_ARGUMENTS)
"""Every file name that a launch may have."""


def launch_files(
    launch: Launch, folder: str, config: str, *, slurm: bool = False, hours: float | None = None
) -> dict[str, str]:
    """Write everything that starts training with the file ``config`` in ``folder``: text by file name.

    ``folder`` is the path that the files name where they cannot know where they are. ``hours`` is what the whole run is
    expected to take.
    """
    files = {LAUNCH: _launch_script(launch, config)}
    path = f"{folder}/{config}"
    if launch.target == "hf":
        files[TRAINING_ARGUMENTS] = _training_arguments(launch, path)
    if launch.launcher == "accelerate":
        files[ACCELERATE] = _accelerate(launch, path)
    if launch.launcher == "deepspeed" and launch.nodes > 1:
        files[HOSTFILE] = rendered("hostfile.j2", launch)
    if slurm:
        files[SLURM] = _slurm_script(launch, folder, config, hours)
    return files


def _launch_script(launch: Launch, config: str) -> str:
    launcher = launch.launcher
    words = _words(launch, launcher, config, script='"$script"', ranks='"$ranks"', port="${MASTER_PORT:-29500}")
    return rendered("launch.sh.j2", launch, launcher=launcher, command=words, **_exports(launch, launcher, config))


def _slurm_script(launch: Launch, folder: str, config: str, hours: float | None) -> str:
    """Write the script for Slurm, where no node needs ssh to another: srun starts torchrun, or accelerate launch, on
    each."""
    launcher = "torchrun" if launch.launcher == "deepspeed" else launch.launcher
    words = _words(launch, launcher, config, script='"$0"', ranks='"$ranks"', port="$MASTER_PORT")
    exports = _exports(launch, launcher, config)
    said = {"config": config, "folder": folder, "hours": hours, "launcher": launcher}
    return rendered("slurm.sh.j2", launch, command=words, **said, **exports)


def _words(launch: Launch, launcher: str, config: str, *, script: str, ranks: str, port: str) -> list[str]:
    """Return the command inside a script, in which ``$folder`` is where the files are."""
    return command(
        launch,
        launcher,
        config=f'"$folder"/{quote(config)}',
        hostfile=f'"$folder"/{HOSTFILE}',
        yaml=f'"$folder"/{ACCELERATE}',
        script=script,
        ranks=ranks if launch.last_node != launch.per_node else str(launch.per_node),
        node_rank='"$NODE_RANK"',
        host='"$MASTER_ADDR"',
        port=f'"{port}"',
    )


def _exports(launch: Launch, launcher: str, config: str) -> dict[str, list[str]]:
    """Return the environment as lines of a script, ``exports``, and the ``names`` that they set."""
    exports, names = [], []
    for line in environment_lines(launch, launcher, f'"$folder"/{quote(config)}', yaml=launcher == "accelerate"):
        if line.startswith("#"):
            exports.append(line)
            continue
        name, _, value = line.partition("=")
        kept = name.endswith("?")
        name = name.rstrip("?")
        names.append(name)
        exports.append(f"export {name}=${{{name}:-{value}}}" if kept else f"export {name}={value}")
    return {"exports": exports, "names": names}


def _training_arguments(launch: Launch, path: str) -> str:
    from dsconf.config.render import environment

    template = environment().get_template("training_args.json.j2")
    raw = template.render(s=launch.settings, w=launch.workload, config=path)
    return json.dumps(json.loads(raw), indent=2, ensure_ascii=False) + "\n"


def _accelerate(launch: Launch, path: str) -> str:
    from dsconf.config.render import accelerate_yaml

    return accelerate_yaml(
        path,
        world_size=launch.world_size,
        nodes=launch.nodes,
        zero3_init=launch.settings.stage == 3,
        sequence_parallel=launch.settings.sequence_parallel,
        attention=launch.attention,
    )
