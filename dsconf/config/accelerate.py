"""Writes the YAML that ``accelerate launch --config_file`` reads."""

from __future__ import annotations


def accelerate_yaml(
    config: str, *, world_size: int, nodes: int = 1, zero3_init: bool = False, use_cpu: bool = False
) -> str:
    """The YAML for ``world_size`` processes on ``nodes`` machines that train with the ds_config file ``config``.

    The keys are those of Accelerate's ClusterConfig (accelerate/commands/config/config_args.py). Of a DeepSpeed
    config file beside it, Accelerate takes everything else (accelerate/utils/dataclasses.py: DeepSpeedPlugin).
    """
    from dsconf.config.render import environment

    template = environment().get_template("accelerate.yaml.j2")
    rendered = template.render(
        config=config, world_size=world_size, nodes=nodes, zero3_init=zero3_init, use_cpu=use_cpu
    )
    return f"{rendered}\n"
