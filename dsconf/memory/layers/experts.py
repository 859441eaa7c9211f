"""A mixture of experts as grouped matrix products (transformers 5.17: integrations/moe.py, grouped_mm)."""

from __future__ import annotations

from dsconf.errors import InputError
from dsconf.memory.layers.recorder import LayerRecorder


def experts(r: LayerRecorder, x: int) -> int:
    """Router, then each token's rows through its chosen experts; rows are tokens × experts_per_token.

    Keeps the gathered rows, the masked gate-and-up product, the activation, their product and the output rows.
    """
    model, shape, op = r.model, r.shape, r.tape.op
    shared = r.gated_mlp(x, "mlp.shared_expert") if model.shared_mlp else x
    r.visits += ["mlp.gate", "mlp.experts.act_fn"]
    rows = shape.tokens * model.experts_per_token
    own = r.own("mlp.gate")
    logits = op("router", [x], shape.tokens * model.experts * shape.width, saves=[x], params=own, params_first=True)
    if shape.width == 2:
        logits = op("router upcast", [logits], 4 * shape.tokens * model.experts)
    weights = op("router softmax", [logits], 4 * shape.tokens * model.experts)
    r.tape.save_output(weights)
    chosen = op("router top k", [weights], 4 * rows, extra=8 * rows)
    single = 4 if model.family == "mixtral" else shape.width  # Qwen casts the chosen weights down
    if model.family == "mixtral" or model.hf_config.get("norm_topk_prob"):
        chosen = op("router normalise", [chosen], 4 * rows, saves=[chosen], extra=4 * shape.tokens)
    if single == 2:
        chosen = op("router downcast", [chosen], 2 * rows)
    weights = r.tape.save_output(op("gather weights", [chosen], single * rows))
    wide, deep = rows * model.mlp * shape.width, rows * model.hidden * shape.width
    gathered = op("gather tokens", [x], deep, extra=17 * rows)
    gathered = r.tape.part("gather mask", gathered, deep)
    if not r.has("mlp.experts.gate_up_proj"):
        raise InputError(f"{model.name}: what LoRA adapters on experts of one tensor hold is not known")
    own = r.own_tensor("mlp.experts.gate_up_proj")
    fused = op("experts gate and up", [gathered], 2 * wide, saves=[gathered], params=own)
    fused = op("experts mask", [fused], 2 * wide)
    gate, up = r.tape.split("experts gate, up", fused, (wide, wide))
    active = op("experts activation", [gate], wide, saves=[gate])
    product = op("experts product", [active, up], wide, saves=[active, up])
    down = op("experts down", [product], deep, saves=[product], params=r.own_tensor("mlp.experts.down_proj"))
    down = op("experts mask", [down], deep)
    full = single * rows * model.hidden
    casts = single > shape.width  # the gradient of ``down``, after the node itself has run
    weighted = op(
        "experts weighting",
        [down, weights],
        full,
        saves=[down, weights],
        backward_workspace=2 * full - deep if casts else full,
        reduction=2 * full if casts else 0,
    )
    ordered = op("restore order", [weighted], full, extra=8 * rows)
    y = op("sum of experts", [ordered], single * shape.tokens * model.hidden)
    if casts:
        y = op("sum of experts downcast", [y], r.hidden(model.hidden))
    return _weighted(r, x, y, shared) if model.shared_mlp else y


def _weighted(r: LayerRecorder, x: int, y: int, shared: int) -> int:
    """Record Qwen2's shared expert, weighted by a gate of one output."""
    gate = r.linear(x, "mlp.shared_expert_gate")
    gate = r.tape.save_output(r.tape.op("shared gate", [gate], r.shape.tokens * r.shape.width))
    weighted = r.tape.op("shared weighting", [shared, gate], r.hidden(r.model.hidden), saves=[shared, gate])
    return r.add(y, weighted)
