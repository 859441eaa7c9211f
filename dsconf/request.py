"""Every word a person can give about a job, once: type, default, choices, help, and what is said when it is refused.

The options of the command line are made from these (cli/options.py), and the functions of Python are typed by them.
A word is a field of a ``TypedDict``; its ``Word`` says the rest. To add one, add a field here, and use it.
"""

# Without ``from __future__ import annotations``: the fields must be values that can be read.

from typing import Annotated, Any, TypedDict

from dsconf.config.names import RELEASES, TARGETS
from dsconf.errors import InputError, one_of
from dsconf.units import count, positive, whole
from dsconf.word import Word
from dsconf.workload import ALLOCATORS, ATTENTION_KERNELS, LOAD_DTYPES, QUANTIZED

PRECISIONS = ("bf16", "fp16", "fp32")
OFFLOADS = ("none", "optimizer", "optimizer+param", "nvme")
"""What the host or its disks hold. Only a search takes ``nvme`` as optimizer alone or with the parameters."""
STAGES = (0, 1, 2, 3)
OPTIMIZER_STATES = ("fp32", "bf16")
LAUNCHERS = ("torchrun", "deepspeed", "direct")
"""What starts the ranks: torch's launcher, DeepSpeed's, or dsconf itself."""
FULLEST = "fullest"


def _one_of(*choices: str, help: str = "", **more: Any) -> Word:  # noqa: A002 (click's and argparse's word for it)
    def read(option: str, value: Any) -> str:
        return one_of(option, value, choices)

    return Word(help, read, choices=choices, **more)


def _number(help: str, **more: Any) -> Word:  # noqa: A002
    return Word(help, whole, **more)


def _whole_or_several(option: str, value: Any) -> int | str:
    """Read one number, or leave the text of several, for whoever compares them to split."""
    return value if isinstance(value, str) and "," in value else whole(option, value)


def _stage(option: str, value: Any) -> int:
    if str(value) not in map(str, STAGES):
        raise InputError(f"{option}: {value} is not one of {', '.join(map(str, STAGES))}")
    return int(value)


def _offload(option: str, value: Any) -> str:
    return one_of(option, "optimizer+param" if value == "param" else value, OFFLOADS)


def _optimizer(option: str, value: Any) -> str:
    """Read it in lower case, as settings have it; a search takes those that its templates can write."""
    if not isinstance(value, str):
        raise InputError(f"{option}: {value!r} is not the name of an optimizer")
    return value.lower()


def _rank(option: str, value: Any) -> int | None:
    """Read a rank's number, or None for the fullest."""
    if value is None or value == FULLEST:
        return None
    try:
        return int(value)
    except ValueError:
        raise InputError(f"{option}: {value!r} is neither 'fullest' nor a rank's number") from None


MAX_SHARDS = 2**16


def _shards(option: str, value: Any) -> int | None:
    """Read None, 0 (``auto``) or a number of shards."""
    if value is False:
        return None
    if value is True or value == "auto":
        return 0
    try:
        shards = int(value)
    except ValueError:
        shards = 0
    if not 0 < shards <= MAX_SHARDS:
        raise InputError(f"{option}: {value!r} is neither 'auto' nor a number of shards from 1 to {MAX_SHARDS}")
    return shards


class ModelWords(TypedDict, total=False):
    """What is trained."""

    params: Annotated[
        str | int | None,
        Word("Size of the model, e.g. 70B; a realistic shape is chosen and shown.", count, metavar="COUNT"),
    ]
    model: Annotated[Any, Word("A Hugging Face config.json (or its folder), or a known name.", metavar="PATH_OR_NAME")]


class WorldWords(TypedDict, total=False):
    """On how many GPUs."""

    gpus: Annotated[int | None, _number("Total number of GPUs: the world size.")]


class SeveralWorldsWords(TypedDict, total=False):
    """On how many GPUs, or on which numbers of them."""

    gpus: Annotated[
        int | str | None,
        Word(
            "Total number of GPUs: the world size. Several, such as 8,16,32, are compared.",
            _whole_or_several,
            metavar="N[,N…]",
        ),
    ]


