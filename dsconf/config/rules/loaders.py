"""What HF Trainer and Accelerate do with a file before, or instead of, DeepSpeed."""

from __future__ import annotations

from collections.abc import Iterator

from dsconf.config.finding import Problem
from dsconf.config.releases import property_at
from dsconf.config.rules.case import Case, block

_TRAINER_ARGUMENTS = {
    ("train_micro_batch_size_per_gpu",): "per_device_train_batch_size",
    ("gradient_accumulation_steps",): "gradient_accumulation_steps",
    ("gradient_clipping",): "max_grad_norm",
    ("optimizer", "params", "lr"): "learning_rate",
    ("optimizer", "params", "betas"): "adam_beta1 and adam_beta2",
    ("optimizer", "params", "eps"): "adam_epsilon",
    ("optimizer", "params", "weight_decay"): "weight_decay",
    ("scheduler", "params", "warmup_max_lr"): "learning_rate",
    ("scheduler", "params", "warmup_num_steps"): "warmup_steps",
    ("scheduler", "params", "total_num_steps"): "max_steps",
    ("fp16", "enabled"): "fp16",
    ("bf16", "enabled"): "bf16",
}
"""Keys that the Trainer compares with its own arguments (transformers integrations/deepspeed.py:136-263)."""


def clipping_by_default(case: Case) -> Iterator[Problem]:
    """Find configs that leave clipping to the default, a norm of 1.0 (runtime/constants.py:202-203).

    Earlier releases do not clip, which is a surprise only where the Trainer's argument asks for it.
    """
    if "gradient_clipping" in case.config:
        return
    norm = (property_at(("gradient_clipping",), case.release) or {}).get("default")
    if not norm and case.target != "hf":
        return
    message = f"gradients are clipped at a norm of {norm}" if norm else "gradients are not clipped"
    message += f", the default of DeepSpeed {case.release}"
    if case.target == "hf":
        message += ", whatever max_grad_norm says"
    advice = 'add "gradient_clipping": ' + ("1.0, or 0 for none" if case.target == "deepspeed" else '"auto"')
    yield Problem("DS601", "note", (), message, advice)


def must_match(case: Case) -> Iterator[Problem]:
    """Find numbers that the Trainer compares with its own arguments, refusing to start where they differ."""
    if case.target != "hf":
        return
    literal = []
    for path, argument in _TRAINER_ARGUMENTS.items():
        value = block(case.config, *path[:-1]).get(path[-1])
        if value not in (None, "auto"):
            literal.append(f"{path[-1]} ({argument})" if path[-1] != argument else argument)
    if literal:
        message = f"HF Trainer does not start unless its own arguments equal {', '.join(literal)}"
        yield Problem("DS603", "note", (), message, 'write "auto" to take them from the Trainer')


def activation_checkpointing(case: Case) -> Iterator[Problem]:
    """Find a block that only deepspeed.checkpointing.configure() reads
    (activation_checkpointing/checkpointing.py:1121)."""
    if not block(case.config, "activation_checkpointing"):
        return
    path = ("activation_checkpointing",)
    if case.target == "hf":
        message = "HF Trainer and its models never read this block: it saves no memory"
        yield Problem("DS602", "warning", path, message, "use gradient_checkpointing of the Trainer")
    else:
        message = "only scripts that call deepspeed.checkpointing.configure() read this block"
        yield Problem("DS602", "note", path, message)


def printing(case: Case) -> Iterator[Problem]:
    """Find steps_per_print, which Accelerate replaces by infinity (accelerate utils/dataclasses.py:
    DeepSpeedPlugin.__post_init__)."""
    if case.target != "deepspeed" and case.config.get("steps_per_print") is not None:
        yield Problem("DS604", "note", ("steps_per_print",), "Accelerate replaces it: DeepSpeed prints nothing")
