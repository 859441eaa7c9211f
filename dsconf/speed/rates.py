"""What hardware achieves of its datasheet: every calibrated figure of the speed model, each a physical quantity.

"Profiled" means: torch 2.11 and transformers 5.17 on one NVIDIA H200 (989.4 TFLOP/s dense bf16, 4.8 TB/s), kernel
times as torch's profiler reports them, in bf16. Fractions of the peak are taken to be the same on other cards.
"""

from __future__ import annotations

MATMUL_FRACTION = 0.79
"""Of the peak matrix rate, at a long inner dimension: between 0.82, which fits products profiled inside decoder
layers and heads in short runs (749 to 806 TFLOP/s at inner dimensions of 2048 to 8192), and 0.76, which fits a loop
of nothing but products (mean error 8 %), where the card runs hotter and clocks lower."""

MATMUL_RAMP = 200
"""Steps of the inner dimension that filling and emptying one output tile costs. Profiled: 540 to 650 TFLOP/s at an
inner dimension of 896 to 1024, where 8192 reaches 790."""

MATMUL_MISALIGNED_FRACTION = 0.14
"""Of the peak where a dimension is not a multiple of 8 elements (16 bytes): 86 to 147 TFLOP/s at a vocabulary of
50257. NVIDIA's matrix multiplication guide names the rule:
https://docs.nvidia.com/deeplearning/performance/dl-performance-matrix-multiplication/"""

FP32_MATMUL_FRACTION = 0.75
"""Of the plain fp32 rate: 50.2 of 66.9 TFLOP/s at 8192 × 4096 × 4096."""

ATTENTION_FORWARD = (0.45, 0.64)
"""Of the peak matrix rate for long sequences, at head sizes of 64 and of 128 (cuDNN's flash kernel)."""

ATTENTION_BACKWARD = (0.42, 0.55)
"""The same in backward."""

MASKED_FORWARD = (0.25, 0.36)
"""Of the peak matrix rate over long sequences at head sizes of 64 and of 128, by cuDNN's kernel with a mask, all scores
counted: 249 and 356 TFLOP/s at 8192 tokens on an H100 SXM (``h100-attention.jsonl``)."""

MASKED_BACKWARD = (0.26, 0.29)
"""The same in backward: 261 and 292 TFLOP/s."""

MASKED_FORWARD_RAMP = 200
"""Sequence length at which a kernel with a mask runs at half of its fraction: 298 TFLOP/s at 1024 (128 to a head)."""

MASKED_BACKWARD_RAMP = 300
"""The same in backward: 202 and 236 TFLOP/s at 1024 and 2048 (64 to a head)."""

EFFICIENT_FORWARD = (0.18, 0.26)
"""The same by torch's memory-efficient kernel, written with the A100's instructions, of the H100's peak with those
(495 TFLOP/s): 87 and 129 TFLOP/s."""

EFFICIENT_BACKWARD = (0.19, 0.24)
"""The same in backward: 93 and 121 TFLOP/s."""

FLASH_1_FORWARD = (0.40, 0.40)
"""Of the A100's peak, by FlashAttention of the first generation: the middle of the 30 to 50 % that its author gives
for forward (https://arxiv.org/abs/2307.08691, section 1). Only published tables of 2023 need it."""

FLASH_1_BACKWARD = (0.30, 0.30)
"""The same in backward, of 25 to 35 %."""

ATTENTION_FORWARD_RAMP = 300
"""Sequence length at which the causal kernel runs at half of ATTENTION_FORWARD: 302, 524 and 614 TFLOP/s at 1024
(64 to a head), 2048 and 8192 (128 to a head)."""

ATTENTION_BACKWARD_RAMP = 750
"""The same in backward: 237, 390, 518 and 537 TFLOP/s at 1024 (64 to a head), 2048, 8192 and 32768."""

TRAFFIC_FRACTION = 0.60
"""Of the memory bandwidth, by the kernels of eager PyTorch. Profiled: 490 bytes an element of a llama layer's
hidden state (33.6 million) in 5.7 ms, 2.9 TB/s; fp32 softmax of the logits 3.1 TB/s; fused AdamW 2.8 TB/s. A plain
copy reaches 4.2."""

