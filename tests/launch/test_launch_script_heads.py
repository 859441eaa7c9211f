"""What the head of each script says that the training script must do."""

from __future__ import annotations

import re

import pytest
from launch_jobs import launch

from dsconf import recommend
from dsconf.launch.folder import launch_files
from dsconf.launch.plan import Launch
from dsconf.search.folder import folder_files


def head(one: Launch, name: str = "launch.sh", hours: float | None = None) -> str:
    text = launch_files(one, "folder", "ds_config.json", slurm=name == "slurm.sh", hours=hours)[name]
    return " ".join(line.lstrip("# ") for line in text.splitlines() if line.startswith("#"))


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("deepspeed", "It builds the model under deepspeed.zero.Init(config_dict_or_path=args.deepspeed_config)"),
        ("hf", "It makes the TrainingArguments before the model"),
        ("accelerate", "It makes the Accelerator before the model"),
    ],
)
def test_stage_3_is_built_in_shards(target: str, says: str) -> None:
    assert says in head(launch(target))
    assert says in head(launch(target), "slurm.sh")
    assert says not in head(launch(target, stage=2))
    assert says not in head(launch(target, quantize="4bit"))


def test_what_cannot_be_imported_under_zero_init_is_named() -> None:
    """The Trainer and Accelerate enter zero.Init in from_pretrained, when the model's class is there."""
    says = "Before zero.Init it has imported torch._dynamo"
    assert says in head(launch("deepspeed"))
    assert says not in head(launch("deepspeed", stage=2))
    assert says not in head(launch("hf"))
    assert says not in head(launch("accelerate"))


def test_the_launchers_own_argument_is_named() -> None:
    """deepspeed/launcher/launch.py gives every script --local_rank; argparse refuses what it does not know."""
    assert "--local_rank (an int, -1 by default)" in head(launch("deepspeed"))
    assert "torchrun gives it no --local_rank" in head(launch("deepspeed"), "slurm.sh")
    assert "-1 by default" not in head(launch("deepspeed"), "slurm.sh")
    assert "--local_rank" not in head(launch("hf"))


@pytest.mark.parametrize("name", ["launch.sh", "slurm.sh"])
@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("deepspeed", "come through UlyssesSPDataLoaderAdapter"),
        ("hf", "the Trainer sets that up from the PARALLELISM_CONFIG variables below"),
        ("accelerate", "Accelerate sets that up from accelerate.yaml"),
    ],
)
def test_shared_sequences(target: str, says: str, name: str) -> None:
    said = head(launch(target, sequence_parallel=2, attention="flash"), name)
    assert "2 ranks share each sequence" in said
    assert says in said
    assert '"flash_attention_2"' in said
    assert "position_ids" in said
    assert "share each sequence" not in head(launch(target), name)


def test_torchrun_stands_in_for_accelerate_and_its_variables_are_below() -> None:
    job = launch("accelerate", 12, sequence_parallel=2)
    text = launch_files(job, "folder", "ds_config.json")["launch.sh"]
    assert "from the PARALLELISM_CONFIG variables below" in text
    assert "export PARALLELISM_CONFIG_SP_SIZE=2" in text


@pytest.mark.parametrize("target", ["deepspeed", "hf", "accelerate"])
def test_a_loss_in_shards(target: str) -> None:
    """As many as the estimate counts: 8,192 tokens of a rank × 128,256 words in fp32, of at most 1 GiB each."""
    words = {"model": "meta-llama/Llama-3.1-8B", "gpus": 8, "gpu": "h100-80gb", "seq_len": 16384, "target": target}
    found = recommend(**words, sequence_parallel=2, micro_batch_size=1)
    assert found.recommended is not None
    assert found.recommended.workload.loss_shards == 0
    assert "TiledFusedLogitsLoss.apply(…) in 4 shards" in folder_files(found, "folder")["launch.sh"]
    assert "TiledFusedLogitsLoss" not in head(launch(target))


