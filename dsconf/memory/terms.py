"""What each term of the memory model is, in words, and where it is allocated.

Z12 and Z3 are DeepSpeed 0.19.8's runtime/zero/stage_1_and_2.py and stage3.py; ENG runtime/engine.py; FO
runtime/fp16/fused_optimizer.py; PP runtime/zero/partition_parameters.py; CO partitioned_param_coordinator.py.
"""

from __future__ import annotations

from typing import NamedTuple


class Known(NamedTuple):
    """Formula in words, and the place of the allocation."""

    formula: str
    source: str


TERMS: dict[str, Known] = {
    "parameters": Known("bytes of the model's type × parameters (÷ ranks at stage 3)", "Z12:441,534; Z3:966"),
    "frozen parameters": Known("bytes of the model's type × frozen parameters (÷ ranks at stage 3)", "Z12:429; Z3:966"),
    "master weights": Known("4 bytes × trained parameters ÷ ranks", "Z12:560; Z3:1170; FO:89"),
    "optimizer states": Known(
        "8 bytes (Adam) × trained parameters ÷ ranks, made in the first step", "ops/adam/fused_adam.py"
    ),
    "optimizer states of the whole model": Known("torch's Adagrad makes its sums at construction", "Z12:946"),
    "gradients": Known(
        "whole gradients of the parameters that reach into this rank's slice; a flat buffer at stage 3",
        "Z12:2184; Z3:791",
    ),
    "gradients of this step": Known("bytes of the model's type × trained parameters, kept to the step", "ENG:3531"),
    "gradients still to reduce": Known("whole gradients that wait for their bucket (stage 1)", "Z12:2284"),
    "DDP buckets": Known("a second copy of all gradients", "torch/nn/parallel/distributed.py"),
    "reduce bucket": Known("reduce_bucket_size × bytes of the gradient, twice with overlap_comm", "Z12:3256; Z3:780"),
    "reduce copy": Known("the bucket flattened anew for the collective", "Z12:1706,2367; Z3:1918"),
    "newest gradient": Known("gradient of the parameter whose hook runs", "torch autograd"),
    "tied embedding gradient": Known("the output projection's gradient, held for the embedding's", "torch autograd"),
    "embedding gradient": Known("vocabulary × hidden, once more for the sum when tied", "torch autograd"),
    "gathered weights": Known("weights gathered, prefetched or kept for reuse", "CO:353-485,634; PP:757"),
    "secondary partition": Known("a copy of every parameter ÷ zero_hpz_partition_size", "PP:1900"),
    "offload staging buffer": Known("bytes of the model's type × largest parameter", "Z12:659"),
    "saved activations": Known("what the layers kept for backward", "torch autograd, operation by operation"),
    "layer in progress": Known("one layer's operations at their highest", "torch autograd, operation by operation"),
    "logits and loss": Known("tokens × vocabulary in the model's type and in fp32", "transformers loss_utils.py"),
    "cuBLAS workspaces": Known("32 MiB for each of forward's and backward's thread", "torch CublasHandlePool.cpp"),
    "fp64 gradient for the norm": Known("8 bytes × largest piece of one gradient", "Z12:2683; Z3:2454"),
    "flat gradient": Known("the gradients flattened for the step", "Z12:3112; Z3:2683; FO:282"),
    "fp32 gradient": Known("4 bytes × elements of the step", "Z12:3119; Z3:2695; FO:282"),
    "overflow masks": Known("isinf and isnan over the gradient buffer (fp16)", "Z3:2814"),
    "optimizer temporaries": Known("one list of square roots (torch's foreach optimizers)", "torch/optim/adam.py"),
}
