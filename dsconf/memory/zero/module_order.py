"""The order in which modules run, as the hooks of ZeRO stage 3 see it: entering and leaving, containers included.

DeepSpeed hooks every module (runtime/zero/parameter_offload.py:_register_deepspeed_module): entering one fetches its
own parameters and prefetches a bucket more, leaving it releases them.
"""

from __future__ import annotations

from functools import lru_cache

from dsconf.memory.autograd.figures import Call, ModuleOrder, Shape
from dsconf.memory.layers.embedding_and_head import FINAL_NORMS, record_embedding
from dsconf.memory.layers.families import record_layer
from dsconf.memory.layers.recorder import LayerRecorder
from dsconf.model.spec import Model


@lru_cache(maxsize=64)
def modules(model: Model, count: int) -> ModuleOrder:
    """Return the modules of ``model`` with ``count`` layers."""
    if model.family == "module":
        from dsconf.memory.trace.module import traced_modules

        return traced_modules(model, count)
    params = model.parameters._replace(layers=count)
    shape = Shape(1, 16, 2, False, "sdpa")
    first_layer = len(params.before)
    per_layer = len(params.layer)
    numbers = {p.name: i for i, p in enumerate(params.before)}
    numbers |= {p.name: first_layer + params.layers * per_layer + i for i, p in enumerate(params.after)}
    sizes = tuple(p.numel for p in (*params.before, *(params.layer * params.layers), *params.after))
    ends = LayerRecorder(model, shape, (*params.before, *params.after))
    record_embedding(ends, ends.tape.tensor(0, differentiable=False))
    before = [Call(True, -1, ()), Call(True, -1, ())]
    for name in ends.visits:
        before += _leaf(-1, _own(numbers, name))
    if (model.rotary_dim or model.family == "falcon") and model.family != "gptj":
        before += _leaf(-1, ())
    template = _layer(model, shape)
    layers = tuple(_numbered(template, i, first_layer + i * per_layer) for i in range(params.layers))
    drops = model.hidden_dropout > 0 and model.pre_norm
    return ModuleOrder(sizes, tuple(before), layers, tuple(_after(model, count, numbers)), drops)


def _leaf(layer: int, params: tuple[int, ...]) -> list[Call]:
    return [Call(True, layer, params), Call(False, layer, params)]


def _own(numbers: dict[str, int], name: str) -> tuple[int, ...]:
    """Return the parameters that the module called ``name`` holds itself."""
    return tuple(sorted(i for full, i in numbers.items() if full.rpartition(".")[0] == name))


def _numbered(template: list[tuple[bool, tuple[int, ...]]], layer: int, offset: int) -> tuple[Call, ...]:
    return tuple(Call(enter, layer, tuple(offset + i for i in own) if own else ()) for enter, own in template)


def _layer(model: Model, shape: Shape) -> list[tuple[bool, tuple[int, ...]]]:
    """Return one layer's calls: whether it is entered, and its own parameters, counted from the layer's first."""
    r = LayerRecorder(model, shape, model.parameters.layer)
    record_layer(r, r.tape.tensor(0))
    numbers = {p.name: i for i, p in enumerate(model.parameters.layer)}
    calls: list[tuple[bool, tuple[int, ...]]] = [(True, ())]
    open_: list[str] = []
    for name in r.visits:
        path = name.split(".")[:-1] if name != "activation" else open_
        while open_ != path[: len(open_)]:
            calls.append((False, _own(numbers, ".".join(open_))))
            open_ = open_[:-1]
        while len(open_) < len(path):
            open_ = path[: len(open_) + 1]
            calls.append((True, _own(numbers, ".".join(open_))))
        own = _own(numbers, name)
        calls += [(True, own), (False, own)]
    for depth in range(len(open_), 0, -1):
        calls.append((False, _own(numbers, ".".join(open_[:depth]))))
    return [*calls, (False, ())]


def _after(model: Model, layer: int, numbers: dict[str, int]) -> list[Call]:
    calls: list[Call] = []
    for name in FINAL_NORMS:
        if f"{name}.weight" in numbers:
            calls += _leaf(layer, _own(numbers, name))
    if "model.decoder.project_out.weight" in numbers:
        calls += _leaf(layer, _own(numbers, "model.decoder.project_out"))
    calls.append(Call(False, layer, ()))
    head = _own(numbers, "lm_head")
    if model.tied:
        head = (0, *head)
    return [*calls, *_leaf(layer, head), Call(False, layer, ())]