@pytest.mark.parametrize("target", ["deepspeed", "hf", "accelerate"])
def test_adapters_are_named_and_how_they_are_made(target: str) -> None:
    words = {"model": "meta-llama/Llama-3.1-8B", "gpus": 4, "gpu": "rtx-4090", "lora_rank": 8, "target": target}
    quantized = folder_files(recommend(**words, quantize="4bit"), "folder")["launch.sh"]
    assert "# meta-llama/Llama-3.1-8B: QLoRA 4bit, rank 8, ZeRO stage 1" in quantized
    assert 'LoraConfig(r=8, target_modules="all-linear")' in quantized
    plain = folder_files(recommend(**words, offload="none", stage=3), "folder")["launch.sh"]
    assert "LoRA, rank 8" in plain
    assert "BitsAndBytes" not in plain


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_transformers_and_peft_take_what_the_head_says(precision: str) -> None:
    """Two maxima to a weight, as the estimate counts them, and storage in the type that the model computes in."""
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    said = head(launch("deepspeed", quantize="4bit", precision=precision)._replace(lora_rank=8))
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    made = re.findall(r"(?:BitsAndBytes|Lora)Config\(.*?\)", said)
    names = {"torch": torch, "BitsAndBytesConfig": transformers.BitsAndBytesConfig, "LoraConfig": peft.LoraConfig}
    quantized, adapters = (eval(call, names) for call in made)
    assert (quantized.load_in_4bit, quantized.bnb_4bit_quant_type) == (True, "nf4")
    assert quantized.bnb_4bit_use_double_quant
    assert quantized.bnb_4bit_quant_storage == quantized.bnb_4bit_compute_dtype == dtype
    assert (adapters.r, adapters.target_modules) == (8, "all-linear")
    assert f"dtype={dtype}" in said


@pytest.mark.parametrize(("hours", "time"), [(61.4, "74:00:00"), (0.2, "1:00:00"), (None, "24:00:00")])
def test_slurm_gives_the_predicted_time_and_a_fifth_more(hours: float | None, time: str) -> None:
    text = launch_files(launch("deepspeed"), "folder", "ds_config.json", slurm=True, hours=hours)["slurm.sh"]
    assert f"#SBATCH --time={time}\n" in text
    assert ("predicted to take" in text) == (hours is not None)
    assert ("MORE THAN A DAY" in text) == (hours == 61.4)
    assert max(map(len, text.splitlines())) <= 120


def test_a_share_of_a_node_is_not_the_whole_of_it() -> None:
    """Two of a node's eight GPUs: 16 of its 64 cores, and memory by what is predicted; eight of eight: all of it."""
    words = {"params": "1B", "gpu": "h100-80gb"}
    found = recommend(**words, gpus=2)
    share = folder_files(found, "folder", slurm=True)["slurm.sh"]
    assert "#SBATCH --gpus-per-node=2\n" in share
    assert "#SBATCH --cpus-per-task=16\n" in share
    assert "--exclusive" not in share
    assert found.recommended is not None
    loading = found.recommended.estimate.loading_host_bytes_per_node
    assert f"#SBATCH --mem={-(-1.25 * loading // 2**30):.0f}G\n" in share
    assert "An assumption: put the cores of your share of a node." in share
    stated = folder_files(recommend(**words, gpus=2, cpu_cores=96), "folder", slurm=True)["slurm.sh"]
    assert "\n#SBATCH --gpus-per-node=2\n#SBATCH --cpus-per-task=96\n" in stated
    whole = folder_files(recommend(**words, gpus=8), "folder", slurm=True)["slurm.sh"]
    assert "#SBATCH --exclusive\n#SBATCH --mem=0\n" in whole
    assert "#SBATCH --cpus-per-task=64\n" in whole
    two = folder_files(recommend(**words, gpus=2, gpus_per_node=2), "folder", slurm=True)["slurm.sh"]
    assert "--exclusive" in two
