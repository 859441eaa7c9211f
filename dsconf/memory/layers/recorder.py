"""Records a model's modules on a tape, with the sizes of one micro-batch."""

from __future__ import annotations

from typing import NamedTuple

from dsconf.memory.autograd.column_sum import ColumnSum
from dsconf.memory.autograd.figures import Shape
from dsconf.memory.autograd.tape import Tape
from dsconf.model.spec import Model, Param

JOINS_ROTATED = ("gpt_neox", "phi", "phi3", "stablelm")
"""Families that join rotated and other elements of a head with torch.cat, also where there are no others."""

_ADAPTED = ("base_layer", "lora_dropout.default", "lora_A.default", "lora_B.default")


class LayerRecorder:
    """Modules of ``model``'s layer (or of its ends) recorded one after another."""

    def __init__(self, model: Model, shape: Shape, params: tuple[Param, ...]) -> None:
        self.tape = Tape()
        self.model = model
        self.shape = shape
        self.visits: list[str] = []
        """Names of the modules with a forward of their own, in the order forward calls them."""
        self.low_tensors: set[int] = set()
        """Those of 16 bit under autocast."""
        self._params = {p.name: p for p in params}
        self._projected: int | None = None
        """Input of the latest linear layer."""
        self._referred: list[int] = []

    def refer(self, *tensors: int) -> None:
        """Let variables keep ``tensors``, and what they were projected from, alive until the next linear layer is
        done."""
        self._referred = [*tensors] if self._projected is None else [self._projected, *tensors]

    def own(self, name: str) -> list[tuple[str, int]]:
        """Return (name, bytes of the gradient) of the trainable weight and bias called ``name``."""
        width = self.shape.width
        found = (self._params.get(f"{name}.{end}") for end in ("weight", "bias"))
        return [(p.name, p.numel * width) for p in found if p is not None and p.trainable]

    def own_tensor(self, name: str) -> list[tuple[str, int]]:
        """Return (name, bytes of the gradient) of the parameter called exactly ``name``, if it is trained."""
        found = self._params[name]
        width = self.shape.width
        return [(name, found.numel * width)] if found.trainable else []

    def has(self, name: str) -> bool:
        """Say whether the layer has a parameter of that name."""
        return name in self._params

    def hidden(self, features: int) -> int:
        """Return the bytes of one activation of ``features`` elements for each token."""
        return self.shape.tokens * features * self.shape.width

    def low(self, x: int) -> int:
        """Mark ``x`` as what a matrix product made: of 16 bit under autocast."""
        self.low_tensors.add(x)
        return x

    def like(self, x: int, y: int) -> int:
        """Return ``y``, marked as ``low`` where ``x`` is."""
        return self.low(y) if x in self.low_tensors else y

    def size(self, x: int, features: int) -> int:
        """Return the bytes of ``features`` elements a token in the type of ``x``."""
        return self.shape.tokens * features * (self.shape.low if x in self.low_tensors else self.shape.width)

    def cast(self, x: int, name: str, size: int) -> int:
        """Make the 16-bit copy autocast makes of ``x`` for each operation that wants one; ``size`` is the copy's."""
        kept = not self.shape.autocast or x in self.low_tensors
        return x if kept else self.low(self.tape.op(f"{name} cast", [x], size))

    def linear(self, x: int, name: str, rows: int = 0, *, flat: bool = False) -> int:
        """Record ``nn.Linear``: keeps its input where the weight is trained (torch: derivatives.yaml, addmm and mm).

        ``flat``: its input has two dimensions, so torch takes no view of it.
        """
        rows = rows or self.shape.tokens
        adapted = self._params.get(f"{name}.base_layer.weight")
        weight = adapted or self._params[f"{name}.weight"]
        transposed = weight.kind == "conv1d"
        outputs = weight.shape[1 if transposed else 0]
        size = rows * outputs * self.shape.low
        biased = f"{name}.bias" in self._params or f"{name}.base_layer.bias" in self._params
        inputs = weight.shape[0 if transposed else 1]
        given, x = x, self.cast(x, f"{name} input", rows * inputs * self.shape.low)
        referred, self._referred, self._projected = self._referred, [], x
        own = self.own(f"{name}.base_layer" if adapted else name)
        self.visits += [f"{name}.{part}" for part in _ADAPTED] if adapted else [name]
        column_sum = ColumnSum(rows, outputs) if len(own) > 1 else None
        separate = biased and self.model.family == "falcon"  # FalconLinear adds its bias by itself
        # The bias's gradient comes first: the weight's has a transpose to pass (torch: derivatives.yaml, addmm).
        copy = 2 * weight.numel if self.shape.autocast else 0
        y = self.tape.op(
            name,
            [x],
            size,
            saves=[x] if own else [],
            params=own[:1] if separate else own[::-1],
            reads=referred,
            extra=copy,
            backward_workspace=copy,
            # addmm takes a view of its input made before that of the weight
            params_first=biased and not flat and not separate,
        )
        y = self.low(self.tape.sum_columns(y, None if separate else column_sum))
        if separate:
            # The sum of a 16-bit product and a bias that autocast leaves in fp32 is in fp32.
            wide = rows * outputs * self.shape.width
            y = self.tape.op(f"{name} bias", [y], wide, params=own[1:], in_place_grad=True)
            self.tape.sum_columns(y, column_sum)
        if not adapted:
            return y
        if self.shape.autocast and given in self.low_tensors:
            # peft casts its input to the adapter's fp32, autocast back to 16 bit: a copy of its own.
            wide = self.tape.op(f"{name} lora input", [given], rows * inputs * self.shape.width)
            x = self.cast(wide, f"{name} lora", rows * inputs * self.shape.low)
        return self._adapter(x, y, name, rows, size, referred)

    def _adapter(self, x: int, y: int, name: str, rows: int, size: int, referred: list[int]) -> int:
        """LoRA beside the frozen layer: ``y + B(A(x)) × scaling`` (peft/tuners/lora/layer.py: Linear.forward)."""
        rank = self._params[f"{name}.lora_A.default.weight"].shape[0]
        small = rows * rank * self.shape.low
        down = self.tape.op(f"{name} lora_A", [x], small, saves=[x], params=self.own(f"{name}.lora_A.default"))
        up = self.tape.op(f"{name} lora_B", [down], size, saves=[down], params=self.own(f"{name}.lora_B.default"))
        scaled = self.tape.op(f"{name} lora scaling", [up], size)
        return self.low(self.tape.op(f"{name} lora sum", [y, scaled], size, reads=referred, in_place_grad=True))

    def layer_norm(self, x: int, name: str, features: int, rows: int = 0) -> int:
        """Record ``nn.LayerNorm``: keeps its input, and mean and rstd of each row in fp32."""
        rows = rows or self.shape.tokens
        size = rows * features * self.shape.width
        return self.tape.op(name, [x], size, saves=[x], params=self.own(name), extra=8 * rows)

    def rms_norm(self, x: int, name: str, features: int, rows: int = 0) -> int:
        """RMSNorm in separate operations: upcast, mean square, rsqrt, product, weight.

        Llama and its kin cast down before the weight; OLMo 2 and Gemma multiply by it in fp32
        (transformers: ``forward`` of LlamaRMSNorm, Olmo2RMSNorm, Gemma2RMSNorm).
        """
        tape, rows = self.tape, rows or self.shape.tokens
        width = self.shape.low if x in self.low_tensors else self.shape.width
        full, size = 4 * rows * features, rows * features * width
        up = x if width == 4 else tape.op(f"{name} upcast", [x], full)
        scale = tape.op(f"{name} rsqrt", [up], 4 * rows, saves=[up], workspace=full, backward_workspace=3 * full)
        tape.save_output(scale)
        y = tape.op(f"{name} normalise", [up, scale], full, saves=[up, scale])
        own = self.own(name)
        column_sum = ColumnSum(rows, features) if own else None
        if self.model.family in ("olmo2", "gemma", "gemma2", "gemma3_text"):
            y = tape.op(
                f"{name} weight",
                [y],
                full,
                saves=[y] if own else [],
                params=own,
                backward_workspace=full,
                reduction=full,
            )
            tape.sum_columns(y, column_sum)
            return y if width == 4 else self._like(x, tape.op(f"{name} downcast", [y], size))
        down = y if width == 4 else tape.op(f"{name} downcast", [y], size)
        product = size if own else 0
        y = tape.op(
            f"{name} weight",
            [down],
            rows * features * self.shape.width,
            saves=[down] if own else [],
            params=own,
            backward_workspace=product,
            reduction=product,
        )
        return tape.sum_columns(y, column_sum)

    def _layer_norm_in_steps(self, x: int, name: str, features: int, rows: int) -> int:
        """LayerNorm without bias in separate fp32 operations (transformers: CohereLayerNorm.forward)."""
        op, width, full = self.tape.op, self.shape.width, 4 * rows * features
        up = x if width == 4 else op(f"{name} upcast", [x], full)
        centred = op(f"{name} deviation", [up], full)
        scale = op(f"{name} rsqrt", [centred], 4 * rows, saves=[centred], workspace=full, backward_workspace=full)
        self.tape.save_output(scale)
        centred = op(f"{name} second deviation", [up], full)
        y = op(f"{name} normalise", [centred, scale], full, saves=[centred, scale])
        own = self.own(name)
        weight = 4 * self._params[f"{name}.weight"].numel if width == 2 else 0
        column_sum = ColumnSum(rows, features) if own else None
        y = op(
            f"{name} weight",
            [y],
            full,
            saves=[y] if own else [],
            params=own,
            extra=weight,
            reduction=full if own else 0,
        )
        self.tape.sum_columns(y, column_sum)
        return y if width == 4 else op(f"{name} downcast", [y], rows * features * width)

    def _layer_norm_in_fp32(self, x: int, name: str, features: int) -> int:
        """LayerNorm without parameters between two casts (transformers: OlmoLayerNorm.forward)."""
        op, width, rows = self.tape.op, self.shape.width, self.shape.tokens
        up = x if width == 4 else op(f"{name} upcast", [x], 4 * rows * features)
        y = op(name, [up], 4 * rows * features, saves=[up], extra=8 * rows)
        return y if width == 4 else op(f"{name} downcast", [y], rows * features * width)

    def norm_of_each_head(self, x: int, name: str, heads: int) -> int:
        """Record a LayerNorm for each head, joined again (transformers: StableLmLayerNormPerHead.forward)."""
        size, rows = self.hidden(heads * self.model.head_dim), self.shape.tokens * heads
        names = [f"{name}.norms.{i}" for i in range(heads)]
        self.visits += names
        own = [param for each in names for param in self.own(each)]
        y = self.tape.op(name, [x], size, saves=[x], params=own, extra=8 * rows)
        return self.tape.op(f"{name} cat", [y], size)

    def norm(self, x: int, name: str, features: int, rows: int = 0) -> int:
        """Whichever norm the family has."""
        self.visits.append(name)
        if self.model.family == "cohere":
            return self._layer_norm_in_steps(x, name, features, rows or self.shape.tokens)
        if self.model.family == "olmo":
            return self._layer_norm_in_fp32(x, name, features)
        if self.has(f"{name}.bias") or not self.has(f"{name}.weight"):
            return self.layer_norm(x, name, features, rows)
        return self.rms_norm(x, name, features, rows)

    def rotary(self, x: int, name: str, heads: int, keeps: int = 0) -> int:
        """Rotary embedding: keeps nothing but cos and sin, which all layers share; else ``keeps`` bytes of its own."""
        model = self.model
        part = self.hidden(heads * model.rotary_dim)
        scratch = part if model.family != "cohere" else 4 * part // self.shape.width  # it rotates in fp32
        y = self.tape.op(f"{name} rotary", [x], part, extra=keeps, workspace=2 * scratch, backward_workspace=scratch)
        if model.rotary_dim == model.head_dim and model.family not in JOINS_ROTATED:
            return y
        return self.tape.op(f"{name} rotary cat", [y], self.hidden(heads * model.head_dim))

    def dropout(self, x: int, probability: float, features: int, module: str = "") -> int:
        """Dropout in training keeps a one-byte mask; with probability 0 only ``module`` is called."""
        if module:
            self.visits.append(module)
        if probability <= 0:
            return x
        y = self.tape.op("dropout", [x], self.size(x, features), extra=self.shape.tokens * features)
        return self._like(x, y)

    def add(self, x: int, y: int) -> int:
        """Record a residual sum: keeps nothing, and hands its gradient to both, or a 16-bit copy of it."""
        if self.shape.autocast and y in self.low_tensors and x not in self.low_tensors:
            y = self.tape.part("residual cast", y, self.hidden(self.model.hidden) // 2)
        return self.tape.op("residual", [x, y], self.hidden(self.model.hidden), in_place_grad=True)

    def activation(self, x: int, size: int) -> int:
        """Record the feed-forward activation: ReLU keeps its output, the others their input (torch's fused kernels)."""
        kind = self.model.activation
        self.visits.append("activation")
        if kind in ("gelu_new", "gelu_accurate"):
            return self._gelu_new(x, size)
        if kind == "gelu_fast":
            return self._gelu_fast(x, size)
        if kind == "relu":
            return self._like(x, self.tape.save_output(self.tape.op("relu", [x], size)))
        # Bloom's backward is written in Python: at most five temporaries, of which one takes the gradient's place.
        scratch = 4 * size if kind == "gelu_bloom" else 0
        return self._like(x, self.tape.op(kind, [x], size, saves=[x], backward_workspace=scratch))

    def _like(self, x: int, y: int) -> int:
        return self.low(y) if x in self.low_tensors else y

    def _gelu_new(self, x: int, size: int) -> int:
        """``NewGELUActivation`` in separate operations: keeps x/2, tanh, 1 + tanh and the product, besides x."""
        op = self.tape.op
        half = op("gelu half", [x], size)
        if self.shape.autocast:
            # torch.pow runs in fp32 on an fp32 copy of x, and all that it reaches stays so.
            size = self.shape.tokens * self.model.mlp * 4
            cube_input = op("gelu upcast", [x], size)
        else:
            cube_input = x
        cube = op("gelu cube", [cube_input], size, saves=[cube_input], backward_workspace=2 * size)
        inner = op("gelu inner", [x, cube], size, workspace=size, in_place_grad=True)
        inner = op("gelu scaled", [inner], size)
        tanh = self.tape.save_output(op("gelu tanh", [inner], size))
        plus = op("gelu plus one", [tanh], size, in_place_grad=True)
        return op("gelu product", [half, plus], size, saves=[half, plus])

    def _gelu_fast(self, x: int, size: int) -> int:
        """``FastGELUActivation`` in separate operations: keeps x, and all of its products."""
        op = self.tape.op
        half = op("gelu half", [x], size)
        scaled = op("gelu scaled", [x], size)
        inner = op("gelu inner", [x], size)
        square = op("gelu square", [inner, x], size, saves=[inner, x])
        plus = op("gelu square plus one", [square], size, in_place_grad=True)
        inner = op("gelu argument", [scaled, plus], size, saves=[scaled, plus])
        tanh = self.tape.save_output(op("gelu tanh", [inner], size))
        plus = op("gelu plus one", [tanh], size, in_place_grad=True)
        return self._like(x, op("gelu product", [half, plus], size, saves=[half, plus]))

    def gated_mlp(self, x: int, prefix: str) -> int:
        """Record ``down(act(gate(x)) × up(x))``: keeps gate, its activation, up and their product."""
        gate = self.linear(x, f"{prefix}.gate_proj")
        size = self.size(gate, self._params_out(f"{prefix}.gate_proj"))
        active = self.activation(gate, size)
        up = self.linear(x, f"{prefix}.up_proj")
        product = self._like(active, self.tape.op("gate product", [active, up], size, saves=[active, up]))
        return self.linear(product, f"{prefix}.down_proj")

    def _params_out(self, name: str) -> int:
        weight = self._params.get(f"{name}.weight") or self._params[f"{name}.base_layer.weight"]
        return weight.shape[0]

    def plain_mlp(self, x: int, up: str, down: str, *, flat: bool = False) -> int:
        """Record ``down(act(up(x)))``; ``flat`` as in ``linear``."""
        x = self.linear(x, up, flat=flat)
        return self.linear(self.activation(x, self.size(x, self.model.mlp)), down)


class Heads(NamedTuple):
    """Queries, keys and values of one attention, and how they lie in memory."""

    query: int
    key: int
    value: int
    kv_heads: int
    head_major: bool = False
    """Stored head by head (b, heads, s, dim): FlashAttention's output then is copied back token by token."""
    mask: str = ""
    """Empty: the causal flag. ``bool``: each call turns it into an additive one. ``float``: shared by all layers."""
    repeats: bool = True
    """Keys and values are repeated to all heads before a kernel that cannot group them (repeat_kv)."""
    softmax_fp32: bool = True
    """Eager softmax in fp32; GPT-2 and Falcon stay in the activations' type."""
    adds_in_fp32: bool = False
    """Eager scores are scaled and masked in fp32 before a softmax in the activations' type."""
    dropout_module: str = ""
    """Dropout of the eager weights that is a module."""
    never_drops: bool = False
    """The eager weights pass no dropout whatever the config says."""
    returned: bool = False
    """The layer returns the eager weights."""
    backward_copies: int = 0
    """Bytes that FlashAttention's backward copies before it runs."""
