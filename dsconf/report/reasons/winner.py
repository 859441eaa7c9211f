"""Sentences on the recommended config: why it won, and what to know or do before training with it."""

from __future__ import annotations

from dsconf.report.reasons.phrases import (
    Facts,
    host_memory,
    largest,
    offer,
    part_name,
    percent,
    speed_difference,
    table_of,
)
from dsconf.units import format_bytes, format_seconds

ULYSSES = "deepspeed.runtime.sequence_parallel.ulysses_sp"
DTYPES = {"bf16": "torch.bfloat16", "fp16": "torch.float16"}
RESORTS = {
    "tight": "nothing fits with headroom",
    "bf16_states": "nothing with optimizer states in fp32 fits with headroom",
    "offload": "nothing fits with headroom without offload",
    "offload_or_bf16_states": "nothing with optimizer states in fp32 fits with headroom without offload",
}
"""Why the winner has what is taken only where nothing fits without it."""
LEFT_OUT = {"offload": "no offload", "large_host": "no more host memory than a node likely has"}
"""Among what the winner was chosen, where offload to a host that nobody described was set aside."""
RESOURCES = {
    "link_in_node": "links in a node",
    "network_between_nodes": "network between nodes",
    "link_to_host": "link to the host",
    "host_cpu": "optimizer step on the CPU",
    "nvme": "NVMe disk",
}
"""What a part of the step waits for."""
IMPORTED_BEFORE = "Import torch._dynamo before: transformers' models import it, which fails under zero.Init."
ZERO_INIT = {
    "deepspeed": "Build the model under deepspeed.zero.Init",
    "hf": "Make the TrainingArguments before the model, so that from_pretrained builds it in shards (zero.Init)",
    "accelerate": "Make the Accelerator before the model, so that from_pretrained builds it in shards (zero.Init)",
}
"""How each target builds a model in shards."""


def _only_one(
    config: Facts, states: str | None, left_out: str | None, resort: str | None, held_back: Facts | None
) -> str:
    among = f"the only DeepSpeed config that fits{_among(config, states, left_out, resort)}"
    return f"{config['name']}: {_led(resort)}{among}{_offered(held_back)}."


def _fastest(
    config: Facts, states: str | None, left_out: str | None, resort: str | None, held_back: Facts | None, count: int
) -> str:
    among = f"the fastest of the {count} DeepSpeed configs that fit{_among(config, states, left_out, resort)}"
    return f"{config['name']}: {_led(resort)}{among}{_offered(held_back)}."


def _among(config: Facts, states: str | None, left_out: str | None, resort: str | None) -> str:
    """Say what the configs have in common that were compared; what a last resort changed the lead has said."""
    tightly = " tightly" if config["fits"] == "tight" else ""
    common = [] if resort is not None else ["headroom"]
    common += [] if resort is not None or states is None else [f"optimizer states in {states}"]
    common += [] if left_out is None else [LEFT_OUT[left_out]]
    listed = " and ".join([", ".join(common[:-1]), common[-1]] if len(common) > 1 else common)
    return f"{tightly} with {listed}" if listed else tightly


def _simplest(
    config: Facts, resort: str | None, held_back: Facts | None, faster: Facts, gain: float, within: float
) -> str:
    tightly = " that fits tightly" if config["fits"] == "tight" else ""
    without = " without offload" if held_back is not None and config["offload"] == "none" else ""
    more = speed_difference(gain)
    beside = "" if more == speed_difference(0) else f" ({faster['name']}, {more})"
    place = f"the simplest config within {percent(within)} of the fastest{tightly}{without}{beside}"
    return f"{config['name']}: {_led(resort)}{place}{_offered(held_back)}."


def _led(resort: str | None) -> str:
    return "" if resort is None else f"{RESORTS[resort]}; this is "


def _offered(held_back: Facts | None) -> str:
    return "" if held_back is None else f"; {offer(held_back)}"


