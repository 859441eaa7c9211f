"""A config with comments reads as the same config, and every value has one that is true."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import hjson
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from random_settings import some_settings
from search_fakes import fake_cluster, fake_model

from dsconf.config.commented import commented, comments
from dsconf.config.render import render
from dsconf.config.settings import Settings
from dsconf.config.validate import validate
from dsconf.workload import Workload


def text(settings: Settings, reasons: tuple[str, ...] = ()) -> str:
    workload = Workload(micro_batch=settings.micro_batch or 1, accumulation=settings.accumulation or 1)
    config = json.loads(render(settings))
    return commented(config, settings, fake_model(), fake_cluster(8), workload, reasons)


def paths(block: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in block.items():
        if isinstance(value, Mapping):
            yield from paths(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


@given(some_settings())
@hypothesis_settings(max_examples=25)
def test_it_reads_as_the_strict_json(settings: Settings) -> None:
    assert hjson.loads(text(settings)) == hjson.loads(render(settings))


@given(some_settings())
@hypothesis_settings(max_examples=25)
def test_every_value_or_its_block_has_a_comment(settings: Settings) -> None:
    known = comments(settings, fake_model(), fake_cluster(8), Workload())
    for path in paths(json.loads(render(settings))):
        words = path.split(".")
        above = [".".join(words[:end]) for end in range(len(words), 0, -1)]
        assert any(known.get(one) for one in above if one != "zero_optimization"), path


def test_no_comment_is_for_a_key_that_no_config_has(schema_keys: set[str]) -> None:
    known = comments(Settings(micro_batch=1), fake_model(), fake_cluster(8), Workload())
    assert {path.rpartition(".")[2] for path in known} <= schema_keys


@pytest.fixture
def schema_keys() -> set[str]:
    """Every key that DeepSpeed's config has, at any depth."""
    schema = json.loads((Path(__file__).parents[2] / "schemas" / "ds_config-0.19.8.schema.json").read_text())

    def walk(node: Any) -> Iterator[str]:
        if isinstance(node, dict):
            yield from node.get("properties", {})
            for value in node.values():
                yield from walk(value)

    return set(walk(schema))


