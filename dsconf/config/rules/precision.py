"""bf16, fp16 and what depends on them."""

from __future__ import annotations

from collections.abc import Iterator

from dsconf.config.finding import Problem, Remove
from dsconf.config.rules.case import (
    Case,
    bf16_name,
    block,
    dtype,
    flag,
    number,
    offloads_optimizer,
    precision,
    whole,
)


def bf16_and_fp16(case: Case) -> Iterator[Problem]:
    """Find both enabled; they exclude each other (runtime/config.py:511-512)."""
    on = [name for name in (bf16_name(case.config), "fp16") if flag(block(case.config, name).get("enabled", False))]
    if len(on) == 2:
        message = f"fp16 and {on[0]} are both enabled"
        yield Problem("DS501", "error", ("fp16", "enabled"), message, "switch one of them off")


def bfloat16_ignored(case: Case) -> Iterator[Problem]:
    """Find ``bfloat16`` beside ``bf16``, even one that is off: it is not read (runtime/precision_config.py:34-38)."""
    if "bfloat16" in case.config and case.config.get("bf16") is not None:
        message = "ignored, because there is a bf16 block"
        fix = (Remove(("bfloat16",)),) if case.config["bfloat16"] == case.config["bf16"] else ()
        yield Problem("DS502", "error", ("bfloat16",), message, "leave it out", fix)


def master_without_zero(case: Case) -> Iterator[Problem]:
    """Find 16-bit masters at stage 0; they need ZeRO (runtime/config.py:702-713)."""
    bf16 = bf16_name(case.config)
    masters = (("fp16", "fp16_master_weights_and_grads"), (bf16, "bf16_master_weights_and_grads"))
    for name, key in (*masters, (bf16, "bf16_optimizer_states")):
        if case.stage == 0 and flag(block(case.config, name).get(key, False)):
            yield Problem("DS503", "error", (name, key), "needs ZeRO stage 1, 2 or 3", "leave it out")


def states_without_master(case: Case) -> Iterator[Problem]:
    """Find 16-bit states without the 16-bit masters they need (runtime/config.py:714)."""
    bf16 = bf16_name(case.config)
    states, master = (
        block(case.config, bf16).get(key, False) for key in ("bf16_optimizer_states", "bf16_master_weights_and_grads")
    )
    if flag(states) and not flag(master) and case.stage != 0:
        advice = "set bf16_master_weights_and_grads too"
        yield Problem("DS504", "error", (bf16, "bf16_optimizer_states"), "needs 16-bit masters", advice)


def master_without_offload(case: Case) -> Iterator[Problem]:
    """Find 16-bit masters without DeepSpeed's CPU Adam, unless bf16's states are 16-bit too
    (base_optimizer.py:507-518)."""
    if case.stage in (0, None) or offloads_optimizer(case) or "auto" in str(case.zero.get("offload_optimizer")):
        return
    bf16 = bf16_name(case.config)
    block16 = block(case.config, bf16)
    masters = [("fp16", "fp16_master_weights_and_grads")]
    if not flag(block16.get("bf16_optimizer_states", False)):
        masters.append((bf16, "bf16_master_weights_and_grads"))
    for name, key in masters:
        if flag(block(case.config, name).get(key, False)):
            advice = 'add offload_optimizer {"device": "cpu"} with Adam or AdamW'
            if name == bf16:
                advice += ", or set bf16_optimizer_states too"
            yield Problem("DS505", "error", (name, key), "needs the optimizer offloaded to the CPU", advice)


def autocast_and_16_bit(case: Case) -> Iterator[Problem]:
    """Find autocast beside 16-bit parameters, which leave it little to do (runtime/engine.py:1838-1843)."""
    if block(case.config, "torch_autocast").get("enabled", False) is True and precision(case) in ("bf16", "fp16"):
        message = f"{precision(case)} is enabled as well: parameters are 16-bit, not the fp32 that autocast expects"
        yield Problem("DS506", "warning", ("torch_autocast", "enabled"), message, "switch one of them off")


def auto_cast_of_fp16_off(case: Case) -> Iterator[Problem]:
    """Find ``auto_cast`` with fp16 off: it still turns float inputs into fp16 (runtime/engine.py:2957)."""
    fp16 = block(case.config, "fp16")
    bf16_on = block(case.config, bf16_name(case.config)).get("enabled", False)
    if (
        flag(fp16.get("auto_cast", False))
        and flag(fp16.get("enabled", False)) is False
        and bf16_on not in (False, "auto")
    ):
        message = "casts positional float inputs to fp16 although fp16 is off; under bf16 the first layer then fails"
        yield Problem("DS507", "warning", ("fp16", "auto_cast"), message, "leave it out")


def other_param_dtype(case: Case) -> Iterator[Problem]:
    """Find a ``param_dtype`` that differs from what fp16 and bf16 say (runtime/engine.py:1812-1829)."""
    wanted, model = dtype(block(case.config, "data_types").get("param_dtype")), precision(case)
    if wanted is not None and model is not None and wanted != model:
        message = f"{wanted} conflicts with the model's {model}"
        yield Problem(
            "DS508", "error", ("data_types", "param_dtype"), message, "leave it out, or switch that precision on"
        )


def other_accumulation_at_stage0(case: Case) -> Iterator[Problem]:
    """Find another accumulation type without ZeRO, which sums gradients in the model's own
    (runtime/engine.py:2313-2323)."""
    wanted, model = dtype(block(case.config, "data_types").get("grad_accum_dtype")), precision(case)
    if case.stage == 0 and wanted is not None and model is not None and wanted != model:
        message = f"{wanted} needs a ZeRO stage; at stage 0 it must be the model's {model}"
        yield Problem("DS509", "error", ("data_types", "grad_accum_dtype"), message, "leave it out, or use stage 1")


def dynamic_loss_scale(case: Case) -> Iterator[Problem]:
    """Find a window or floor that is not above 0, or a first scale beyond an int64 (precision_config.py:182-197,
    loss_scaler.py)."""
    fp16 = block(case.config, "fp16")
    scale = fp16.get("loss_scale", 0)
    if flag(fp16.get("enabled", False)) is False or not (scale == "auto" or number(scale) == 0):
        return
    for key in ("loss_scale_window", "min_loss_scale"):
        value = whole(fp16.get(key, 1))
        if value is not None and value <= 0:
            message = f"{value} must be more than 0 with dynamic loss scaling"
            yield Problem("DS510", "error", ("fp16", key), message, "leave it out, or set a fixed loss_scale")
    power = whole(fp16.get("initial_scale_power", 16))
    if power is not None and power > 63:
        message = f"a loss scale of 2^{power} overflows in the first step"
        yield Problem("DS510", "error", ("fp16", "initial_scale_power"), message, "leave it out for 16")
