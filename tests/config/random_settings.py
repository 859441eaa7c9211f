"""Any settings that the templates can write, for property tests."""

from __future__ import annotations

from hypothesis import strategies as st

from dsconf.config.settings import Settings

REDUCTION = ("reduce_bucket_size", "overlap_comm", "contiguous_gradients", "reduce_scatter")
PARTITIONS = (
    "allgather_bucket_size",
    "multi_rank_bucket_allreduce",
    "round_robin_gradients",
    "parameter_alignment",
)
STAGE3 = (
    *("sub_group_size", "prefetch_bucket_size", "param_persistence_threshold", "model_persistence_threshold"),
    *("max_live_parameters", "max_reuse_distance", "allgather_sequential", "hpz_partition_size"),
    *("quantized_weights", "quantized_nontrainable_weights", "quantized_gradients", "memory_efficient_linear"),
    "module_granularity_threshold",
)

SIZES = st.integers(1, 2**40)
DTYPES = st.sampled_from([None, "bf16", "fp16", "fp32"])


@st.composite
def some_settings(draw) -> Settings:
    stage = draw(st.integers(0, 3))
    offload = ("none", "cpu", "nvme") if stage == 3 else ("none", "cpu") if stage else ("none",)
    precision = draw(st.sampled_from(["bf16", "fp16", "fp32", "autocast"]))
    master = stage > 0 and precision == "bf16" and draw(st.booleans())
    micro, accumulation = draw(st.integers(1, 64)), draw(st.integers(1, 64))
    sharing = draw(st.sampled_from([1, 1, 2, 8]))
    optimizer = draw(st.sampled_from(["adam", "adamw", "adagrad", "lamb", "lion", "sgd", "muon"]))
    fused = {"adagrad": False, "sgd": False}.get(optimizer, True)
    return Settings(
        stage=stage,
        precision=precision,
        optimizer=optimizer,
        optimizer_fused=draw(st.booleans()) if optimizer in ("adam", "adamw") else fused,
        momentum=draw(st.floats(0, 1)) if optimizer == "sgd" else 0.0,
        micro_batch=micro,
        accumulation=accumulation,
        train_batch=micro * accumulation * 8 // sharing,
        sequence_parallel=sharing,
        gradient_clipping=draw(st.floats(0, 100)),
        grad_accum_dtype=draw(DTYPES),
        communication_dtype=draw(DTYPES),
        immediate_grad_update=draw(st.booleans()),
        bf16_master=master,
        bf16_optimizer_states=master and draw(st.booleans()),
        fp16_master=stage > 0 and precision == "fp16" and draw(st.booleans()),
        offload_optimizer=draw(st.sampled_from(offload)),
        offload_optimizer_pinned=draw(st.booleans()),
        offload_optimizer_ratio=draw(st.floats(0, 1)) if stage == 3 else 1.0,
        offload_optimizer_buffers=draw(st.integers(0, 9)),
        offload_param=draw(st.sampled_from(offload)) if stage == 3 else "none",
        offload_param_pinned=draw(st.booleans()),
        offload_param_buffers=draw(st.integers(0, 9)),
        offload_param_buffer_size=draw(SIZES),
        offload_param_max_in_cpu=draw(SIZES),
        nvme_path=draw(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1)),
        **{name: draw(SIZES) for name in ("reduce_bucket_size", "allgather_bucket_size", *STAGE3[:6])},
        **{name: draw(st.booleans()) for name in (*REDUCTION[1:], *PARTITIONS[1:], *STAGE3[8:12], STAGE3[6])},
        hpz_partition_size=draw(st.integers(1, 64)),
        module_granularity_threshold=draw(st.integers(0, 10**9)),
    )
