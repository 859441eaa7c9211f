"""Phrases that sentences and tables share: what a config is, how its speed compares, what it misses."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from dsconf.search.explain.reason import gained, shortage
from dsconf.units import format_bytes

if TYPE_CHECKING:
    from dsconf.search.candidates import Candidate

Facts = dict[str, Any]
"""Figures that belong together, such as those of one config."""

PARTS = {
    "matmul": "matrix products",
    "elementwise": "elementwise operations",
    "launch": "launching kernels",
    "optimizer": "the optimizer step",
    "recompute": "recomputing activations",
    "loss": "the loss",
    "gradients": "copying gradients",
}
"""What the parts of a step are called in a sentence, where their name is too short for one."""
UNSTATED = "a node is taken to have {} at most: state yours with --host-memory"
SAME = 0.0005
"""A difference of speed that no figure shows."""


def part_name(part: str) -> str:
    """Name a part of the step as a sentence does."""
    return PARTS.get(part, part)


def percent(share: float) -> str:
    """Write a part of one as ``45 %``."""
    return f"{share:.0%}".replace("%", " %")


def describe_with_fit(config: Facts) -> str:
    """Name a config, and say whether it is tight."""
    return f"{config['name']}{', tight' if config['fits'] == 'tight' else ''}"


def describe(config: Facts) -> str:
    """Say what a person must know before taking a config: its name, whether it is tight, what it needs of each host."""
    needed = f", {format_bytes(config['host_bytes_per_node'])} of host memory in each node"
    return f"{describe_with_fit(config)}{'' if config['offload'] == 'none' else needed}"


def describe_on_disk(config: Facts) -> str:
    """Describe a config that keeps states on a drive, with what it needs of disk and host."""
    disk, host = format_bytes(config["nvme_bytes_per_node"]), format_bytes(config["host_bytes_per_node"])
    return f"({describe_with_fit(config)}), {disk} on the disk of each node and {host} of host memory"


def speed_difference(gain: float) -> str:
    """Say ``12.3 % fewer tokens/s`` of one config beside another."""
    if abs(gain) < SAME:
        return "the same tokens/s"
    return f"{abs(gain):.1%}".replace("%", " %") + (" more tokens/s" if gain > 0 else " fewer tokens/s")


def compared(gain: float) -> str:
    """Say ``61 % more tokens/s``, ``3.2 % fewer tokens/s``, ``14.9 × the tokens/s``: what a change gives."""
    if abs(gain) < SAME:
        return "as many tokens/s"
    if gain >= 2:
        return f"{1 + gain:.1f} × the tokens/s"
    figure = f"{100 * abs(gain):.1f}" if abs(gain) < 0.1 else f"{100 * abs(gain):.0f}"
    return f"{figure} % {'more' if gain > 0 else 'fewer'} tokens/s"


def compared_with(gain: float, other: str) -> str:
    """Say how many tokens a second something gives beside ``other``."""
    if abs(gain) < SAME:
        return f"as many tokens/s as {other}"
    return f"{compared(gain)} {'of' if gain >= 2 else 'than'} {other}"


def several(gpus: int) -> str:
    """Say ``1 GPU`` or ``8 GPUs``."""
    return "1 GPU" if gpus == 1 else f"{gpus} GPUs"


def missing(short: Facts, unstated: str = UNSTATED) -> str:
    """Say what does not fit, and by how much: ``40.2 GiB too much on each GPU``; ``unstated`` is said of a host's limit
    that nobody stated."""
    return " and ".join(_missing(short, unstated))


def _missing(short: Facts, unstated: str) -> Iterator[str]:
    if short["gpu_bytes"]:
        yield f"{format_bytes(short['gpu_bytes'])} too much on each GPU"
    if short["host_bytes"]:
        limit = "" if short["host_stated"] else f" ({unstated})".format(format_bytes(short["host_limit_bytes"]))
        yield f"{format_bytes(short['host_bytes'])} too much on each host{limit}"


def phrase(candidate: Candidate, winner: Candidate | None) -> str:
    """Say in a row of the table what a candidate misses, or how it compares with the winner."""
    if candidate.fits == "no":
        return missing(shortage(candidate), "of {}, --host-memory") or "no headroom"
    return "recommended" if winner is None or candidate is winner else speed_difference(gained(candidate, winner))


def largest(term: Facts) -> str:
    """Say what takes most at a peak: ``logits and loss, 24.48 GiB (tokens × vocabulary …)``."""
    return f"{term['name']}, {format_bytes(term['bytes'])} ({term['formula']})"


def waits_for(waits: Facts | None) -> str:
    """Say ``, since 45 % of the step on 64 GPUs is communication``, or nothing."""
    if waits is None:
        return ""
    return f", since {percent(waits['share'])} of the step on {several(waits['gpus'])} is {part_name(waits['part'])}"


def rounding(rounds: bool) -> str:
    """Warn of states in bf16 that nobody asked for."""
    return "; its optimizer states in bf16 round each update" if rounds else ""


def offer(config: Facts) -> str:
    """Say what a config would give that needs memory of a host that nobody described."""
    needs = f"needs {format_bytes(config['host_bytes_per_node'])} of host memory in each node"
    more = speed_difference(config["gain"])
    return f"{config['name']} would give {more} but {needs}: give --host-memory to have it considered"


def host_memory(needed_bytes: int, stated_bytes: int | None, assumed_bytes: int | None, gpus_per_node: int) -> str:
    """Say how much host memory is needed, and of what: what was stated, or what is taken to be there."""
    needed = format_bytes(needed_bytes)
    if stated_bytes is not None:
        return f"Needs {needed} of the {format_bytes(stated_bytes)} of host memory in each node."
    hold = "its GPU holds" if gpus_per_node == 1 else "its GPUs hold"
    likely = "" if assumed_bytes is None else f", assumed to be there because {hold} {format_bytes(assumed_bytes)}"
    return f"Needs {needed} of host memory in each node{likely}: give --host-memory to check."


def table_of(templates: Iterable[Callable[..., str]]) -> dict[str, Callable[..., str]]:
    """Make a table of ``templates`` by the code that each is named after."""
    return {template.__name__.removeprefix("_"): template for template in templates}