class NodeWords(TypedDict, total=False):
    """The GPUs and the memory of a node; sizes and rates are read where the cluster is (cluster/read.py)."""

    gpu: Annotated[str | None, Word("Kind of GPU, e.g. h100-80gb.", metavar="NAME")]
    gpu_memory: Annotated[str | int | None, Word("Memory of one GPU, e.g. 80GiB, instead of --gpu.", metavar="SIZE")]
    gpus_per_node: Annotated[int, _number("GPUs in one node.", default=8)]
    host_memory: Annotated[str | int | None, Word("Memory of one node, e.g. 1TiB.", metavar="SIZE")]


class DiskWords(TypedDict, total=False):
    """The disks of a node."""

    nvme: Annotated[str | None, Word("Path on a fast local disk, for NVMe offload.", metavar="PATH")]


class RateWords(TypedDict, total=False):
    """How fast data moves outside the GPUs."""

    network: Annotated[
        str | None,
        Word("What one GPU sends to other nodes, one direction [default: 400Gbit/s, or 50GB/s].", metavar="RATE"),
    ]
    cpu_cores: Annotated[
        int | None, _number("CPU cores that the job has in one node [default: 64, of a part of its GPUs their share].")
    ]
    host_bandwidth: Annotated[
        str | None,
        Word("What the cores of one node read and write of its memory [default: 300GB/s].", metavar="RATE"),
    ]


class PrecisionWords(TypedDict, total=False):
    """The type of training, which a ds_config says too."""

    precision: Annotated[
        str | None,
        _one_of(*PRECISIONS, help="Type the model is trained in [default: bf16, fp16 where the GPU has no bf16]."),
    ]


class ConfigWords(PrecisionWords, total=False):
    """What a ds_config says too; beside one, a word must agree with it."""

    optimizer: Annotated[str | None, Word("Optimizer's name [default: adamw].", _optimizer, metavar="NAME")]
    offload: Annotated[
        str | None,
        Word("What the host's memory or its NVMe disks hold in place of the GPUs.", _offload, choices=OFFLOADS),
    ]


class StageWords(TypedDict, total=False):
    """The ZeRO stage, which a ds_config says too."""

    stage: Annotated[int | None, Word("ZeRO stage.", _stage, choices=("0", "1", "2", "3"))]


class BatchWords(TypedDict, total=False):
    """Sizes of the batch."""

    seq_len: Annotated[
        int | None, _number("Tokens of one sequence [default: 2048, fewer where the model has no position for them].")
    ]
    micro_batch_size: Annotated[int | None, _number("Sequences a GPU processes at a time.")]
    gradient_accumulation_steps: Annotated[int | None, _number("Micro-batches of one optimizer step.")]


class ScriptWords(TypedDict, total=False):
    """What the training script chooses of the model's code."""

    activation_checkpointing: Annotated[bool | None, Word("Recompute each layer in backward.", switch="on/off")]
    attention: Annotated[str, _one_of(*ATTENTION_KERNELS, help="Attention kernel.", default="sdpa")]


class WeightWords(TypedDict, total=False):
    """How the model is built and kept, as far as the ds_config does not say."""

    load_dtype: Annotated[str | None, _one_of(*LOAD_DTYPES, help="Type the weights are loaded in.")]
    zero_init: Annotated[
        bool | None, Word("Build the model under deepspeed.zero.Init [default: at stage 3].", switch="on/off")
    ]
    lora_rank: Annotated[int | None, _number("Train LoRA adapters of this rank on every linear layer.")]
    quantize: Annotated[str | None, _one_of(*QUANTIZED, help="Store the frozen weights quantized (QLoRA).")]
    allocator: Annotated[
        str | None,
        _one_of(
            *ALLOCATORS,
            help="torch's CUDA allocator: with expandable_segments:True, or its default [default: expandable].",
        ),
    ]
    sequence_parallel: Annotated[
        int | None, _number("Ranks that share each sequence (DeepSpeed's Ulysses).", metavar="RANKS")
    ]
    tiled_loss: Annotated[
        bool | int | str | None,
        Word(
            "Logits and loss in shards (TiledFusedLogitsLoss): a number, by default as many as take 1 GiB each.",
            _shards,
            metavar="[SHARDS]",
            alone="auto",
        ),
    ]


class KernelWords(ScriptWords, WeightWords, total=False):
    """How the training script runs a step, but for the sizes of the batch."""


class RunWords(BatchWords, KernelWords, total=False):
    """How the training script runs a step, as far as the ds_config does not say."""


