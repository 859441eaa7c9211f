"""A mixture of experts as grouped matrix products (transformers 5.17: integrations/moe.py, grouped_mm)."""

from __future__ import annotations

from dsconf.memory.recorder import Recorder


def experts(r: Recorder, x: int) -> int:
    """Router, then each token's rows through its chosen experts; rows are tokens × experts_per_token.

    Keeps the gathered rows, the masked gate-and-up product, the activation, their product and the output rows.
    """
    model, shape, op = r.model, r.shape, r.tape.op
    shared = r.gated_mlp(x, "mlp.shared_expert") if model.shared_mlp else x
    r.visits += ["mlp.gate", "mlp.experts.act_fn"]
    rows = shape.tokens * model.experts_per_token
    logits = op("router", [x], shape.tokens * model.experts * shape.width, saves=[x], params=r.own("mlp.gate"))
    weights = op("router softmax", [logits], 4 * shape.tokens * model.experts)
    r.tape.save_output(weights)
    chosen = op("router top k", [weights], 4 * rows, extra=8 * rows)
    r.tape.save_output(chosen)
    wide, deep = rows * model.mlp * shape.width, rows * model.hidden * shape.width
    gathered = op("gather tokens", [x], deep, extra=16 * rows)
    own = r.own_tensor("mlp.experts.gate_up_proj")
    fused = op("experts gate and up", [gathered], 2 * wide, saves=[gathered], params=own)
    fused = op("experts mask", [fused], 2 * wide)
    active = op("experts activation", [fused], wide, saves=[fused])
    product = op("experts product", [active, fused], wide, saves=[active, fused])
    down = op("experts down", [product], deep, saves=[product], params=r.own_tensor("mlp.experts.down_proj"))
    down = op("experts mask", [down], deep)
    weighted = op("experts weighting", [down, chosen], deep, saves=[down, chosen])
    ordered = op("restore order", [weighted], deep, extra=8 * rows)
    y = op("sum of experts", [ordered], r.hidden(model.hidden))
    return _weighted(r, x, y, shared) if model.shared_mlp else y


def _weighted(r: Recorder, x: int, y: int, shared: int) -> int:
    """Qwen2's shared expert, weighted by a gate of one output."""
    gate = r.linear(x, "mlp.shared_expert_gate")
    gate = r.tape.save_output(r.tape.op("shared gate", [gate], r.shape.tokens * r.shape.width))
    weighted = r.tape.op("shared weighting", [shared, gate], r.hidden(r.model.hidden), saves=[shared, gate])
    return r.add(y, weighted)