def test_deepspeed_reads_the_file(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DS_ACCELERATOR", "cpu")
        module = pytest.importorskip("deepspeed.runtime.config")
    settings = Settings(stage=3, precision="bf16", micro_batch=2, accumulation=3, offload_optimizer="cpu")
    for name, written in {"ds_config.hjson": text(settings, ("why",)), "ds_config.json": render(settings)}.items():
        (tmp_path / name).write_text(written)
    read = [module.DeepSpeedConfig(str(tmp_path / name)) for name in ("ds_config.hjson", "ds_config.json")]
    assert read[0]._param_dict == read[1]._param_dict
    assert read[0].zero_config == read[1].zero_config


def test_validate_accepts_the_file(tmp_path: Path) -> None:
    path = tmp_path / "ds_config.hjson"
    path.write_text(text(Settings(stage=2, precision="bf16", micro_batch=2, accumulation=3)))
    (found,) = validate(path, gpus=8).files
    assert found.valid
    assert [finding.code for finding in found.findings if finding.severity != "note"] == []


def test_the_figures_by_hand() -> None:
    """The model: 32 layers of 12 × 4096², 4096 of a norm and 32000 × 4096 of the embedding."""
    model, cluster = fake_model(), fake_cluster(8)
    assert model.num_params == 32 * 12 * 4096**2 + 4096 + 32000 * 4096 == 6_573_527_040

    def why(path: str, **fields: Any) -> str:
        settings = Settings(precision="bf16", **fields)
        workload = Workload(micro_batch=2, accumulation=3, seq_len=1000)
        return comments(settings, model, cluster, workload)[path]

    assert why("train_batch_size").endswith("3 micro-batches × 8 ranks: 48,000 tokens to an optimizer step.")
    assert "× 2 groups of ranks: 12,000 tokens" in why("train_batch_size", sequence_parallel=4)
    bucket = "zero_optimization.reduce_bucket_size"
    assert "2 × 200,000,000 × 2 bytes = 762.9 MiB." in why(
        bucket, stage=2, reduce_bucket_size=200_000_000, overlap_comm=True
    )
    assert ": 16,777,216 × 2 bytes = 32.0 MiB." in why(bucket, stage=3, reduce_bucket_size=4096**2, overlap_comm=True)
    assert "× 4 bytes = 64.0 MiB." in why(bucket, stage=3, reduce_bucket_size=4096**2, sequence_parallel=2)
    share = model.num_params // 8
    group = why("zero_optimization.sub_group_size", stage=3, sub_group_size=100_000_000)
    assert "6 bytes of each as a copy, 572.2 MiB; at DeepSpeed's default" in group
    assert group.endswith(f"would be {6 * share / 2**30:.2f} GiB.")
    assert "6 bytes" not in why("zero_optimization.sub_group_size", stage=3, bf16_master=True)
    copy = why("zero_optimization.zero_hpz_partition_size", stage=3, hpz_partition_size=4)
    assert f"{model.num_params * 2 // 4 / 2**30:.2f} GiB a rank" in copy
    whole = why("zero_optimization.stage3_max_live_parameters", stage=3, max_live_parameters=10**12)
    assert f"the whole model, {model.num_params * 2 / 2**30:.2f} GiB." in whole
    assert f"Weights ({model.num_params * 2 / 2**30:.2f} GiB), gradients and" in why("zero_optimization.stage", stage=3)
    assert "1/8 of them on each GPU" in why("zero_optimization.stage", stage=3)
    part = {"stage": 3, "offload_optimizer": "cpu", "offload_optimizer_ratio": 0.8}
    assert "the GPU holds 20 % of them" in why("zero_optimization.offload_optimizer", **part)
    assert "but for the part that stays on the GPU" in why("optimizer", **part)
    all_of_it = part | {"offload_optimizer_ratio": 1.0}
    assert "the GPU holds none" in why("zero_optimization.offload_optimizer", **all_of_it)


def test_a_value_says_why_it_is_what_it_is() -> None:
    model, cluster = fake_model(), fake_cluster(8)

    def why(path: str, quantize: str | None = None, **fields: Any) -> str:
        settings = Settings(precision="bf16", stage=3, **fields)
        return comments(settings, model, cluster, Workload(quantize=quantize))[f"zero_optimization.{path}"]

    small = why("reduce_bucket_size", reduce_bucket_size=12_500_000, overlap_comm=True)
    assert "so small, because the card has a use for the 953.7 MiB" in small
    assert "enough to fill the links" in why("reduce_bucket_size", reduce_bucket_size=4096**2)
    assert "goes in one message" in why("reduce_bucket_size", reduce_bucket_size=model.num_params)
    live, reuse = "stage3_max_live_parameters", "stage3_max_reuse_distance"
    assert "because the card has a use for the memory" in why(live, max_live_parameters=100_000_000)
    assert "DeepSpeed's default; gathering further ahead" in why(live)
    assert "because the card has a use for the memory" in why(reuse, max_reuse_distance=100_000_000)
    assert "DeepSpeed's default; more would save more gathers" in why(reuse)
    assert "every one" in why(reuse, max_reuse_distance=2 * model.num_params)
    packed = why(live, quantize="4bit")
    assert "1.86 GiB as they are stored, 4 weights of 4 bits to an element." in packed
    assert f"{model.num_params * 2 / 2**30:.2f}" not in packed + why("stage", quantize="4bit")
    assert "next to no memory" in why("sub_group_size", offload_optimizer="cpu")


def test_the_reasons_stand_at_the_head_and_no_line_is_long() -> None:
    written = text(Settings(stage=3, precision="bf16", micro_batch=2), ("It is the fastest. " * 20, "second"))
    lines = written.splitlines()
    assert lines[0].startswith("# It is the fastest. It is")
    assert lines[lines.index("{") - 1] == "# second"
    assert max(map(len, lines)) <= 112
