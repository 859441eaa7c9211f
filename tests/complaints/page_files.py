"""The files beside the commands of docs/complaints.md: what each thread is about."""

from __future__ import annotations

from typing import Any

from asking import ADAMW, BF16, CPU, FP16, zero

OFFLOADED = zero(3, BF16, ADAMW, offload_optimizer=CPU, offload_param=CPU)
NVME = {"device": "nvme", "nvme_path": "/nvme"}
LIVE = {"stage3_max_live_parameters": int(3e10), "stage3_max_reuse_distance": int(3e10)}
PLAIN_ADAM = {"optimizer": {"type": "AdamW", "params": {"lr": 5e-5, "torch_adam": True, "foreach": False}}}
GPTJ = {
    "model_type": "gptj",
    "n_embd": 4096,
    "n_layer": 28,
    "n_head": 16,
    "rotary_dim": 64,
    "n_positions": 2048,
    "vocab_size": 50400,
    "tie_word_embeddings": False,
}
GPT_100B = {"model_type": "gpt2", "n_embd": 10240, "n_layer": 80, "n_head": 128, "n_positions": 1024}
MODELS = {3: {"gptj": GPTJ}, 7: {"gpt": GPT_100B}}
IN_FP32 = zero(3, ADAMW, overlap_comm=True, reduce_bucket_size=200_000_000, allgather_bucket_size=200_000_000)
CONFIGS: dict[int, dict[str, Any]] = {
    1: OFFLOADED,
    3: OFFLOADED,
    5: zero(3, BF16, ADAMW, **LIVE),
    7: zero(3, FP16, ADAMW, offload_optimizer=NVME, offload_param=NVME),
    8: IN_FP32 | {"train_micro_batch_size_per_gpu": 32},
    11: zero(2, BF16, ADAMW, offload_optimizer=CPU),
    12: zero(2, BF16, ADAMW),
    13: zero(2) | {"gradient_clipp1ng": 1.0},
    14: zero(7) | {"gradient_accumulation_steps": -1},
    15: zero(2) | {"train_batch_size": 32, "train_micro_batch_size_per_gpu": 4, "gradient_accumulation_steps": 1},
    16: zero(3, reduce_bucket_size="auto", stage3_max_live_parameters="auto"),
    17: zero(2, FP16, ADAMW) | {"train_micro_batch_size_per_gpu": "8", "gradient_accumulation_steps": "auto"},
    18: zero(3, BF16, ADAMW, stage3_prefetch_bucket_size=0.9 * 4096 * 4096),
    19: zero(2, ADAMW, offload_param=CPU, offload_optimizer=CPU),
    20: zero(3, ADAMW) | {"activation_checkpointing": {"partition_activations": True, "cpu_checkpointing": True}},
    21: zero(3, BF16, ADAMW, stage3_gather_16bit_weights_on_model_save=True),
    22: zero(2, BF16, ADAMW),
    26: zero(3, BF16, ADAMW),
    28: zero(3, BF16, ADAMW),
    30: zero(2, FP16, PLAIN_ADAM),
    33: zero(2, FP16, ADAMW, reduce_bucket_size=int(2e8), overlap_comm=True),
    34: zero(3, FP16, ADAMW, sub_group_size=10**14),
    35: zero(3, BF16, ADAMW, offload_optimizer={"device": "cpu", "ratio": 0.5}),
}
"""The ds_config.json of each row that has one."""

UNPINNED = {"device": "cpu", "pin_memory": False}
OF_A_RELEASE = "dsconf validate ds_config.json --deepspeed-version {}"
OTHERS: dict[int, tuple[tuple[str, str, dict[str, Any] | None], ...]] = {
    3: (("--gpus 4", "--gpus 2", None), ("--gpus 4", "--gpus 8", None)),
    5: (("", "", zero(2, BF16, ADAMW)),),
    7: (("size 8", "size 4", None), ("size 8", "size 16", None)),
    10: (
        ("--stage 2 --offload optimizer", "--config ds_config.json", zero(2, BF16, ADAMW, offload_optimizer=UNPINNED)),
        ("optimizer", "optimizer --explain gradients", None),
    ),
    13: (("ds_config.json", "ds_config.json --fix", None),),
    15: (("--gpus 4", "--gpus 4 --fix", None),),
    21: (("", "", zero(3, BF16, ADAMW)),),
    25: (("--stage 3", "--stage 3 --explain 'master weights'", None),),
    31: (("--allocator default", "--offload optimizer", None),),
    41: ((" --quantize 4bit", "", None), (" --lora-rank 16 --quantize 4bit", "", None)),
}
"""What else the answer of a row speaks of: a change of its command, and another ds_config.json where it needs one."""
ELSEWHERE: dict[int, tuple[tuple[str, dict[str, Any] | None], ...]] = {
    10: ((OF_A_RELEASE.format("0.17"), zero(2, BF16, ADAMW, offload_optimizer=UNPINNED)),),
    12: (
        ("dsconf estimate --model meta-llama/Llama-2-7b-hf --gpus 4 --config ds_config.json", OFFLOADED),
        ("dsconf estimate --model meta-llama/Llama-2-7b-hf --gpus 8 --config ds_config.json", OFFLOADED),
        (
            "dsconf validate ds_config.json --model meta-llama/Llama-2-7b-hf --gpus 8 --gpu a100-80gb "
            "--host-memory 94GiB",
            OFFLOADED,
        ),
    ),
    35: (
        (
            "dsconf validate ds_config.json --gpus 8 --params 2.7B --gpu a100-80gb",
            zero(3, BF16, ADAMW, offload_optimizer={"device": "cpu", "ratio": 0.3}),
        ),
    ),
    36: ((OF_A_RELEASE.format("0.16.7"), zero(3, BF16, ADAMW)),),
    37: (
        (
            "dsconf estimate --model Qwen/Qwen2.5-7B --gpus 8 --gpu a100-80gb --stage 3 --offload optimizer+param "
            "--seq-len 512000 --activation-checkpointing",
            None,
        ),
    ),
}
"""And whole other commands, with their ds_config.json."""
