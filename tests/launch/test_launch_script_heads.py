"""What the head of each script says that the training script must do."""

from __future__ import annotations

import pytest
from launch_jobs import launch

from dsconf import recommend
from dsconf.launch.folder import launch_files
from dsconf.launch.plan import Launch
from dsconf.search.launch import folder_files


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


def test_a_parser_that_has_the_local_rank_learns_where_it_is() -> None:
    """Neither launch.sh nor slurm.sh gives it as an argument."""
    for name in ("launch.sh", "slurm.sh"):
        assert 'takes int(os.environ["LOCAL_RANK"]) as its default' in head(launch("deepspeed"), name)
    assert "local_rank" not in head(launch("hf"))


@pytest.mark.parametrize("target", ["deepspeed", "hf", "accelerate"])
def test_shared_sequences_and_a_loss_in_shards(target: str) -> None:
    said = head(launch(target, sequence_parallel=2, loss_shards=0))
    assert "2 ranks share each sequence" in said
    assert ("UlyssesSPDataLoaderAdapter" in said) == (target == "deepspeed")
    assert "TiledFusedLogitsLoss" in said
    assert "TiledFusedLogitsLoss" not in head(launch(target))


@pytest.mark.parametrize("target", ["deepspeed", "hf", "accelerate"])
def test_adapters_are_named_and_how_they_are_made(target: str) -> None:
    words = {"model": "meta-llama/Llama-3.1-8B", "gpus": 4, "gpu": "rtx-4090", "lora_rank": 8, "target": target}
    quantized = folder_files(recommend(**words, quantize="4bit"), "folder")["launch.sh"]
    assert "# meta-llama/Llama-3.1-8B: QLoRA 4bit of rank 8, ZeRO stage 1" in quantized
    assert "BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_storage=torch.bfloat16)" in quantized
    assert 'LoraConfig(r=8, target_modules="all-linear")' in quantized
    plain = folder_files(recommend(**words, offload="none", stage=3), "folder")["launch.sh"]
    assert "LoRA of rank 8" in plain
    assert "BitsAndBytes" not in plain


@pytest.mark.parametrize(("hours", "time"), [(61.4, "74:00:00"), (0.2, "1:00:00"), (None, "24:00:00")])
def test_slurm_gives_the_predicted_time_and_a_fifth_more(hours: float | None, time: str) -> None:
    text = launch_files(launch("deepspeed"), "folder", "ds_config.json", slurm=True, hours=hours)["slurm.sh"]
    assert f"#SBATCH --time={time}\n" in text
    assert ("predicted to take" in text) == (hours is not None)


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
    whole = folder_files(recommend(**words, gpus=8), "folder", slurm=True)["slurm.sh"]
    assert "#SBATCH --exclusive\n#SBATCH --mem=0\n" in whole
    assert "#SBATCH --cpus-per-task=64\n" in whole
    two = folder_files(recommend(**words, gpus=2, gpus_per_node=2), "folder", slurm=True)["slurm.sh"]
    assert "--exclusive" in two