def _fullest(phase: str, moment: str, peak_bytes: int, term: Facts) -> str:
    return f"Memory peaks in {_moment(phase, moment, peak_bytes, term)}."


def _fullest_at_start(start_bytes: int, phase: str, moment: str, peak_bytes: int, term: Facts) -> str:
    start, step = format_bytes(start_bytes), _moment(phase, moment, peak_bytes, term)
    return f"Memory peaks in initialisation: {start}; the step peaks in {step}."


def _moment(phase: str, moment: str, peak_bytes: int, term: Facts) -> str:
    return f"{phase} ({moment}): {format_bytes(peak_bytes)} allocated, the largest part {largest(term)}"


def _slowest(part: str, waits_for: str | None, share: float, step_seconds: float) -> str:
    where = f" ({RESOURCES[waits_for]})" if waits_for is not None else ""
    of_it = f"{percent(share)} of a {format_seconds(step_seconds)} s step"
    return f"Speed is limited by {part_name(part)}{where}: {of_it}."


def _next_best(config: Facts, gain: float, tight: bool, lost_to: str | None, more_bytes: int) -> str:
    less = speed_difference(gain)
    lost = f", mostly because of {part_name(lost_to)}" if lost_to and less != speed_difference(0) else ""
    held = f"; {format_bytes(abs(more_bytes))} {'more' if more_bytes > 0 else 'less'} on each GPU" if more_bytes else ""
    return f"Next best: {config['name']}{' (tight)' if tight else ''}, {less}{lost}{held}."


def _nvme_space(needed_bytes: int) -> str:
    return f"Needs {format_bytes(needed_bytes)} on the NVMe disk of each node."


def _bf16_states() -> str:
    return (
        "Optimizer states in bf16 round each update to 8 significant bits: compare the loss with that of fp32 "
        "states before a long run."
    )


def _beyond_positions(positions: int, seq_len: int) -> str:
    return (
        f"The model was made for {positions} positions, and --seq-len {seq_len} goes beyond them: scale "
        "its rotary embedding (rope_scaling, or a larger rope_theta), or it has to learn the new ones from scratch."
    )


def _no_bf16(gpu: str) -> str:
    return (
        f"Trains in fp16 with a dynamic loss scale, because a {gpu} has no bf16: a model that was trained in "
        "bf16 can overflow in fp16."
    )


def _loading(needed_bytes: int, stated_bytes: int) -> str:
    return (
        f"Loading takes up to {format_bytes(needed_bytes)} of host memory in each node if each process loads the "
        f"whole model, and a node has {format_bytes(stated_bytes)}: load it on the GPU (device_map), one process after "
        "the other, or under deepspeed.zero.Init at stage 3."
    )


def _taken(process_bytes: int, fragmentation_bytes: int, outside_bytes: int) -> str:
    kept = f"{format_bytes(fragmentation_bytes)} in reserve for fragmentation"
    outside = f"{format_bytes(outside_bytes)} for the driver's context and the communicators"
    return f"{format_bytes(process_bytes)} of each GPU, including {kept} and {outside}"


def _headroom(process_bytes: int, fragmentation_bytes: int, outside_bytes: int, free_bytes: int) -> str:
    taken = _taken(process_bytes, fragmentation_bytes, outside_bytes)
    return f"Takes {taken}; {format_bytes(free_bytes)} stay free."


def _little_headroom(process_bytes: int, fragmentation_bytes: int, outside_bytes: int, free_bytes: int) -> str:
    taken = _taken(process_bytes, fragmentation_bytes, outside_bytes)
    return (
        f"Little headroom: it would take {taken}, which is {format_bytes(-free_bytes)} more than there is; "
        "a fragmented allocator can run out of memory, so prove it with --check."
    )


def _sample_all_positions(seq_len: int, positions: int) -> str:
    return f"{_longest(seq_len)}; with these settings all of the model's {positions} positions fit."


def _sample_no_longer(seq_len: int, step: int) -> str:
    return f"{_longest(seq_len)}: {step} tokens more do not fit with these settings."


