"""What comes before and after the decoder layers: embedding, masks, final norm, output projection and loss."""

from __future__ import annotations

from dsconf.memory.attention import runs_eager
from dsconf.memory.recorder import Recorder, Shape
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


def record_embedding(r: Recorder, tokens: int) -> int:
    """Token (and position) embedding; their backward needs only the indices the batch holds anyway."""
    model = r.model
    width = model.embedding_dim or model.hidden
    params = [own for p in ("transformer.wte", "model.embed_tokens", "gpt_neox.embed_in") for own in r.own(p)]
    params = params or r.own(_embedding_name(r))
    x = r.tape.op("embedding", [tokens], r.hidden(width), params=params)
    if model.embedding_dim:
        x = r.linear(x, "model.decoder.project_in")
    positions = _position_name(r)
    if positions:
        x = r.tape.op("position embedding", [x], r.hidden(model.hidden), params=r.own(positions), passes=True)
    if r.has("transformer.word_embeddings_layernorm.weight"):
        x = r.norm(x, "transformer.word_embeddings_layernorm", model.hidden)
    return r.dropout(x, model.embedding_dropout, model.hidden)


def _embedding_name(r: Recorder) -> str:
    names = ("model.decoder.embed_tokens", "transformer.word_embeddings")
    return next((name for name in names if r.has(f"{name}.weight")), "")


def _position_name(r: Recorder) -> str:
    names = ("transformer.wpe", "model.decoder.embed_positions")
    return next((name for name in names if r.has(f"{name}.weight")), "")


def record_head(r: Recorder, x: int) -> tuple[int, int]:
    """Final norm, output projection, softcap and cross-entropy; returns the loss and the logits.

    The loss upcasts the logits and keeps log-softmax in fp32: tokens × vocab × 4 bytes, twice in backward
    (transformers/loss/loss_utils.py: ForCausalLMLoss; torch: log_softmax, nll_loss).
    """
    model, op = r.model, r.tape.op
    name = next((n for n in FINAL_NORMS if r.has(f"{n}.weight")), "")
    if name or model.family == "olmo":
        x = r.norm(x, name, model.hidden)
    if model.embedding_dim:
        x = r.linear(x, "model.decoder.project_out")
    size = r.shape.tokens * model.vocab * r.shape.low
    x = r.cast(x, "output projection input", r.shape.tokens * model.hidden * r.shape.low)
    own = r.own("lm_head")[::-1] or [(f"{TIED}{tied}", num) for tied, num in r.own(_tied_name(r))]
    copy = 2 * model.vocab * model.hidden if r.shape.autocast else 0
    saves = [x] if own else []
    logits = op("output projection", [x], size, saves=saves, params=own, extra=copy, backward_workspace=copy)
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
    return op("cross-entropy", [logp], 512, extra=16 * r.shape.tokens), logits


def _tied_name(r: Recorder) -> str:
    names = (
        "model.embed_tokens",
        "transformer.wte",
        "model.decoder.embed_tokens",
        "transformer.word_embeddings",
        "gpt_neox.embed_in",
    )
    return next((name for name in names if r.has(f"{name}.weight")), "")


def shared_bytes(model: Model, shape: Shape) -> tuple[int, int]:
    """(kept for backward, alive only in forward): cos and sin, and the attention mask, made once for all layers."""
    rotary_width = 4 if model.family == "olmo2" else shape.width
    shared = model.rotary_dim and model.family != "gptj"
    rotary = 2 * shape.seq * model.rotary_dim * rotary_width if shared else 0
    square = shape.batch * shape.seq * shape.seq
    if runs_eager(model.family, shape.attention) and (not model.alibi or model.family == "bloom"):
        kinds = 2 if model.family in ("gemma2", "gemma3_text") else 1  # a mask for each kind of layer, windowed or not
        return rotary, kinds * square * shape.width
    if model.alibi:
        mask = square * model.heads * shape.width
        return (rotary + mask, 0) if shape.attention != "eager" else (rotary, mask)
    windowed = model.sliding_window and shape.seq >= model.sliding_window
    return rotary, square if windowed or model.family == "falcon" else 0
