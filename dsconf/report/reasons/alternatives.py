"""Sentences on what would be otherwise: other numbers of GPUs, one change, what would make a job fit."""

from __future__ import annotations

from dsconf.report.reasons.phrases import (
    Facts,
    compared,
    compared_with,
    describe,
    describe_on_disk,
    describe_with_fit,
    largest,
    missing,
    offer,
    rounding,
    several,
    table_of,
    waits_for,
)
from dsconf.report.reasons.phrases import host_memory as _host_memory
from dsconf.units import format_bytes, format_rate

DRIVE = "--nvme PATH"
TWICE = {
    "link_in_node": "Links in a node twice as fast ({} a GPU)",
    "network_between_nodes": "A network between nodes twice as fast ({} a GPU)",
    "link_to_host": "A link to the host twice as fast ({} a GPU)",
    "host_cpu": "Twice the host's cores and memory bandwidth",
    "nvme": "An NVMe disk twice as fast (reads {}, writes {})",
}
"""A resource twice as fast, with the rates that would be."""
OPTIONS = {
    "offload": "Offload: without --offload {} it would fit",
    "activation_checkpointing": "Activation checkpointing: with it, it would fit",
    "stage": "Stage: without --stage {} it would fit",
    "micro_batch_size": "Micro-batch: without --micro-batch-size {} it would fit",
}
"""An option without which the job would fit."""


def _fewer_gpus_as_fast(gpus: int, now: int, gain: float, waits: Facts | None, config: Facts | None) -> str:
    few = "A single GPU gives" if gpus == 1 else f"{several(gpus)} give"
    because = waits_for(waits) if config is None else f", with {config['name']}"
    return f"{few} {compared_with(gain, str(now))}{because}."


def _each_gpu_gives_less(gpus: int, fewer: int, gain: float, waits: Facts | None) -> str:
    beside = "one alone" if fewer == 1 else f"each of {fewer}"
    return f"Each of the {gpus} GPUs gives {compared_with(gain, beside)} would{waits_for(waits)}."


def _more_gpus_bring_nothing(gpus: int, gain: float, waits: Facts | None) -> str:
    return f"More GPUs do not help: {gpus} give {compared(gain)}{waits_for(waits)}."


def _more_gpus(config: Facts, now: int, gain: float, gain_of_each: float | None, rounds: bool) -> str:
    each = f"; {compared(gain_of_each)} from each" if gain_of_each is not None else ""
    lead = f"{config['gpus']} GPUs instead of {now}"
    return f"{lead}: {compared(gain)} ({describe(config)}){each}{rounding(rounds)}."


def _without_offload(config: Facts, gain: float) -> str:
    return f"Without offload: {compared(gain)} ({describe(config)})."


def _without_offload_fits_on(config: Facts, fewest: bool) -> str:
    where = f"from {config['gpus']} GPUs on" if fewest else f"on {config['gpus']} GPUs"
    return f"Without offload it fits {where} ({describe(config)})."


def _more_accumulation(global_batch: int, accumulation: int, config: Facts | None, gain: float) -> str:
    how = f"accumulation {accumulation}" if config is None else f"{describe(config)}, accumulation {accumulation}"
    return f"--global-batch-size {global_batch} ({how}) would give {compared(gain)}."


def _checkpointing_on(config: Facts, same_settings: bool, gain: float, saved_bytes: int, fullest: Facts) -> str:
    if saved_bytes > 0:
        effect = f"save {format_bytes(saved_bytes)} on each GPU at the same micro-batch"
    else:
        when = fullest["phase"] if fullest["moment"] is None else f"{fullest['phase']} ({fullest['moment']})"
        effect = f"save nothing on each GPU at the same micro-batch, where memory peaks in {when},"
    best = f"give {compared(gain)} at its best ({_switched(config, same_settings)})"
    return f"Activation checkpointing would {effect} and {best}."


def _checkpointing_off(config: Facts, same_settings: bool, gain: float) -> str:
    return f"Without activation checkpointing: {compared(gain)} ({_switched(config, same_settings)})."


def _checkpointing_off_does_not_fit(config: Facts, same_settings: bool, short: Facts) -> str:
    where = f"at micro-batch {config['micro_batch']}" if same_settings else f"with {config['name']}"
    return f"Without activation checkpointing it does not fit: {missing(short)} {where}."


def _switched(config: Facts, same_settings: bool) -> str:
    tight = ", tight" if config["fits"] == "tight" else ""
    return f"micro-batch {config['micro_batch']}{tight}" if same_settings else describe(config)


def _states_in_bf16(config: Facts, gain: float) -> str:
    return f"Optimizer states in bf16, which round each update: {compared(gain)} ({config['name']})."


def _more_memory(where: str, more_bytes: int, config: Facts, gain: float) -> str:
    place = {"gpu": "on each GPU", "host": "in each node"}[where]
    return f"{format_bytes(more_bytes)} more memory {place} would make room for {config['name']}: {compared(gain)}."


def _twice_as_fast(resource: str, bytes_per_second: list[float], gain: float) -> str:
    unit = "bit" if resource == "network_between_nodes" else "B"
    lead = TWICE[resource].format(*(format_rate(rate, unit) for rate in bytes_per_second))
    return f"{lead} would give {compared(gain)}."


def _nvlink(bytes_per_second: float, gain: float) -> str:
    return f"NVLink ({format_rate(bytes_per_second)} a GPU) would give {compared(gain)}."


def _nothing_fits(config: Facts, short: Facts, fullest: Facts | None) -> str:
    most = ""
    if fullest is not None and "start_bytes" in fullest:
        most = f"; initialisation alone takes {format_bytes(fullest['start_bytes'])}"
    elif fullest is not None:
        most = f"; the largest part of its peak of {format_bytes(fullest['peak_bytes'])} is {largest(fullest['term'])}"
    return f"Nothing fits. The nearest, {config['name']}, takes {missing(short)}{most}."


