"""Complaints of people who had to find the right strategy by trial: what ``recommend`` answers.

docs/complaints.md lists all 41.
"""

from __future__ import annotations

import pytest
from asking import ADAMW, BF16, GIB, ask, figures, findings, zero


def test_complaint_04_stage_3_can_hold_more_than_stage_2() -> None:
    """Stage 3 uses more memory than stage 2 (7B with Ulysses; BLOOM-560M on four T4 in another thread).

    https://github.com/deepspeedai/DeepSpeed/issues/5305, https://github.com/deepspeedai/DeepSpeed/issues/3734
    Stages with DeepSpeed's defaults, whose stage 3 may keep all of a small model gathered.
    """
    line = "dsconf estimate --model bigscience/bloom-560m --gpus 4 --gpu t4 --precision fp16 --seq-len 512 --stage {}"
    two, three = (figures(line.format(stage)) for stage in (2, 3))
    assert three["peak_bytes"] > 1.2 * two["peak_bytes"]
    assert three["terms"]["gathered weights"] >= two["terms"]["parameters"]
    limits = {"stage3_max_live_parameters": int(3e10), "stage3_max_reuse_distance": int(3e10)}
    shared = "dsconf estimate --model meta-llama/Llama-2-7b-hf --gpus 8 --config ds_config.json --seq-len 32768"
    shared += " --activation-checkpointing"
    ulysses = {"sequence_parallel_size": 4}
    more, less = (
        figures(shared, zero(3, BF16, ADAMW, ulysses, **limits)),
        figures(shared, zero(2, BF16, ADAMW, ulysses)),
    )
    assert more["peak_bytes"] > less["peak_bytes"] > figures(shared, zero(3, BF16, ADAMW, ulysses))["peak_bytes"]


def test_complaint_04_the_recommendation_says_so() -> None:
    """Stage 3 uses more memory than stage 2, and nobody says so.

    https://github.com/deepspeedai/DeepSpeed/issues/5305
    """
    line = "dsconf recommend --model meta-llama/Llama-3.2-3B --gpus 2 --gpu h100-80gb --no-activation-checkpointing"
    notes = " ".join(figures(f"{line} --offload none")["notes"])
    assert "ZeRO stage 3 holds " in notes
    assert " more than stage 2 here: what it gathers outweighs what it shards." in notes


def test_complaint_06_the_stage_for_lora() -> None:
    """DeepSpeed-Chat with LoRA: Pythia-6.9B takes 16.6 GB after initialisation at z3, 6.6 at z2.

    https://github.com/deepspeedai/DeepSpeed/issues/4305, https://github.com/deepspeedai/DeepSpeedExamples/issues/284
    """
    line = "dsconf recommend --model EleutherAI/pythia-6.9b --gpus 4 --gpu a100-40gb --lora-rank 128 --seq-len 1200"
    found = figures(f"{line} --offload none")
    assert found["recommended"]["config"]["zero_optimization"]["stage"] <= 2
    line = "dsconf estimate --model EleutherAI/pythia-6.9b --gpus 4 --lora-rank 128 --seq-len 1200 --stage 3"
    loaded = figures(f"{line} --no-zero-init")
    assert loaded["init_peak_bytes"] == pytest.approx(2 * loaded["parameters"]["total"], rel=0.05)
    assert figures(line)["init_peak_bytes"] < 0.5 * loaded["init_peak_bytes"]


def test_complaint_23_an_answer_without_a_cluster() -> None:
    """The autotuner runs for half an hour on the cluster and ends with "no optimal config".

    https://github.com/huggingface/transformers/issues/27830
    """
    line = "dsconf recommend --model Qwen/Qwen2.5-7B --gpus 8 --gpu a100-80gb --global-batch-size 64"
    found = figures(f"{line} --activation-checkpointing")
    assert found["recommended"]["fits"] == "yes"
    assert found["recommended"]["config"]["train_batch_size"] == 64
    rates = [one["tokens_per_second"] for one in found["candidates"] if one["fits"] == "yes"]
    assert found["recommended"]["tokens_per_second"] > 0.95 * max(rates)
    assert found["why"]


