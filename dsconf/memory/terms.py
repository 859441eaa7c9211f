"""What a number of bytes is made of, and what each term of the memory model is and where it is allocated.

The function that computes a term is called as the term is, in ``timeline/``, and says it as products of bytes per
element and elements. Estimates count them; for whoever wants to know, the same functions run once more and return
``Bytes``, a number that knows its products, from which all that is printed about it is printed. Files of DeepSpeed
0.19.8 are named from its root, with the line where the allocation begins.
"""

from __future__ import annotations

from typing import NamedTuple

from dsconf.memory.allocator import block, pinned_block

STAGE_1_AND_2 = "runtime/zero/stage_1_and_2.py"
STAGE_3 = "runtime/zero/stage3.py"
ENGINE = "runtime/engine.py"
FUSED = "runtime/fp16/fused_optimizer.py"
UNFUSED = "runtime/fp16/unfused_optimizer.py"
BF16 = "runtime/bf16_optimizer.py"
COORDINATOR = "runtime/zero/partitioned_param_coordinator.py"
PARTITION = "runtime/zero/partition_parameters.py"
AUTOGRAD = "torch autograd"


class Amount(NamedTuple):
    """So many elements of one width."""

    bytes_per_element: int
    elements: int
    why: str
    """What the elements are, as it follows their number; of single bytes it begins with "of"."""

    @property
    def num_bytes(self) -> int:
        """The product."""
        return self.bytes_per_element * self.elements

    def __str__(self) -> str:
        if self.bytes_per_element == 1:
            return f"{self.elements:,} bytes {self.why}"
        return f"{self.bytes_per_element:,} bytes × {self.elements:,} {self.why}"


class Bytes(int):
    """A number of bytes that knows the products it is the sum of."""

    amounts: tuple[Amount, ...]


Product = tuple[int, int, str]
"""As ``Amount``."""
ROUNDED = "of rounding to the allocator's blocks, of 512 bytes or, above 10 MiB, 2 MiB"
PINNED = "of rounding pinned memory up to a power of two"
NO_WHOLE_ELEMENT = "of an element"


