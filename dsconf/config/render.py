"""Writes a ds_config, and the YAML of ``accelerate launch`` beside it, through Jinja2 templates."""

from __future__ import annotations

import json
from functools import cache, partial
from shlex import quote
from typing import TYPE_CHECKING, Any, NamedTuple

from dsconf.config.names import TARGETS
from dsconf.config.settings import Settings
from dsconf.errors import InputError, nearest

if TYPE_CHECKING:
    from jinja2 import Environment


class _Optimizer(NamedTuple):
    """What the ``optimizer`` block says."""

    block: dict[str, Any]
    """``type`` and ``params``."""
    tested: bool
    """Whether ZeRO accepts it without ``zero_allow_untested_optimizer`` (DeepSpeed runtime/zero/utils.py:45-77)."""


# Settings.optimizer: (type as DeepSpeed spells it, the parameters it takes, tested with ZeRO)
_OPTIMIZERS = {
    "adam": ("Adam", ("lr", "betas", "eps", "weight_decay"), True),
    "adamw": ("AdamW", ("lr", "betas", "eps", "weight_decay"), True),
    "adagrad": ("Adagrad", ("lr", "eps", "weight_decay"), True),
    "lamb": ("Lamb", ("lr", "betas", "eps", "weight_decay"), False),
    "lion": ("Lion", ("lr", "betas", "weight_decay"), True),
    "muon": ("Muon", ("lr", "weight_decay"), True),
    "sgd": ("SGD", ("lr", "momentum", "weight_decay"), False),
}
# Which of them the Trainer fills from --learning_rate, --adam_beta1 … (transformers integrations/deepspeed.py) and
# Accelerate from DummyOptim (accelerator.py: _prepare_deepspeed); any other "auto" would reach the optimizer.
_LEFT_TO_LOADER = {
    "deepspeed": (),
    "hf": ("lr", "betas", "eps", "weight_decay"),
    "accelerate": ("lr", "weight_decay"),
}


# Settings whose keys stand in a template of their own, with the value that needs no key.
_USUAL: dict[str, Any] = {
    "grad_accum_dtype": None,
    "communication_dtype": None,
    "multi_rank_bucket_allreduce": True,
    "round_robin_gradients": False,
    "parameter_alignment": False,
    "model_persistence_threshold": Settings.model_persistence_threshold,
    "module_granularity_threshold": 0,
    "allgather_sequential": False,
    "hpz_partition_size": 1,
    "quantized_weights": False,
    "quantized_nontrainable_weights": False,
    "quantized_gradients": False,
    "memory_efficient_linear": True,
}


def _optimizer(settings: Settings, target: str, values: dict[str, Any]) -> _Optimizer | None:
    if settings.optimizer == "none":
        return None
    if settings.optimizer not in _OPTIMIZERS:
        hint = nearest(settings.optimizer, list(_OPTIMIZERS))
        raise InputError(f"cannot write a config for optimizer {settings.optimizer!r}{hint}")
    name, keys, tested = _OPTIMIZERS[settings.optimizer]
    left = _LEFT_TO_LOADER[target]
    params = {key: "auto" if key in left else values[key] for key in keys}
    if name.startswith("Adam") and not settings.optimizer_fused and settings.offload_optimizer == "none":
        params["torch_adam"] = True
    return _Optimizer({"type": name, "params": params}, tested)


def environment(**options: Any) -> Environment:
    """Make the Jinja2 environment of JSON files, in which values are written as JSON."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    from dsconf.resources import text

    return Environment(
        loader=FunctionLoader(lambda name: text("templates", name)),
        undefined=StrictUndefined,
        autoescape=False,
        auto_reload=False,
        optimized=False,
        **({"finalize": json.dumps} | options),
    )


@cache
def text_environment() -> Environment:
    """Make the Jinja2 environment of every other file: values are written as they are, and a line that only steers the
    template leaves no line.

    The filter ``json`` writes a value as JSON, which YAML reads too; ``quote`` writes it as a shell's word.
    """
    made = environment(finalize=None, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    made.filters["json"] = partial(json.dumps, ensure_ascii=False)
    made.filters["quote"] = quote
    return made


def _rare(settings: Settings, optimizer: _Optimizer | None) -> bool:
    """Say whether the config needs a key that few configs have; the templates of those keys are read only then."""
    untested = optimizer is not None and not optimizer.tested
    swaps = "nvme" in (settings.offload_optimizer, settings.offload_param)
    return untested or swaps or any(getattr(settings, field) != usual for field, usual in _USUAL.items())


def _check(settings: Settings, target: str) -> None:
    if target not in TARGETS:
        raise InputError(f"unknown target {target!r}; use one of {', '.join(TARGETS)}{nearest(target, TARGETS)}")
    if settings.engine != "deepspeed" or settings.stage not in (0, 1, 2, 3):
        raise InputError(f"there is no ds_config for engine {settings.engine}, ZeRO stage {settings.stage}")
    if target == "deepspeed" and not settings.micro_batch and not settings.train_batch:
        raise InputError("a ds_config for DeepSpeed needs a micro-batch size or a train batch size")
    devices = (settings.offload_optimizer, settings.offload_param)
    if settings.stage == 3 and "nvme" in devices and not settings.nvme_path:
        raise InputError("offload to NVMe needs the path of a folder on that disk (--nvme)")
    if settings.stage == 0 and settings.offload_optimizer != "none":
        raise InputError("optimizer offload needs ZeRO stage 1, 2 or 3")


def render(
    settings: Settings,
    target: str = "deepspeed",
    *,
    learning_rate: float = 5e-5,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> str:
    """Write the text of a complete ds_config.json: strict JSON, indented by two spaces, with a final newline.

    It has every key that matters at ``settings.stage`` and none that DeepSpeed 0.19.8 ignores or rejects. For ``hf``,
    "auto" stands for what the Trainer's arguments say. For ``accelerate`` it stands for the batches and the DummyOptim
    of the script only, because Accelerate puts 1 for accumulation and false for bf16 where the launch command is silent
    (accelerate utils/dataclasses.py: DeepSpeedPlugin). The Trainer and Accelerate turn sequence parallelism on
    themselves (accelerator.py: _prepare_deepspeed). The optimizer's numbers default to the HF Trainer's.

    Raises:
        InputError: nothing to render for these settings: no batch size, an optimizer or a target it does not know,
            NVMe offload without a path, optimizer offload at stage 0.
    """
    _check(settings, target)
    values = {
        "lr": learning_rate,
        "betas": list(betas),
        "eps": eps,
        "weight_decay": weight_decay,
        "momentum": settings.momentum,
    }
    template = environment().get_template(f"zero{settings.stage}.json.j2")
    auto = None if target == "deepspeed" else "auto"
    trainer = "auto" if target == "hf" else None
    optimizer = _optimizer(settings, target, values)
    raw = template.render(s=settings, auto=auto, trainer=trainer, optimizer=optimizer, rare=_rare(settings, optimizer))
    return json.dumps(json.loads(raw), indent=2, ensure_ascii=False) + "\n"


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
    """Write the YAML for ``world_size`` processes on ``nodes`` machines that train with the ds_config file ``config``.

    The keys are those of Accelerate's ClusterConfig (accelerate/commands/config/config_args.py). Everything else
    Accelerate takes from the DeepSpeed config file (accelerate/utils/dataclasses.py: DeepSpeedPlugin).
    ``sequence_parallel`` ranks share each sequence, with ``attention`` as Hugging Face calls the kernel.
    """
    words = locals()
    return text_environment().get_template("accelerate.yaml.j2").render(words)