class GlobalBatchWords(TypedDict, total=False):
    """The batch of a step."""

    global_batch_size: Annotated[int | None, _number("Sequences of one optimizer step over all GPUs.")]


class JobWords(NodeWords, DiskWords, StageWords, ConfigWords, RunWords, total=False):
    """One job, fully said."""

    config: Annotated[str | Any | None, Word("The ds_config.json; or say --stage and what follows it.", metavar="FILE")]
    module: Annotated[Any, Word("A live torch.nn.Module in place of a model.", python_only=True)]
    batch: Annotated[Any, Word("What ``module`` is called with.", python_only=True)]


class RankWords(TypedDict, total=False):
    """Whose memory."""

    rank: Annotated[int | str | None, Word("Which rank: a number, or the fullest.", _rank, default=FULLEST)]


class StagesWords(NodeWords, DiskWords, RateWords, GlobalBatchWords, ConfigWords, RunWords, total=False):
    """``dsconf stages``."""


class PlanWords(NodeWords, DiskWords, RateWords, ConfigWords, KernelWords, total=False):
    """``dsconf.plan`` and ``Planner``; stage and sizes of the batch are given job by job."""


class RecommendWords(NodeWords, DiskWords, RateWords, GlobalBatchWords, StageWords, ConfigWords, RunWords, total=False):
    """``dsconf recommend``; what is left out is searched."""

    optimizer_states: Annotated[
        str | None,
        _one_of(
            *OPTIMIZER_STATES,
            help="Type of master weights and optimizer states [default: fp32, bf16 only where nothing else fits].",
        ),
    ]
    target: Annotated[
        str,
        _one_of(
            *TARGETS,
            help="Who loads the config: DeepSpeed itself, Hugging Face Trainer, Accelerate.",
            default="deepspeed",
            option="for",
        ),
    ]
    tokens: Annotated[str | int | None, Word("Tokens to train on, e.g. 1T: adds hours and cost.", count)]
    price: Annotated[float | None, Word("Price of one GPU-hour.", positive)]


class ValidateWords(ModelWords, NodeWords, StageWords, ConfigWords, RunWords, total=False):
    """``dsconf validate``."""

    deepspeed_version: Annotated[
        str,
        Word(
            f"The DeepSpeed that will run: {', '.join(release.rpartition('.')[0] for release in RELEASES[:-1])}.",
            default=RELEASES[-1],
            metavar="RELEASE",
        ),
    ]
    resume_gpus: Annotated[int | None, _number("World size that wrote the checkpoint to go on from.")]


class LaunchWords(TypedDict, total=False):
    """How a real run is launched."""

    steps: Annotated[int, _number("Optimizer steps to run.", default=3)]
    launcher: Annotated[
        str | None, _one_of(*LAUNCHERS, help="What starts the ranks [default: torchrun for two or more].")
    ]
    timeout: Annotated[float, Word("Seconds until a run is ended.", positive, default=600.0)]


class CheckWords(NodeWords, StageWords, ConfigWords, RunWords, LaunchWords, total=False):
    """``dsconf check``."""

    module: Annotated[
        str | None, Word("Instead of a model: package.file:function that makes one.", metavar="FILE:FUNCTION")
    ]
    fit: Annotated[bool, Word("Find the largest micro-batch that runs, by running.", default=False, switch="on")]
    record: Annotated[
        str | Any | None, Word("Append the measurement to this file, one JSON object a line.", metavar="FILE")
    ]
    memory_snapshot: Annotated[
        str | Any | None, Word("Write torch's memory snapshot of the first process here.", metavar="FILE")
    ]


class BenchWords(BatchWords, ScriptWords, PrecisionWords, LaunchWords, total=False):
    """``dsconf bench``."""

    strategies: Annotated[
        Any,
        Word(
            "What to compare, separated by commas.", default="single,ddp,zero1,zero2,zero3,accelerate", metavar="NAMES"
        ),
    ]
    learning_rate: Annotated[float, Word("The same for all.", positive, default=1e-4)]
    resume: Annotated[
        bool, Word("Save a checkpoint half-way, resume from it, compare the losses.", default=False, switch="on")
    ]


BENCH_DEFAULTS = {
    "seq_len": 1024,
    "micro_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "activation_checkpointing": False,
    "precision": "bf16",
    "steps": 20,
    "timeout": 900.0,
}
"""Usual sizes of its own, since it trains briefly."""