class Counting:
    """Adds products up."""

    def total(self, *products: Product) -> int:
        """Add up ``products`` of bytes per element and elements, each with what the elements are."""
        return sum([width * elements for width, elements, _ in products])

    def product(self, bytes_per_element: int, elements: int, why: str) -> int:
        """Return a single product."""
        return bytes_per_element * elements

    def together(self, *parts: int) -> int:
        """Add up numbers that were counted."""
        return sum(parts)

    def in_a_block(self, bytes_per_element: int, elements: int, why: str) -> int:
        """Return one tensor as the allocator hands it out: rounded to whole blocks."""
        asked = bytes_per_element * elements
        return self.total((bytes_per_element, elements, why), (1, block(asked) - asked, ROUNDED))

    def in_pinned_memory(self, bytes_per_element: int, elements: int, why: str, *, pinned: bool = True) -> int:
        """Return one block of host memory: ``pinned`` ones are rounded up to a power of two."""
        asked = bytes_per_element * elements
        rest = pinned_block(asked) - asked if pinned else 0
        return self.total((bytes_per_element, elements, why), (1, rest, PINNED))

    def divided(self, bytes_per_element: int, elements: int, parts: int, why: str) -> int:
        """Return one of ``parts`` of the bytes of ``elements``, rounded down."""
        whole, rest = divmod(bytes_per_element * elements // parts, max(1, bytes_per_element))
        return self.total((bytes_per_element, whole, why), (1, rest, NO_WHOLE_ELEMENT))

    def of_width(self, num_bytes: int, bytes_per_element: int, why: str) -> int:
        """Return ``num_bytes`` that were recorded, as elements."""
        elements, rest = divmod(num_bytes, bytes_per_element)
        return self.total((bytes_per_element, elements, why), (1, rest, NO_WHOLE_ELEMENT))


class Explaining(Counting):
    """Adds the same products up to ``Bytes``."""

    def total(self, *products: Product) -> Bytes:
        """Return the sum, which knows the products."""
        amounts = tuple([Amount(*product) for product in products if product[0] and product[1]])
        added = Bytes(sum([amount.num_bytes for amount in amounts]))
        added.amounts = amounts
        return added

    def product(self, bytes_per_element: int, elements: int, why: str) -> Bytes:
        """Return a single product."""
        return self.total((bytes_per_element, elements, why))

    def together(self, *parts: int) -> Bytes:
        """Return the sum; amounts of the same width and kind become one."""
        added: dict[tuple[int, str], int] = {}
        for part in parts:
            for width, elements, why in amounts_of(part):
                added[width, why] = added.get((width, why), 0) + elements
        return self.total(*[(width, elements, why) for (width, why), elements in added.items()])


def amounts_of(num_bytes: int) -> tuple[Amount, ...]:
    """Return the amounts that ``num_bytes`` is made of, none where it was recorded operation by operation."""
    return num_bytes.amounts if isinstance(num_bytes, Bytes) else ()


class TermText(NamedTuple):
    """What a term is, in words, and the place of its allocation under each optimizer wrapper.

    ``places`` maps a wrapper (memory/zero/wrapper.py) to the place; ``""`` is for the others.
    """

    meaning: str
    places: dict[str, str]
    is_recorded: bool = False
    """It is found operation by operation, and has no product."""

    def place(self, wrapper: str) -> str:
        """Return where it is allocated under ``wrapper``."""
        return self.places.get(wrapper) or self.places.get("", "")

    def formula(self, num_bytes: int) -> str:
        """Return the products that make ``num_bytes``, or where they were recorded what the term is."""
        return " + ".join(map(str, amounts_of(num_bytes))) or self.meaning


_OTHER_NAMES = {
    "earlier_gradients": "gradients",
    "own_gradients": "gradients",
    "fp32_slice": "fp32 gradient",
    "muon_updates": "Muon updates",
    "newton_schulz_iteration": "Newton-Schulz iteration",
}
"""Fields of moments that are called otherwise where they are shown: several are one term to a reader."""


def term_of(field: str) -> str:
    """Return the name of the term that the ``field`` of a moment belongs to."""
    return _OTHER_NAMES.get(field) or field.replace("_", " ")


TERMS: dict[str, TermText] = {
    "parameters": TermText(
        "the trained parameters: all of them, at stage 3 this rank's slices",
        {
            "zero12": f"{STAGE_1_AND_2}:441",
            "zero3": f"{STAGE_3}:966",
            "fp16": f"{FUSED}:89",
            "bf16": f"{BF16}:166",
            "": "the model",
        },
    ),
    "frozen parameters": TermText(
        "the parameters that are not trained: all of them, at stage 3 this rank's slices",
        {"zero3": f"{PARTITION}:1690", "": "the model"},
    ),
    "buffers": TermText(
        "each layer's causal mask (GPT-Neo) or table of sines (GPT-J), whole on every rank", {"": "the model"}
    ),
    "master weights": TermText(
        "the parameters once more, in the type that the optimizer works in: this rank's slice, at stage 0 all",
        {
            "zero12": f"{STAGE_1_AND_2}:560",
            "zero3": f"{STAGE_3}:1170",
            "fp16": f"{FUSED}:103",
            "unfused": f"{UNFUSED}:78",
            "bf16": f"{BF16}:182",
        },
    ),
    "optimizer states": TermText(
        "what the optimizer keeps of each element that it trains: Adam two moments, Lion and momentum one",
        {"": "the optimizer's first step()"},
    ),
    "optimizer states of the whole model": TermText(
        "torch's Adagrad makes its sums when it is built, for the whole model",
        {"zero3": f"{STAGE_3}:1357", "": f"{STAGE_1_AND_2}:946"},
    ),
    "gradients": TermText(
        "stages 1 and 2: whole gradients of the parameters that reach into this rank's slice, or all of earlier "
        "micro-batches; a flat buffer at stage 3",
        {"zero12": f"{STAGE_1_AND_2}:2184", "zero3": f"{STAGE_3}:791", "bf16": f"{BF16}:191"},
    ),
    "gradients of this step": TermText("all gradients, kept until the step", {"": f"{ENGINE}:3531"}),
    "gradients still to reduce": TermText("whole gradients that wait for their bucket", {"": f"{STAGE_1_AND_2}:2284"}),
    "DDP buckets": TermText("a second copy of all gradients", {"": "torch/nn/parallel/distributed.py"}),
    "Muon's staged momentum": TermText(
        "the momentum once more: a step that is discarded must not change it", {"": f"{STAGE_1_AND_2}:2989"}
    ),
    "Muon updates": TermText(
        "orthogonalized gradients of whole matrices, until the step", {"": f"{STAGE_1_AND_2}:2869"}
    ),
    "Muon's gather buffers": TermText("buffers for gathering, kept up to 256 MiB", {"": f"{STAGE_3}:2098"}),
    "gathered gradients and momenta": TermText(
        "gradients and momenta of a chunk of matrices, whole, and what gathers them", {"": f"{STAGE_3}:1697"}
    ),
    "Newton-Schulz iteration": TermText(
        "the largest matrix in 16 bit, its product, and its update", {"": "runtime/zero/muon/original_muon.py:124"}
    ),
    "reduce bucket": TermText(
        "where gradients wait to be reduced together; twice with overlap_comm at stages 1 and 2",
        {"zero12": f"{STAGE_1_AND_2}:3256", "zero3": f"{STAGE_3}:780"},
    ),
    "reduce copy": TermText(
        "the bucket flattened anew for the collective",
        {
            "zero12": f"{STAGE_1_AND_2}:2367",
            "zero3": "runtime/comm/coalesced_collectives.py:141",
            "": f"{ENGINE}:3795",
        },
    ),
    "newest gradient": TermText(
        "the gradient of the parameter whose hook runs, and one too large for the bucket", {"": AUTOGRAD}
    ),
    "tied embedding gradient": TermText("the output projection's gradient, held for the embedding's", {"": AUTOGRAD}),
    "embedding gradient": TermText("the embedding's gradient, once more for the sum when tied", {"": AUTOGRAD}),
    "gathered weights": TermText("weights gathered, prefetched or kept for reuse", {"": f"{COORDINATOR}:353"}),
    "optimizer of the sub-groups on the GPU": TermText(
        "master weights, gradients and states of the first (1 − ratio) sub-groups", {"": f"{STAGE_3}:1100"}
    ),
    "secondary partition": TermText("hpZ's copy of every parameter within the node", {"": f"{PARTITION}:1900"}),
    "offload staging buffer": TermText(
        "the largest parameter's gradient on its way to the host", {"": f"{STAGE_1_AND_2}:659"}
    ),
    "saved activations": TermText(
        "what the layers kept for backward, operation by operation", {"": AUTOGRAD}, is_recorded=True
    ),
    "layer in progress": TermText("one layer's operations at their highest", {"": AUTOGRAD}, is_recorded=True),
    "logits and loss": TermText(
        "tokens × vocabulary in the model's type and in fp32",
        {"": "transformers/loss/loss_utils.py"},
        is_recorded=True,
    ),
    "cuBLAS workspaces": TermText(
        "one for forward's thread and one for backward's", {"": "torch: CublasHandlePool.cpp"}
    ),
    "fp64 gradient for the norm": TermText(
        "the largest piece of one gradient in fp64",
        {"zero12": f"{STAGE_1_AND_2}:2683", "zero3": f"{STAGE_3}:2454"},
    ),
    "flat gradient": TermText(
        "the gradients flattened for the step",
        {"zero12": f"{STAGE_1_AND_2}:3112", "zero3": f"{STAGE_3}:2683", "": f"{FUSED}:282"},
    ),
    "fp32 gradient": TermText(
        "the gradients cast to the type of the master weights",
        {"zero12": f"{STAGE_1_AND_2}:3119", "zero3": f"{STAGE_3}:2695", "": f"{FUSED}:313"},
    ),
    "overflow masks": TermText("isinf and isnan over the gradient buffer (fp16)", {"": f"{STAGE_3}:2814"}),
    "optimizer temporaries": TermText(
        "lists as large as the gradients (square roots, updates) of torch's foreach optimizers", {"": "torch/optim"}
    ),
}

_HOST_STAGE_1_AND_2 = f"{STAGE_1_AND_2}:563-575, 646-661"
_HOST_STAGE_3 = f"{STAGE_3}:791, 888, 1157, 1337"
_HOST = {"zero12": _HOST_STAGE_1_AND_2, "zero3": _HOST_STAGE_3}

HOST_TERMS: dict[str, TermText] = {
    "process": TermText("CUDA, cuBLAS and DeepSpeed's kernels, as measured", {}),
    "master weights": TermText("the parameters that the host's optimizer works on", _HOST),
    "parameter bounce buffer": TermText(
        "the updated parameters on their way to the GPU", {"zero12": _HOST_STAGE_1_AND_2}
    ),
    "gradients": TermText("the gradients that the host's optimizer works on", _HOST),
    "gradient staging buffer": TermText(
        "the largest parameter's gradient on its way from the GPU, whole in each process",
        {"zero12": _HOST_STAGE_1_AND_2},
    ),
    "optimizer states": TermText("what the optimizer keeps of each element: Adam two moments, Lion one", _HOST),
    "accumulated gradients": TermText("gradients of earlier micro-batches at stage 2", {"zero12": _HOST_STAGE_1_AND_2}),
    "16-bit gradients": TermText("the gradients as they come from the GPU, in one block", {"zero3": _HOST_STAGE_3}),
    "swap buffers": TermText("sub-groups between the NVMe drive and the optimizer", {"zero3": _HOST_STAGE_3}),
    "parameters": TermText("pinned piece by piece and then in one block", {"zero3": _HOST_STAGE_3}),
    "parameter swap buffers": TermText("parameters between the NVMe drive and the GPU", {"zero3": _HOST_STAGE_3}),
    "parameters kept in memory": TermText(
        "parameters that stay in host memory, up to max_in_cpu", {"zero3": _HOST_STAGE_3}
    ),
}
