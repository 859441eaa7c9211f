"""The keys of expert_parallel (AutoEP); source: deepspeed/module_inject/auto_ep_config.py, auto_ep_presets/base.py."""

from __future__ import annotations

from tools.schema.key_types import BOOL, COUNT, COUNT_OR_NULL, REAL, TEXT_OR_NULL, WHOLE, Key

BOOL_OR_NULL = {"type": ["boolean", "null"]}
COUNT_OR_AUTO = {"title": "a positive whole number", "type": ["integer", "string"], "minimum": 1, "pattern": "^auto$"}
REAL_OR_AUTO = {"title": "a number", "type": ["number", "string"], "pattern": "^auto$"}

EXPERT_PARALLEL: dict[str, Key] = {
    "enabled": Key(BOOL, "Spreads the experts of MoE layers over ranks."),
    "autoep_size": Key(COUNT, "Ranks the experts of one layer are spread over."),
    "expert_tensor_parallel_size": Key(COUNT, "Ranks one expert is split over."),
    "validate_folding_routing": Key(BOOL, "Checks that tensor-parallel ranks route alike."),
    "async_split_plan": Key(BOOL, "Plans the exchange while computing."),
    "preset_model": Key(TEXT_OR_NULL, "Ready-made names of a model family."),
    "moe_layer_pattern": Key(TEXT_OR_NULL, "Names of MoE layers."),
    "expert_pattern": Key(TEXT_OR_NULL, "Names of experts."),
    "router_pattern": Key(TEXT_OR_NULL, "Names of routers."),
    "use_grouped_mm": Key(BOOL, "One grouped matrix product for all experts."),
    "disable_triton_grouped_mm": Key(BOOL, "Grouped product without Triton."),
    "route_norm": Key(BOOL_OR_NULL, "Whether routing weights are normalised."),
    "route_scale": Key(REAL, "Factor on the routing weights."),
    "score_apply": Key({"enum": ["auto", "pre", "post"]}, "Scores weigh tokens before or after the experts."),
    "combine_impl": Key(
        {"enum": ["auto", "weighted_sum", "fused_weighted_sum", "legacy_bmm"]}, "How expert outputs are summed."
    ),
    "row_weighting_impl": Key({"enum": ["auto", "eager", "fused"]}, "How rows are weighted."),
    "gate_up_impl": Key({"enum": ["separate", "fused"]}, "Gate and up projections apart or as one."),
    "comm_backend": Key({"enum": ["comm", "deepep"]}, "Who exchanges tokens."),
    "comm_num_sm": Key(COUNT, "Multiprocessors DeepEP takes."),
    "comm_qp_margin": Key(WHOLE, "Spare queue pairs of DeepEP."),
    "comm_max_tokens_per_rank": Key(WHOLE, "Tokens DeepEP makes room for; 0: found out."),
    "num_expert_groups": Key(COUNT_OR_NULL, "Groups of experts in routing."),
    "num_limited_groups": Key(COUNT_OR_NULL, "Groups one token may use."),
    "score_func": Key({"enum": ["auto", "softmax", "sigmoid"]}, "Function of the router's scores."),
    "top_k": Key(COUNT_OR_AUTO, "Experts of one token."),
    "load_balance_coeff": Key({"type": "null"}, "Refused unless null.", None),
    "routed_scaling_factor": Key(REAL_OR_AUTO, "Factor on routed outputs."),
    "expert_w1": Key(TEXT_OR_NULL, "Name of the gate projection."),
    "expert_w2": Key(TEXT_OR_NULL, "Name of the down projection."),
    "expert_w3": Key(TEXT_OR_NULL, "Name of the up projection; null when fused with the gate.", None),
    "num_experts_attr": Key(TEXT_OR_NULL, "Config attribute with the number of experts."),
    "top_k_attr": Key(TEXT_OR_NULL, "Config attribute with the experts of one token."),
    "has_shared_experts": Key(BOOL_OR_NULL, "Whether some experts see every token."),
    "shared_experts_pattern": Key(TEXT_OR_NULL, "Names of shared experts."),
    "shared_experts_gate_pattern": Key(TEXT_OR_NULL, "Names of their gates."),
    "expert_activation": Key(TEXT_OR_NULL, "Activation of the experts."),
}