def _sample_longer(seq_len: int, longest: int) -> str:
    return f"{_longest(seq_len)}; with these settings up to {longest} tokens fit."


def _longest(seq_len: int) -> str:
    return f"This holds for samples of up to --seq-len {seq_len} tokens"


def _script_lora(rank: int, quantize: str | None, precision: str) -> str:
    kind, loaded = "LoRA", ""
    if quantize is not None:
        kind, dtype = f"QLoRA ({quantize})", DTYPES.get(precision, "torch.float32")
        stored = f"bnb_4bit_compute_dtype={dtype}, bnb_4bit_quant_storage={dtype}"
        four = f', bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, {stored}' if quantize == "4bit" else ""
        loaded = f"load the model with dtype={dtype} and BitsAndBytesConfig(load_in_{quantize}=True{four}) and "
    wrapped = f'wrap it with peft\'s LoraConfig(r={rank}, target_modules="all-linear")'
    return f"{kind} of rank {rank}: the training script must {loaded}{wrapped}."


def _script_checkpointing(target: str) -> str:
    if target == "hf":
        return "Activation checkpointing is turned on by --gradient_checkpointing, which the written arguments include."
    return (
        "Turn activation checkpointing on in the training script (model.gradient_checkpointing_enable()): "
        "Hugging Face models do not read the config's activation_checkpointing block."
    )


def _script_zero_init(target: str, start_bytes: int, fits: bool) -> str:
    does = "" if fits else ", which does not fit"
    start = f"otherwise each GPU holds all of it while it starts, {format_bytes(start_bytes)}{does}"
    before = f" {IMPORTED_BEFORE}" if target == "deepspeed" else ""
    return f"{ZERO_INIT[target]}: {start}.{before}"


def _script_ulysses(ranks: int, target: str) -> str:
    if target == "deepspeed":
        return (
            f"{ranks} ranks share each sequence: the training script must call "
            f"UlyssesSPAttentionHF.register_with_transformers(…, sequence_parallel_size={ranks}) before the model is "
            f"made and read its batches through UlyssesSPDataLoaderAdapter ({ULYSSES})."
        )
    where = "accelerate.yaml" if target == "accelerate" else "the PARALLELISM_CONFIG variables of the launch file"
    return f"{ranks} ranks share each sequence: Accelerate sets that up from {where}."


def _script_tiled_loss() -> str:
    return (
        "The loss is computed shard by shard: the training script must replace the model's loss by "
        f"TiledFusedLogitsLoss ({ULYSSES})."
    )


def _one_gpu() -> str:
    return "With one GPU ZeRO shards nothing: only offload, checkpointing and a smaller micro-batch save memory."


def _plain_torch(config: Facts, gain: float) -> str:
    ways = "plain torch DDP" if config["gpus"] > 1 else "plain torch"
    speed = "no speed" if gain >= 0 else "hardly any speed"
    lead = f"The model is small enough for {ways} ({config['name']}: {speed_difference(gain)})"
    return f"{lead}: DeepSpeed saves memory here and gains {speed}."


def _stage_3_holds_more(more_bytes: int) -> str:
    more = f"ZeRO stage 3 holds {format_bytes(more_bytes)} more than stage 2 here"
    return f"{more}: what it gathers outweighs what it shards."


WINNER = table_of(
    (
        _only_one,
        _fastest,
        _simplest,
        _fullest,
        _fullest_at_start,
        _slowest,
        _next_best,
        host_memory,
        _nvme_space,
        _bf16_states,
        _beyond_positions,
        _no_bf16,
        _loading,
        _headroom,
        _little_headroom,
        _sample_all_positions,
        _sample_no_longer,
        _sample_longer,
        _script_lora,
        _script_checkpointing,
        _script_zero_init,
        _script_ulysses,
        _script_tiled_loss,
        _one_gpu,
        _plain_torch,
        _stage_3_holds_more,
    )
)
"""Code → sentence of what search finds out about the config that it recommends."""