def test_complaint_27_out_of_memory_after_hours() -> None:
    """LoRA of Llama-3.1-8B on four 45 GB cards runs out of memory when the first long sample comes.

    https://github.com/hiyouga/LlamaFactory/issues/6531
    """
    line = "dsconf recommend --model meta-llama/Llama-3.1-8B --gpus 4 --gpu l40s --lora-rank 8 --seq-len 15000"
    found = figures(f"{line} --activation-checkpointing --offload none")
    notes = " ".join(found["notes"])
    assert "This holds for samples of up to --seq-len 15000 tokens; with these settings up to 15" in notes
    assert "GiB in reserve for fragmentation" in notes
    assert found["recommended"]["estimate"]["process_bytes"] < 44.39 * GIB
    line = "dsconf estimate --model meta-llama/Llama-3.1-8B --gpus 4 --gpu l40s --lora-rank 8 --seq-len {} --stage 3"
    fits = [figures(f"{line.format(length)} --activation-checkpointing")["fits"] for length in (15000, 30000)]
    assert fits == ["yes", "no"]


def test_complaint_28_zero_on_one_gpu() -> None:
    """Stage 3 "does not affect the VRAM at all": one GPU.

    https://github.com/huggingface/trl/issues/2784
    """
    note = findings("dsconf validate ds_config.json --gpus 1", zero(3, BF16, ADAMW))["DS308"]
    assert "one GPU has nobody to share with: stage 3 saves no memory" in note["message"]
    line = "dsconf stages --model Qwen/Qwen2.5-7B --gpus 1 --gpu a100-80gb"
    assert "With one GPU there is nobody to share with: ZeRO shards nothing." in ask(line).text
    line = "dsconf recommend --model Qwen/Qwen2.5-7B --gpus 1 --gpu a100-80gb --activation-checkpointing"
    text = ask(line).text
    assert (
        "With one GPU ZeRO shards nothing: only offload, checkpointing and a smaller micro-batch save memory." in text
    )
    assert "nothing with optimizer states in fp32 fits with headroom without offload; this is " in text


def test_complaint_37_a_context_of_500_000_tokens() -> None:
    """Offload does not help 500k tokens: what fills the GPUs is not what is offloaded.

    https://github.com/hiyouga/LlamaFactory/issues/8671
    """
    line = "dsconf estimate --model Qwen/Qwen2.5-7B --gpus 8 --gpu a100-80gb --stage 3 --offload optimizer+param"
    found = figures(f"{line} --seq-len 512000 --activation-checkpointing")
    assert found["fits"] == "no"
    terms = found["terms"]
    assert terms["logits and loss"] + terms["saved activations"] > 0.99 * found["peak_bytes"]
    assert terms["logits and loss"] > 0.85 * found["peak_bytes"]


def test_complaint_37_sequence_parallelism_and_a_tiled_loss() -> None:
    """500k tokens do not fit, and nobody says what would make them fit.

    https://github.com/hiyouga/LlamaFactory/issues/8671
    """
    line = "dsconf recommend --model Qwen/Qwen2.5-7B --gpus 8 --gpu a100-80gb --seq-len 512000"
    found = figures(f"{line} --stage 3 --activation-checkpointing --offload param")
    assert found["recommended"]["config"]["sequence_parallel_size"] == 4  # no more: it has 4 heads of keys
    notes = " ".join(found["notes"])
    assert "UlyssesSPAttentionHF" in notes
    assert "TiledFusedLogitsLoss" in notes


def test_complaint_40_the_middle_between_none_and_all_offloaded() -> None:
    """70B on 8 H200: stage 3 runs out of memory, stage 3 with all offloaded uses 27 of 141 GB and crawls.

    https://github.com/hiyouga/LlamaFactory/issues/7282
    """
    line = "dsconf recommend --model meta-llama/Llama-3.3-70B-Instruct --gpus 8 --gpu h200 --seq-len 1024"
    line += " --host-memory 2TiB"
    found = figures(f"{line} --activation-checkpointing")
    best = found["recommended"]
    block = best["config"]["zero_optimization"]
    assert (block["stage"], block["offload_optimizer"]["device"]) == (3, "cpu")
    assert "offload_param" not in block
    assert best["fits"] == "yes"
    assert best["estimate"]["process_bytes"] > 0.75 * 139.72 * GIB
    estimate = line.replace("recommend", "estimate") + " --stage 3 --activation-checkpointing"
    none = figures(f"{estimate} --allocator default")
    assert none["fits"] in ("no", "tight")
    everything = figures(f"{estimate} --offload optimizer+param --micro-batch-size 1")
    assert everything["process_bytes"] < 27 * GIB
