"""Complaints about ds_config files that are ignored, refused late, or mean something else: what ``validate`` answers.

docs/complaints.md lists all 41.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from asking import ADAMW, BF16, CPU, FP16, ask, figures, findings, zero

ROOT = Path(__file__).parents[2]
AUTO = dict.fromkeys(("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"), "auto")


def error(line: str, config: dict[str, Any], code: str) -> dict[str, Any]:
    """The finding ``code``, which is an error and makes the command fail."""
    assert ask(line, config).code == 1
    found = findings(line, config)[code]
    assert found["severity"] == "error"
    return found


def test_complaint_11_older_releases_keep_three_times_the_parameters() -> None:
    """Offload at stage 1 and 2 holds 3 × the 16-bit parameters on one GPU, until a release mends it.

    https://github.com/deepspeedai/DeepSpeed/pull/7307
    """
    line = "dsconf validate ds_config.json --gpus 1 --params 6.74B --gpu a100-80gb --deepspeed-version {}"
    config = zero(2, BF16, ADAMW, offload_optimizer=CPU)
    found = findings(line.format("0.16"), config)["DS413"]
    assert found["severity"] == "warning"
    assert "25.14 GiB of them" in found["message"]  # 4 bytes a parameter beside the 2 there are
    assert "0.17" in found["suggestion"]
    assert "DS413" not in findings(line.format("0.17"), config)
    small = line.replace("80gb", "40gb")
    fits = error(small.format("0.16"), config, "DS901")
    assert "with the copy of DS413 of 25.14 GiB" in fits["message"]
    assert findings(small.format("0.17"), config)["DS901"]["severity"] == "note"


def test_complaint_13_a_misspelt_key_is_an_error() -> None:
    """gradient_clipp1ng trains for days without clipping.

    https://github.com/deepspeedai/DeepSpeed/issues/774
    """
    config = zero(2) | {"gradient_clipp1ng": 1.0}
    found = error("dsconf validate ds_config.json", config, "DS101")
    assert (found["path"], "did you mean 'gradient_clipping'?" in found["suggestion"]) == ("gradient_clipp1ng", True)
    fixed = json.loads(ask("dsconf validate ds_config.json --fix", config).files["ds_config.json"])
    assert fixed == zero(2) | {"gradient_clipping": 1.0}


def test_complaint_14_checks_that_python_o_leaves_in(tmp_path: Path) -> None:
    """Validation by assert is gone under python -O.

    https://github.com/deepspeedai/DeepSpeed/issues/8572
    """
    (tmp_path / "ds_config.json").write_text(json.dumps(zero(7) | {"gradient_accumulation_steps": -1}))
    command = [sys.executable, "-O", "-m", "dsconf", "validate", "ds_config.json"]
    where = {"cwd": tmp_path, "env": {**os.environ, "PYTHONPATH": str(ROOT)}}
    done = subprocess.run(command, **where, capture_output=True, text=True, timeout=60)  # type: ignore[call-overload]
    assert done.returncode == 1
    assert "DS103 zero_optimization.stage: 7 is not one of 0, 1, 2, 3" in done.stdout
    assert "DS104 gradient_accumulation_steps: -1 is out of range" in done.stdout


def test_complaint_15_the_three_batch_sizes_are_solved() -> None:
    """train_batch_size is not micro-batch × accumulation × GPUs, and the assertion does not say what would be.

    https://github.com/deepspeedai/DeepSpeed/issues/6914
    """
    config = zero(2) | {"train_batch_size": 32, "train_micro_batch_size_per_gpu": 4, "gradient_accumulation_steps": 1}
    found = error("dsconf validate ds_config.json --gpus 4", config, "DS202")
    assert found["message"].endswith("32 is not 4 × 1 × 4 GPUs = 16")
    assert found["suggestion"].startswith("write 16")
    fixed = ask("dsconf validate ds_config.json --gpus 4 --fix", config).files["ds_config.json"]
    assert json.loads(fixed)["train_batch_size"] == 16


def test_complaint_16_auto_outside_the_trainer() -> None:
    """ "auto" is a string to everybody but HF's Trainer and Accelerate, and crashes or stays where it is.

    https://github.com/huggingface/accelerate/issues/3152
    """
    config = zero(3, reduce_bucket_size="auto", stage3_max_live_parameters="auto") | AUTO
    line = "dsconf validate ds_config.json --for {}"
    plain = figures(line.format("deepspeed"), config)["files"][0]["findings"]
    unfilled = {found["path"]: found["message"] for found in plain if found["code"] == "DS110"}
    assert set(unfilled) == {
        *AUTO,
        "zero_optimization.reduce_bucket_size",
        "zero_optimization.stage3_max_live_parameters",
    }
    assert "takes its default, 500000000" in unfilled["zero_optimization.reduce_bucket_size"]
    trainer = figures(line.format("hf"), config)["files"][0]["findings"]
    found = [one["path"] for one in trainer if one["code"] == "DS110"]
    assert found == ["zero_optimization.stage3_max_live_parameters"]
    assert findings(line.format("accelerate"), config)["DS110"]["severity"] == "error"


def test_complaint_16_a_file_with_every_value() -> None:
    """What to write in place of "auto": ``recommend`` for DeepSpeed itself writes values only.

    https://github.com/deepspeedai/DeepSpeed/issues/1270
    """
    line = "dsconf recommend --model meta-llama/Llama-3.2-1B --gpus 2 --gpu a100-80gb --stage 3"
    written = ask(f"{line} --activation-checkpointing --micro-batch-size 1 -o .").files["ds_config.json"]
    assert '"auto"' not in written
    assert {"train_batch_size": 2, "train_micro_batch_size_per_gpu": 1}.items() <= json.loads(written).items()


def test_complaint_17_config_and_arguments_that_disagree() -> None:
    """The Trainer stops because its arguments and the config differ, or because 8 is written "8".

    https://github.com/huggingface/transformers/issues/29348
    """
    config = zero(2, FP16, ADAMW) | {"train_micro_batch_size_per_gpu": "8", "gradient_accumulation_steps": "auto"}
    line = "dsconf validate ds_config.json --for hf"
    found = error(line, config, "DS102")
    assert ('"8" is not a positive whole number' in found["message"], found["suggestion"]) == (True, "write 8")
    fixed = json.loads(ask(f"{line} --fix", config).files["ds_config.json"])
    assert fixed["train_micro_batch_size_per_gpu"] == 8
    note = findings(line, config)["DS603"]["message"]
    assert "per_device_train_batch_size" in note
    assert "learning_rate" in note
    line = "dsconf recommend --model meta-llama/Llama-3.2-1B --gpus 2 --gpu a100-80gb --stage 2 --for hf -o run"
    files = ask(f"{line} --no-activation-checkpointing --micro-batch-size 4").files
    arguments = json.loads(files["run/training_args.json"])
    assert arguments["per_device_train_batch_size"] == 4
    assert json.loads(files["run/ds_config.json"])["train_micro_batch_size_per_gpu"] in (4, "auto")


def test_complaint_18_a_bucket_that_is_no_whole_number() -> None:
    """0.9 × hidden² is a float, which DeepSpeed refuses for stage3_prefetch_bucket_size.

    https://github.com/huggingface/accelerate/pull/2814
    """
    config = zero(3, BF16, ADAMW, stage3_prefetch_bucket_size=0.9 * 4096 * 4096)
    found = error("dsconf validate ds_config.json", config, "DS102")
    assert found["path"] == "zero_optimization.stage3_prefetch_bucket_size"
    assert found["suggestion"] == "write 15099494"
    fixed = json.loads(ask("dsconf validate ds_config.json --fix", config).files["ds_config.json"])
    assert fixed["zero_optimization"]["stage3_prefetch_bucket_size"] == 15_099_494
    line = "dsconf recommend --model meta-llama/Llama-2-7b-hf --gpus 8 --gpu a100-80gb --stage 3 --micro-batch-size 1"
    block = json.loads(ask(f"{line} -o .").files["ds_config.json"])["zero_optimization"]
    assert all(isinstance(value, int) for key, value in block.items() if key.endswith("bucket_size"))
    assert isinstance(block["stage3_prefetch_bucket_size"], int)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("steps_per_print", 2.5),
        ("gradient_accumulation_steps", "-2"),
        ("train_batch_size", "0"),
        ("wall_clock_breakdown", "1"),
    ],
)
def test_complaint_18_what_is_not_certain_is_left_alone(key: str, value: Any) -> None:
    """A float in place of a whole number; others could mean several things, or are wrong as a number too.

    https://github.com/huggingface/accelerate/pull/2814
    """
    config = zero(3, BF16, ADAMW) | {key: value}
    assert json.loads(ask("dsconf validate ds_config.json --fix", config).files["ds_config.json"]) == config


def test_complaint_19_parameters_are_not_offloaded_at_stage_2() -> None:
    """offload_param at stage 2 runs out of memory all the same: DeepSpeed ignores it.

    https://github.com/deepspeedai/DeepSpeed/issues/2977
    """
    found = error("dsconf validate ds_config.json", zero(2, ADAMW, offload_param=CPU, offload_optimizer=CPU), "DS401")
    assert "parameters stay on the GPU" in found["message"]
    assert "use stage 3" in found["suggestion"]


@pytest.mark.parametrize(("loader", "switch"), [("hf", "gradient_checkpointing"), ("deepspeed", "configure")])
def test_complaint_20_a_block_that_checkpoints_nothing(loader: str, switch: str) -> None:
    """activation_checkpointing with cpu_checkpointing saves not a byte with Hugging Face models.

    https://github.com/deepspeedai/DeepSpeed/issues/5704
    """
    config = zero(3, ADAMW) | {"activation_checkpointing": {"partition_activations": True, "cpu_checkpointing": True}}
    found = findings(f"dsconf validate ds_config.json --for {loader}", config)["DS602"]
    assert switch in (found["suggestion"] or found["message"])


def test_complaint_21_what_a_save_of_stage_3_needs() -> None:
    """Saving at stage 3 writes empty weights, or kills the first node.

    https://github.com/huggingface/transformers/issues/12587, https://github.com/deepspeedai/DeepSpeed/issues/2413
    """
    line = "dsconf validate ds_config.json --gpus 8 --model meta-llama/Meta-Llama-3-70B --gpu h100-80gb"
    assert "the weights stay in shards" in findings(line, zero(3, BF16, ADAMW))["DS321"]["message"]
    gathers = zero(3, BF16, ADAMW, stage3_gather_16bit_weights_on_model_save=True)
    assert (
        "host memory of rank 0, 131.42 GiB, and writes a file as large" in findings(line, gathers)["DS323"]["message"]
    )


def test_complaint_22_resuming_on_other_gpus() -> None:
    """A checkpoint of 8 GPUs does not load on 16, which shows after the queue.

    https://github.com/deepspeedai/DeepSpeed/issues/3810
    """
    line = "dsconf validate ds_config.json --gpus 16 --resume-gpus 8"
    found = error(line, zero(2, BF16, ADAMW), "DS322")
    assert found["message"] == "a checkpoint of 8 GPUs does not load on 16"
    assert "ds_to_universal.py" in found["suggestion"]
    universal = zero(2, BF16, ADAMW) | {"checkpoint": {"load_universal": True}}
    assert ask(line, universal).code == 0


def test_complaint_33_buckets_larger_than_the_model() -> None:
    """DeepSpeed needs more memory than plain training: buckets of 2e8 elements for T5-small's 60 million.

    https://github.com/huggingface/transformers/issues/10929
    """
    line = "dsconf validate ds_config.json --gpus 2 --params 60M --gpu rtx-4090"
    found = findings(line, zero(2, FP16, ADAMW, reduce_bucket_size=int(2e8), overlap_comm=True))["DS701"]
    assert found["message"].startswith("a bucket of 200000000 elements for a model of 5")
    line = "dsconf recommend --params 60M --gpus 2 --gpu rtx-4090 --stage 2 --micro-batch-size 1"
    block = json.loads(ask(f"{line} -o .").files["ds_config.json"])["zero_optimization"]
    assert block["reduce_bucket_size"] <= 60_000_000


def test_complaint_34_a_sub_group_larger_than_any_model() -> None:
    """sub_group_size 1e14, copied from file to file.

    https://github.com/huggingface/transformers/issues/9996
    """
    found = findings("dsconf validate ds_config.json", zero(3, FP16, ADAMW, sub_group_size=10**14))["DS702"]
    assert "never split" in found["message"]


def test_complaint_35_a_ratio_with_one_sub_group() -> None:
    """A ratio of 0.3 offloads everything where a rank has a single sub-group.

    https://github.com/deepspeedai/DeepSpeed/issues/4775
    """
    line = "dsconf validate ds_config.json --gpus 8 --params 2.7B --gpu a100-80gb"
    found = findings(line, zero(3, BF16, ADAMW, offload_optimizer={"device": "cpu", "ratio": 0.3}))["DS703"]
    assert "all of them are offloaded" in found["message"]


def test_complaint_36_a_patch_turns_a_fit_into_none() -> None:
    """Qwen3-8B on 8 H100 runs out of memory with DeepSpeed 0.16.7 and runs with 0.16.8.

    https://github.com/huggingface/open-r1/pull/653, https://github.com/deepspeedai/DeepSpeed/issues/7116
    """
    line = "dsconf validate ds_config.json --deepspeed-version {}"
    found = findings(line.format("0.16.7"), zero(3, BF16, ADAMW))["DS309"]
    assert "0.16.8" in found["suggestion"]
    assert "DS309" not in findings(line.format("0.16.8"), zero(3, BF16, ADAMW))
