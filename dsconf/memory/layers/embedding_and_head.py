"""What comes before and after the decoder layers: embedding, masks, final norm, output projection and loss."""

from __future__ import annotations

from dsconf.memory.autograd.figures import Shape
from dsconf.memory.layers.recorder import LayerRecorder
from dsconf.model.attention import runs_eager, windowed_layers
from dsconf.model.spec import Model

TIED = "tied "
"""Put before the embedding's name where the output projection makes a gradient for it."""

FINAL_NORMS = (
    "model.norm",
    "transformer.ln_f",
    "model.decoder.final_layer_norm",
    "gpt_neox.final_layer_norm",
    "model.final_layernorm",
)

BOTH_MASKS = ("gemma2", "gemma3_text", "qwen2", "qwen3", "qwen2_moe")
"""Families that make a mask for each kind of layer: with a window and without."""

_EMBEDDINGS = (
    "model.embed_tokens",
    "transformer.wte",
    "model.decoder.embed_tokens",
    "transformer.word_embeddings",
    "gpt_neox.embed_in",
)
_DROPOUTS = {
    "gpt2": "transformer.drop",
    "gptj": "transformer.drop",
    "gpt_neo": "transformer.drop",
    "gpt_neox": "gpt_neox.emb_dropout",
    "phi": "model.embed_dropout",
}
"""Dropout after the embedding that is a module."""


def record_embedding(r: LayerRecorder, tokens: int) -> int:
    """Token (and position) embedding; their backward needs only the indices the batch holds anyway.

    The model's forward keeps variables for what it makes here until its last layer is through.
    """
    model = r.model
    width = model.embedding_dim or model.hidden
    name = _embedding_name(r)
    r.visits.append(name)
    x = r.tape.op("embedding", [tokens], r.hidden(width), params=r.own(name))
    positions = _positions(r, tokens)
    if model.embedding_dim:
        x = r.linear(x, "model.decoder.project_in")
    if model.family != "phi":  # the variable is that of its dropout's output
        r.tape.hold(x)
    if positions is not None:
        x = r.tape.op("position sum", [x, positions], r.hidden(model.hidden), in_place_grad=True)
    if r.has("transformer.word_embeddings_layernorm.weight"):
        x = r.norm(x, "transformer.word_embeddings_layernorm", model.hidden)
    x = r.dropout(x, model.embedding_dropout, model.hidden, _DROPOUTS.get(model.family, ""))
    if model.family == "phi":
        r.tape.hold(x)
    return x


def _positions(r: LayerRecorder, tokens: int) -> int | None:
    """Record learned positions: OPT looks them up for every row of the batch, the others once for all rows."""
    name, op = _first(r, "transformer.wpe", "model.decoder.embed_positions"), r.tape.op
    if not name:
        return None
    r.visits.append(name)
    full = r.hidden(r.model.hidden)
    shared = r.shape.batch > 1 and r.model.family != "opt"
    found = op("position embedding", [tokens], full // r.shape.batch if shared else full, params=r.own(name))
    r.tape.hold(found)
    return op("positions of every row", [found], full) if shared else found


def _embedding_name(r: LayerRecorder) -> str:
    return _first(r, *_EMBEDDINGS)


def _first(r: LayerRecorder, *names: str) -> str:
    return next((name for name in names if r.has(f"{name}.weight")), "")


def record_head(r: LayerRecorder, x: int) -> tuple[int, int]:
    """Record final norm, output projection, softcap and cross-entropy; return the loss and the logits."""
    return record_projection(r, record_final_norm(r, x), shifted=r.shape.ranks > 1)


def record_final_norm(r: LayerRecorder, x: int) -> int:
    """Record what the last layer's output passes on the way to the output projection."""
    name = next((n for n in FINAL_NORMS if r.has(f"{n}.weight")), "")
    if name or r.model.family == "olmo":
        x = r.norm(x, name, r.model.hidden)
    return r.linear(x, "model.decoder.project_out") if r.model.embedding_dim else x


def record_projection(r: LayerRecorder, x: int, *, shifted: bool) -> tuple[int, int]:
    """Output projection, softcap and cross-entropy; returns the loss and the logits.

    The loss upcasts the logits and keeps log-softmax in fp32: tokens × vocab × 4 bytes, twice in backward
    (transformers/loss/loss_utils.py: ForCausalLMLoss; torch: log_softmax, nll_loss). Labels that come ``shifted``, as
    Ulysses' data loader makes them, are not copied.
    """
    model, op = r.model, r.tape.op
    size = r.shape.tokens * model.vocab * r.shape.low
    x = r.cast(x, "output projection input", r.shape.tokens * model.hidden * r.shape.low)
    own = r.own("lm_head")[::-1]
    if not r.has("lm_head.weight"):
        own += [(f"{TIED}{tied}", num) for tied, num in r.own(_embedding_name(r))]
    copy = 2 * model.vocab * model.hidden if r.shape.autocast else 0
    saves = [x] if own else []
    logits = op(
        "output projection",
        [x],
        size,
        saves=saves,
        params=own,
        extra=copy,
        backward_workspace=copy,
        params_first=r.has("lm_head.bias"),
    )
    if model.family == "cohere":
        logits = op("logit scale", [logits], size)
    if model.logit_softcap:
        logits = op("logit softcap division", [logits], size)
        logits = r.tape.save_output(op("logit softcap tanh", [logits], size))
        logits = op("logit softcap product", [logits], size)
    r.tape.hold(logits)
    full = 4 * r.shape.tokens * model.vocab
    upcast = logits if r.shape.low == 4 else op("logits upcast", [logits], full)
    logp = r.tape.save_output(op("log-softmax", [upcast], full))
    return op("cross-entropy", [logp], 512, extra=0 if shifted else 16 * r.shape.tokens), logits


def shared_bytes(model: Model, shape: Shape) -> tuple[int, int]:
    """Return (kept for backward, alive only in forward): cos and sin, and the attention mask, made once for all
    layers."""
    rotary_width = 4 if model.family == "olmo2" else shape.width
    shared = model.rotary_dim and model.family != "gptj"
    # Ranks that share a sequence are given each row's positions; else one row stands for all.
    rows = shape.seq if shape.ranks == 1 else shape.tokens
    rotary = 2 * rows * model.rotary_dim * rotary_width if shared else 0
    square = shape.batch * shape.seq * shape.seq
    windows = any(windowed_layers(model))
    if runs_eager(model.family, shape.attention) and (not model.alibi or model.family == "bloom"):
        kinds = 2 if windows and model.family in BOTH_MASKS else 1
        return rotary, kinds * square * shape.width
    if model.alibi:
        mask = square * model.heads * shape.width
        # Under autocast the kernels keep their own 16-bit copies, not this one.
        kept = shape.attention != "eager" and not shape.autocast
        return (rotary + mask, 0) if kept else (rotary, mask)
    # The mask is expanded to the batch's rows, a view.
    needed = model.family == "falcon" or (windows and shape.seq >= model.sliding_window)
    return rotary, shape.seq**2 if needed else 0