OPERATION_SECONDS = 22e-6
"""Python, dispatcher and launch of one operation in forward; an addition alone takes 10.7 µs. This and the figures
below are least squares of relative errors over 80 steps of eight models too small to keep an H200 busy
(``h200-launches.jsonl``) on two hosts, of 16 and of 64 cores. The second takes a third longer for the same Python, and
the same step varies by a third from run to run on both."""

MODULE_SECONDS = 13e-6
"""A call of one ``torch.nn.Module`` in forward: hooks looked up, Hugging Face's Python around its operations."""

BACKWARD_OPERATION_SECONDS = 19e-6
"""One kernel of backward, launched by autograd's engine."""

GRADIENT_SECONDS = 21e-6
"""Of each trained tensor in backward: its gradient is put where it belongs (AccumulateGrad)."""

SAVED_SECONDS = 37e-6
"""A call of the hook that ``torch.utils.checkpoint`` has on each tensor that an operation saves: one in forward, one
more when the layer is computed again and one in its backward (``pack_hook``, ``unpack_hook``: 38 of each in a llama
layer, whose forward is 39 operations; taken as one for each operation)."""

AUTOCAST_OPERATIONS = 3
"""Casts that torch.autocast adds to a projection: its weight, its input and, before a sum in fp32, its output; each has
one of its own in backward."""

HOOK_SECONDS = 100e-6
"""Python that DeepSpeed 0.19.8 runs in backward for each trained tensor at stages 1 to 3: hook, bucket, norm."""

FETCH_SECONDS = 505e-6
"""Python of stage 3 around each module with parameters of its own, in forward and again in backward: fetch, prefetch,
release (partitioned_param_coordinator.py)."""

GATHER_SECONDS = 116e-6
"""Python of stage 3 for each tensor that is gathered and given up again, each time (``all_gather_coalesced``,
``__release_param``); small tensors stay (``stage3_param_persistence_threshold``)."""

STEP_SECONDS = {0: 152e-6, 1: 152e-6, 2: 152e-6, 3: 89e-6}
"""Of each tensor whose gradient a rank keeps, in the optimizer step, by ZeRO stage: its norm, its way into and out of
the flat buffer. Stages 0 to 2 (150 to 155 µs) share one figure."""

PLAIN_STEP_SECONDS = 22e-6
"""The same without DeepSpeed: clipping and torch's foreach AdamW."""

FUSED_TRAFFIC_FRACTION = 0.87
"""The same by kernels that read and write each element once, as a plain copy does: 4.2 of 4.8 TB/s."""

COMPILED_OPERATION_SECONDS = 4e-6
"""Launch of one kernel by torch.compile's generated Python: the driver's launch alone takes 2 to 4 µs."""

HOST_LINK_FRACTION = 0.88
"""Of PCIe's signalling rate, between pinned host memory and GPU: 55.3 of 63 GB/s either way."""

LINK_FRACTION = 0.8
"""Of NVLink's or the network's rate, by NCCL's large collectives: bus bandwidths near 360 of 450 GB/s on H100 and
235 of 300 GB/s on A100, as nccl-tests results are published:
https://github.com/stas00/ml-engineering/tree/master/network/benchmarks"""

COLLECTIVE_PROCESSORS = 24 / 132
"""Share of the multiprocessors that a collective within an NVLink node takes from the kernels beside it: NCCL says
"24 coll channels" on 8 H100 (132 multiprocessors), each one thread block that stays while it waits."""

NODE_COLLECTIVE_PROCESSORS = 16 / 132
"""The same across nodes ("16 coll channels"), and between cards on PCIe, where NCCL opens no more."""

CPU_BYTES_PER_CORE = 2.6e9
"""Bytes a second and core of the optimizer step on the CPU (clip, DeepSpeedCPUAdam, cast). Calibrated on the step
of a 1.2B llama at stage 2 with CPU offload on 16 cores: 42 bytes for each of 1.24e9 elements in 1.26 s. The authors
of ZeRO-Offload report 0.25 s for 1e9 elements on 48 cores, 3.5 GB/s a core for the same bytes
(https://arxiv.org/abs/2101.06840)."""
