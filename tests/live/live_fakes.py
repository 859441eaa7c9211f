"""A stand-in for the training processes: answers in microseconds what it was told to answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dsconf.live.processes.launcher import Failure, Outcome
from dsconf.live.processes.order import Order, Probe

TINY = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 256,
    "max_position_embeddings": 128,
}
VERSIONS = {"torch": "2.13.0", "deepspeed": "0.19.8", "transformers": "5.17.0"}
H200 = Probe(1, "NVIDIA H200", 150_000_000_000, versions=VERSIONS)
CPU = Probe(versions=VERSIONS)


def iteration(number: int, peak: int, loss: float = 5.5) -> dict[str, Any]:
    """One optimizer step whose backward holds ``peak`` bytes; the first is slow."""
    return {
        "event": "iteration",
        "time": float(number),
        "iteration": number,
        "forward_bytes": peak - 200,
        "backward_bytes": peak,
        "step_bytes": peak - 100,
        "step_end_bytes": peak - 1000,
        "reserved_bytes": peak + 50,
        "step_seconds": 9.0 if number == 0 else 0.5 + number / 100,
        "loss": loss,
        "card_used_bytes": peak + 1000,
        "skipped": False,
    }


class FakeRunner:
    """Probes ``probe``, then reports ``peaks[rank]`` for each of two iterations, then fails or not."""

    def __init__(
        self,
        probe: Probe = CPU,
        peaks: tuple[int, ...] = (3000, 4000),
        failure: Failure | None = None,
        before_the_order: bool = False,
    ) -> None:
        self.probe, self.peaks, self.failure, self.before = probe, peaks, failure, before_the_order
        self.order: Order | None = None

    def run(self, decide: Callable[[Probe], Order], progress: Callable[[str], None], timeout: float) -> Outcome:
        progress(f"fake run of at most {timeout:g} s")
        if self.before:
            return Outcome([], self.failure, 0.1)
        self.order = decide(self.probe)
        events = [[iteration(0, peak - 500), iteration(1, peak), iteration(2, peak)] for peak in self.peaks]
        for rank in events:
            rank.append({"event": "done", "time": 9.0, "source": "a fake", "host_peak_bytes": 7})
        return Outcome(events, self.failure, 1.5)
