"""Writes the YAML that ``accelerate launch --config_file`` reads."""

from __future__ import annotations


def accelerate_yaml(
    config: str,
    *,
    world_size: int,
    nodes: int = 1,
    zero3_init: bool = False,
    use_cpu: bool = False,
    sequence_parallel: int = 1,
    attention: str = "sdpa",
) -> str:
    """The YAML for ``world_size`` processes on ``nodes`` machines that train with the ds_config file ``config``.

    The keys are those of Accelerate's ClusterConfig (accelerate/commands/config/config_args.py). Of a DeepSpeed
    config file beside it, Accelerate takes everything else (accelerate/utils/dataclasses.py: DeepSpeedPlugin).
    ``sequence_parallel`` ranks share each sequence, with ``attention`` as Hugging Face calls the kernel.
    """
    words = locals()
    from dsconf.config.render import text_environment

    return text_environment().get_template("accelerate.yaml.j2").render(words)
