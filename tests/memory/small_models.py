"""Models of a few parameters, laid out by hand, and jobs of them."""

from __future__ import annotations

from typing import Any, NamedTuple

from hypothesis import strategies as st

from dsconf.cluster.read import read_cluster
from dsconf.config.settings import Settings
from dsconf.job import Job
from dsconf.memory.estimate import Moment, estimate, named, rises
from dsconf.memory.terms import term_of
from dsconf.memory.timeline.common import alive_at, explaining, prepare
from dsconf.model.read import read_model
from dsconf.model.spec import Model
from dsconf.workload import Workload


def tiny(layers: int = 3, vocab: int = 10, hidden: int = 4, mlp: int = 6, tied: bool = False, **more: Any) -> Model:
    """A llama of ``layers``; with the defaults 40 + 3 x 144 + 4 + 40 elements.

    Layer: q, k, v, o of 16, gate, up, down of 24, norms of 4 + 4: 144. Heads of 2 elements.
    """
    config = {
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": mlp,
        "num_attention_heads": hidden // 2,
        "num_hidden_layers": layers,
        "vocab_size": vocab,
        "tie_word_embeddings": tied,
        "max_position_embeddings": 64,
    }
    return read_model(model=config | more)


@st.composite
def models(draw: st.DrawFn) -> Model:
    """Small llamas and GPT-2s, tied or not."""
    hidden = 2 * draw(st.integers(1, 4))
    layers, vocab = draw(st.integers(1, 4)), draw(st.integers(1, 40))
    if draw(st.booleans()):
        return tiny(layers, vocab, hidden, draw(st.integers(1, 12)), draw(st.booleans()))
    sizes = {"n_embd": hidden, "n_layer": layers, "n_head": hidden // 2, "vocab_size": vocab, "n_positions": 64}
    return read_model(model={"model_type": "gpt2"} | sizes)


def job(model: Model, world_size: int = 1, *, seq_len: int = 8, micro_batch: int = 1, **settings: Any) -> Job:
    """``model`` on ``world_size`` H200s; a workload's fields go to the workload, the rest to the settings."""
    names = Workload.__dataclass_fields__
    work = {name: settings.pop(name) for name in tuple(settings) if name in names}
    workload = Workload(seq_len=seq_len, micro_batch=micro_batch, **work)
    return Job(model, read_cluster(world_size, gpu="h200"), Settings(**settings), workload)


class Sketch(NamedTuple):
    """A moment: the terms that are alive beside those that stay."""

    phase: str
    name: str
    terms: dict[str, int]

    @property
    def num_bytes(self) -> int:
        """Sum of the terms."""
        return sum(self.terms.values())


def timeline(one: Job, rank: int) -> tuple[dict[str, int], list[Sketch]]:
    """What stays on ``rank``, and every moment worth looking at."""
    step = prepare(one)
    moments = []
    for rise in rises(step, rank):
        terms: dict[str, int] = {}
        for name, size in alive_at(step, rise).items():
            if size:
                terms[term_of(name)] = terms.get(term_of(name), 0) + size
        moments.append(Sketch(*rise.label, terms))
    return dict(estimate(one, rank).stays), moments


def every_moment(one: Job, rank: int = 0) -> list[Moment]:
    """Every moment worth looking at, with all terms, which know what they are made of."""
    step = prepare(one)
    step = step._replace(frame=explaining(step.frame))
    return [named(step, rank, rise) for rise in rises(step, rank)]


def start_of(one: Job, rank: int = 0) -> int:
    """The highest point of initialisation on ``rank``."""
    return estimate(one, rank).init_peak_bytes
