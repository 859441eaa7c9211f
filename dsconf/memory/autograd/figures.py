"""What a micro-batch is, and what recording or tracing it finds: plain figures that both ways share."""

from __future__ import annotations

from typing import NamedTuple

from dsconf.memory.autograd.tape import Peaks


class Activations(NamedTuple):
    """Bytes; a height counts from what was alive before the part began."""

    bottom: int
    """Kept by the embedding, and by all layers together: cos, sin, masks."""
    forward_only: int
    """Alive besides until the last layer is through: masks and the embedding's variables, if nobody keeps them."""
    layer: int
    """Kept by one layer from forward to backward: all it saved, or its input where it is checkpointed."""
    layers: int
    head: int
    """Kept by final norm, output projection and loss."""
    logits: int
    """Logits that the model's output holds until the loss is taken from it."""
    layer_forward: int
    head_forward: int
    layer_backward: Peaks
    """One layer's backward, its own kept bytes included; under checkpointing its second forward as well."""
    head_backward: Peaks
    layer_live: tuple[int, ...]
    """Alive in the layer at the hook of each of its parameters, in the order of the hooks."""
    head_live: tuple[int, ...]
    embedding_live: tuple[int, ...]
    tied: int
    """Gradient the output projection made for the tied embedding, held until the embedding's own arrives."""
    shards_gradient: int = 0
    """Gradient of the output projection that the shards of a tiled loss add up."""
    before_backward: int = 0
    """Backward of what runs before the layers, where it is more than an embedding (a traced module)."""

    @property
    def kept(self) -> int:
        """Everything between forward and backward, the loss's part left out."""
        return self.bottom + self.layers * self.layer


class Call(NamedTuple):
    """Entering or leaving one module."""

    enter: bool
    layer: int
    """Layer it belongs to; -1 before the first one, the number of layers after the last."""
    params: tuple[int, ...]
    """Its own parameters, as positions in ``sizes``, in registration order."""


class ModuleOrder(NamedTuple):
    """A model's modules in the order forward enters and leaves them."""

    sizes: tuple[int, ...]
    """Elements of every parameter, in registration order."""
    before: tuple[Call, ...]
    layers: tuple[tuple[Call, ...], ...]
    after: tuple[Call, ...]
    """Final norm, the body's end, the output projection."""
    drops: bool = False
    """Whether a layer ends with a dropout, which keeps its mask."""


class Shape(NamedTuple):
    """What the sizes of activations depend on, besides the model."""

    batch: int
    seq: int
    width: int
    """Bytes of an activation element: 2 or 4."""
    half: bool
    """fp16: its softmax upcasts inside the kernel."""
    attention: str
    """``sdpa``, ``eager`` or ``flash``."""
    autocast: bool = False
    """fp32 parameters under ``torch.autocast``: matrix products and attention run on 16-bit copies."""

    windowed: bool = True
    """Whether the layer is one of those that see a sliding window, in a model that has one."""
    ranks: int = 1
    """Ranks that share each sequence (Ulysses); ``seq`` is the share of one."""
    loss_shards: int = 0
    """Shards that logits and loss are computed in, backward included; 0: all tokens at once."""

    @property
    def low(self) -> int:
        """Bytes of an element in matrix products and attention."""
        return 2 if self.autocast else self.width

    @property
    def tokens(self) -> int:
        """Tokens of the micro-batch."""
        return self.batch * self.seq
