"""What each term of the memory model is, in words, and where it is allocated.

Files of DeepSpeed 0.19.8 are named from its root, with the line where the allocation begins.
"""

from __future__ import annotations

from typing import NamedTuple

ZERO12 = "runtime/zero/stage_1_and_2.py"
ZERO3 = "runtime/zero/stage3.py"
ENGINE = "runtime/engine.py"
FP16 = "runtime/fp16/fused_optimizer.py"
UNFUSED = "runtime/fp16/unfused_optimizer.py"
BF16 = "runtime/bf16_optimizer.py"
GATHER = "runtime/zero/partitioned_param_coordinator.py"
PARTITION = "runtime/zero/partition_parameters.py"
AUTOGRAD = "torch autograd"


class Known(NamedTuple):
    """A term's formula in words, and the place of its allocation under each optimizer wrapper.

    ``places`` maps a wrapper (memory/timeline/resident.py: wrapper) to the place; ``""`` is for the others.
    """

    formula: str
    places: dict[str, str]

    def place(self, wrapper: str) -> str:
        """Where it is allocated under ``wrapper``."""
        return self.places.get(wrapper) or self.places.get("", "")


TERMS: dict[str, Known] = {
    "parameters": Known(
        "bytes of the model's type × trained parameters (÷ ranks at stage 3)",
        {
            "zero12": f"{ZERO12}:441",
            "zero3": f"{ZERO3}:966",
            "fp16": f"{FP16}:89",
            "bf16": f"{BF16}:166",
            "": "the model",
        },
    ),
    "frozen parameters": Known(
        "bytes of their type × frozen parameters (÷ ranks at stage 3)", {"zero3": f"{PARTITION}:1690", "": "the model"}
    ),
    "buffers": Known(
        "each layer's causal mask (GPT-Neo) or table of sines (GPT-J), whole on every rank", {"": "the model"}
    ),
    "master weights": Known(
        "4 bytes × trained parameters ÷ ranks",
        {
            "zero12": f"{ZERO12}:560",
            "zero3": f"{ZERO3}:1170",
            "fp16": f"{FP16}:103",
            "unfused": f"{UNFUSED}:78",
            "bf16": f"{BF16}:182",
        },
    ),
    "optimizer states": Known(
        "8 bytes (Adam), 4 (Lion, momentum) or 0 × trained parameters ÷ ranks, made in the first step",
        {"": "the optimizer's first step()"},
    ),
    "optimizer states of the whole model": Known(
        "torch's Adagrad makes its sums when it is built", {"zero3": f"{ZERO3}:1357", "": f"{ZERO12}:946"}
    ),
    "gradients": Known(
        "whole gradients of the parameters that reach into this rank's slice; a flat buffer at stage 3",
        {"zero12": f"{ZERO12}:2184", "zero3": f"{ZERO3}:791", "bf16": f"{BF16}:191"},
    ),
    "gradients of this step": Known(
        "bytes of the model's type × trained parameters, kept until the step", {"": f"{ENGINE}:3531"}
    ),
    "gradients still to reduce": Known("whole gradients that wait for their bucket", {"": f"{ZERO12}:2284"}),
    "DDP buckets": Known("a second copy of all gradients", {"": "torch/nn/parallel/distributed.py"}),
    "Muon's staged momentum": Known(
        "the momentum once more: a step that is discarded must not change it", {"": f"{ZERO12}:2989"}
    ),
    "Muon updates": Known("orthogonalized gradients of whole matrices, until the step", {"": f"{ZERO12}:2869"}),
    "Muon's gather buffers": Known("buffers for gathering, kept up to 256 MiB", {"": f"{ZERO3}:2098"}),
    "gathered gradients and momenta": Known(
        "gradients and momenta of a chunk of matrices, whole, and what gathers them", {"": f"{ZERO3}:1697"}
    ),
    "Newton-Schulz iteration": Known(
        "the largest matrix in 16 bit, its product, and its update", {"": "runtime/zero/muon/original_muon.py:124"}
    ),
    "reduce bucket": Known(
        "reduce_bucket_size × bytes of the gradient, twice with overlap_comm at stages 1 and 2",
        {"zero12": f"{ZERO12}:3256", "zero3": f"{ZERO3}:780"},
    ),
    "reduce copy": Known(
        "the bucket flattened anew for the collective",
        {"zero12": f"{ZERO12}:2367", "zero3": "runtime/comm/coalesced_collectives.py:141", "": f"{ENGINE}:3795"},
    ),
    "newest gradient": Known("gradient of the parameter whose hook runs", {"": AUTOGRAD}),
    "tied embedding gradient": Known("the output projection's gradient, held for the embedding's", {"": AUTOGRAD}),
    "embedding gradient": Known("vocabulary × hidden, once more for the sum when tied", {"": AUTOGRAD}),
    "gathered weights": Known("weights gathered, prefetched or kept for reuse", {"": f"{GATHER}:353"}),
    "optimizer of the sub-groups on the GPU": Known(
        "fp32 master, gradient and two moments (16 bytes) × the elements of the first (1 − ratio) sub-groups",
        {"": f"{ZERO3}:1100"},
    ),
    "secondary partition": Known("a copy of every parameter ÷ zero_hpz_partition_size", {"": f"{PARTITION}:1900"}),
    "offload staging buffer": Known("bytes of the model's type × largest parameter", {"": f"{ZERO12}:659"}),
    "saved activations": Known("what the layers kept for backward, operation by operation", {"": AUTOGRAD}),
    "layer in progress": Known("one layer's operations at their highest", {"": AUTOGRAD}),
    "logits and loss": Known(
        "tokens × vocabulary in the model's type and in fp32", {"": "transformers/loss/loss_utils.py"}
    ),
    "cuBLAS workspaces": Known(
        "32 MiB for each of forward's and backward's thread", {"": "torch: CublasHandlePool.cpp"}
    ),
    "fp64 gradient for the norm": Known(
        "8 bytes × largest piece of one gradient", {"zero12": f"{ZERO12}:2683", "zero3": f"{ZERO3}:2454"}
    ),
    "flat gradient": Known(
        "the gradients flattened for the step",
        {"zero12": f"{ZERO12}:3112", "zero3": f"{ZERO3}:2683", "": f"{FP16}:282"},
    ),
    "fp32 gradient": Known(
        "4 bytes × elements of the step", {"zero12": f"{ZERO12}:3119", "zero3": f"{ZERO3}:2695", "": f"{FP16}:313"}
    ),
    "overflow masks": Known("isinf and isnan over the gradient buffer (fp16)", {"": f"{ZERO3}:2814"}),
    "optimizer temporaries": Known(
        "lists as large as the gradients (square roots, updates) of torch's foreach optimizers", {"": "torch/optim"}
    ),
}