def _more_gpus_do_not_help(gpus: int) -> str:
    return f"More GPUs do not help, not even {gpus}: what each must hold for itself is too much."


def _no_single_change(gpus: int, nvme: bool, seq_len: int) -> str:
    drive = ", NVMe" if nvme else ""
    return f"No single change makes it fit: not {gpus} GPUs, offload{drive}, LoRA or a sequence of {seq_len} tokens."


def _fits_without_option(option: str, value: str | int, config: Facts, rounds: bool) -> str:
    return f"{OPTIONS[option].format(value)} ({describe(config)}){rounding(rounds)}."


def _fits_with_host_memory(config: Facts, rounds: bool) -> str:
    needed = format_bytes(config["host_bytes_per_node"])
    return f"Host memory: {needed} in each node would make it fit ({describe_with_fit(config)}){rounding(rounds)}."


def _fits_with_nvme(config: Facts) -> str:
    return f"NVMe: {DRIVE} would make it fit {describe_on_disk(config)}."


def _fits_on_more_gpus(config: Facts, rounds: bool) -> str:
    return f"More GPUs: {config['gpus']} would make it fit ({describe(config)}){rounding(rounds)}."


def _fits_with_lora(rank: int, config: Facts, rounds: bool) -> str:
    return f"LoRA: --lora-rank {rank} would make it fit ({describe(config)}){rounding(rounds)}."


def _fits_with_shorter_sequences(seq_len: int, config: Facts, rounds: bool) -> str:
    return f"Shorter sequences: --seq-len {seq_len} would make it fit ({describe(config)}){rounding(rounds)}."


def _fits_without_restrictions(config: Facts, rounds: bool) -> str:
    return f"Without any of the restrictions it would fit {_described(config)}{rounding(rounds)}."


def _fits_with_two_changes(
    seq_len: int | None, unrestricted: bool, nvme: bool, gpus: int | None, config: Facts, rounds: bool
) -> str:
    changes = [f"--seq-len {seq_len}"] if seq_len is not None else []
    changes += [DRIVE] if nvme else []
    changes += ["no restrictions"] if unrestricted else []
    where = "" if gpus is None else f" on {gpus} GPUs"
    return f"Two changes: {' and '.join(changes)}{where} would make it fit {_described(config)}{rounding(rounds)}."


def _described(config: Facts) -> str:
    return describe_on_disk(config) if config["nvme_bytes_per_node"] else f"({describe(config)})"


def _sweep_nothing_fits() -> str:
    return "Nothing fits on any of these numbers of GPUs."


def _sweep_best(fastest: int, cheapest: int) -> str:
    if fastest == cheapest:
        return f"Fastest and cheapest: {several(fastest)}."
    return f"Fastest: {several(fastest)}. Cheapest, with the most tokens/s from each GPU: {cheapest}."


def _sweep_brings_nothing(gpus: int, fewer: int, gain: float, waits: Facts | None) -> str:
    return f"{gpus} GPUs do not help: {compared_with(gain, str(fewer))}{waits_for(waits)}."


def _sweep_each_gives_less(gpus: int, fewer: int, gain: float, waits: Facts | None) -> str:
    return f"Each of {gpus} GPUs gives {compared_with(gain, _each_of(fewer))}{waits_for(waits)}."


def _sweep_each_gives_more(
    gpus: int, fewer: int, gain: float, waits: Facts | None, config: Facts, config_of_fewer: Facts
) -> str:
    few, many = config_of_fewer["name"], config["name"]
    because = waits_for(waits) if few == many else f": on {fewer} it is {few}, on {gpus} {many}"
    return f"Each of {gpus} GPUs gives {compared_with(gain, _each_of(fewer))}{because}."


def _each_of(gpus: int) -> str:
    return "a single one" if gpus == 1 else f"each of {gpus}"


def _sweep_batches_differ(least: int, most: int) -> str:
    sizes = f"from {least} to {most} sequences"
    return f"The global batch differs, {sizes}: give --global-batch-size to keep it the same."


def _sweep_host_memory(
    gpus: int, needed_bytes: int, stated_bytes: int | None, assumed_bytes: int | None, gpus_per_node: int
) -> str:
    return f"On {gpus}: {_host_memory(needed_bytes, stated_bytes, assumed_bytes, gpus_per_node)}"


def _sweep_held_back(gpus: int, config: Facts) -> str:
    return f"On {gpus}: {offer(config)}."


ALTERNATIVES = table_of(
    (
        _fewer_gpus_as_fast,
        _each_gpu_gives_less,
        _more_gpus_bring_nothing,
        _more_gpus,
        _without_offload,
        _without_offload_fits_on,
        _more_accumulation,
        _checkpointing_on,
        _checkpointing_off,
        _checkpointing_off_does_not_fit,
        _states_in_bf16,
        _more_memory,
        _twice_as_fast,
        _nvlink,
        _nothing_fits,
        _more_gpus_do_not_help,
        _no_single_change,
        _fits_without_option,
        _fits_with_host_memory,
        _fits_with_nvme,
        _fits_on_more_gpus,
        _fits_with_lora,
        _fits_with_shorter_sequences,
        _fits_without_restrictions,
        _fits_with_two_changes,
        _sweep_nothing_fits,
        _sweep_best,
        _sweep_brings_nothing,
        _sweep_each_gives_less,
        _sweep_each_gives_more,
        _sweep_batches_differ,
        _sweep_host_memory,
        _sweep_held_back,
    )
)
"""Code → sentence of what search finds out about other ways than the one it recommends."""
