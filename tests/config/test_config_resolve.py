"""A ds_config resolves to the settings DeepSpeed would run with."""

from __future__ import annotations

import pytest

from dsconf.config.batch import Batch, problem, solve
from dsconf.config.coerce import as_bool, as_float, as_int
from dsconf.config.resolve import resolve
from dsconf.config.settings import Settings
from dsconf.errors import InputError


@pytest.fixture(scope="module")
def pydantic():
    return pytest.importorskip("pydantic")


VALUES = [
    *("5", " 5 ", "5.0", "5.", "5.5", "5e8", "+5", "-5", "1_000", "1__0", "_1", "0x10", "05", ".5", "", "none"),
    *("True", "t", "Yes", "y", "ON", "1", "0", "f", "off", " true", "2"),
    *(5, 5.0, 5e8, 5.5, True, False, None, 0, 1, 2, 1.0, 0.0, -3, 10**30, [], {}),
]


@pytest.mark.parametrize(("read", "kind"), [(as_int, int), (as_bool, bool), (as_float, float)])
@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_values_are_coerced_as_pydantic_coerces_them(read, kind, value, pydantic):
    try:
        expected = pydantic.TypeAdapter(kind).validate_python(value)
    except pydantic.ValidationError:
        with pytest.raises(InputError, match=r"^key: "):
            read("key", value)
    else:
        found = read("key", value)
        assert found == expected
        assert type(found) is kind


def test_an_empty_config_has_deepspeeds_defaults():
    settings = resolve({})
    assert settings == Settings(optimizer_fused=False)
    assert settings.overlap_comm is False


@pytest.mark.parametrize(("stage", "overlap"), [(0, False), (1, False), (2, False), (3, True)])
def test_overlap_comm_follows_the_stage(stage, overlap):
    assert resolve({"zero_optimization": {"stage": stage}}).overlap_comm is overlap
    assert resolve({"zero_optimization": {"stage": stage, "overlap_comm": None}}).overlap_comm is overlap
    assert resolve({"zero_optimization": {"stage": stage, "overlap_comm": True}}).overlap_comm is True


@pytest.mark.parametrize("prefix", ["", "stage3_"])
def test_keys_work_with_and_without_stage3(prefix):
    zero = {"stage": "3", f"{prefix}prefetch_bucket_size": 5e6, f"{prefix}max_live_parameters": "7"}
    settings = resolve({"zero_optimization": zero})
    assert (settings.stage, settings.prefetch_bucket_size, settings.max_live_parameters) == (3, 5_000_000, 7)
    assert isinstance(settings.prefetch_bucket_size, int)


def test_deprecated_names_are_mapped():
    zero = {"stage": 3, "cpu_offload": True, "cpu_offload_param": "yes"}
    settings = resolve({"zero_optimization": zero})
    assert (settings.offload_optimizer, settings.offload_param) == ("cpu", "cpu")
    assert resolve({"zero_optimization": {"stage": 2, "cpu_offload": False}}).offload_optimizer == "none"


def test_the_old_boolean_form_is_stage_1():
    settings = resolve({"zero_optimization": True, "allgather_size": 100})
    assert (settings.stage, settings.allgather_bucket_size) == (1, 100)
    assert resolve({"zero_optimization": False}).stage == 0


def test_offload_acts_only_where_deepspeed_acts_on_it():
    nvme = {"device": "nvme", "nvme_path": "/disk"}
    below = resolve({"zero_optimization": {"stage": 2, "offload_optimizer": nvme, "offload_param": nvme}})
    assert (below.offload_optimizer, below.offload_param) == ("cpu", "none")
    three = resolve({"zero_optimization": {"stage": 3, "offload_optimizer": nvme, "offload_param": nvme}})
    assert (three.offload_optimizer, three.offload_param, three.nvme_path) == ("nvme", "nvme", "/disk")
    assert resolve({"zero_optimization": {"stage": 3, "offload_param": None}}).offload_param == "none"


@pytest.mark.parametrize(
    ("config", "precision"),
    [
        ({}, "fp32"),
        ({"bf16": {"enabled": True}}, "bf16"),
        ({"bf16": {"enabled": "on"}}, "bf16"),
        ({"bfloat16": {"enabled": True}}, "bf16"),
        ({"bf16": {"enabled": False}, "bfloat16": {"enabled": True}}, "fp32"),
        ({"bf16": None, "bfloat16": {"enabled": True}}, "bf16"),
        ({"fp16": {"enabled": 1}}, "fp16"),
        ({"torch_autocast": {"enabled": True, "dtype": "bfloat16"}}, "autocast"),
        ({"bf16": {"enabled": "auto"}}, "fp32"),
    ],
)
def test_precision(config, precision):
    assert resolve(config).precision == precision


def test_auto_precision_is_on_for_those_who_fill_it():
    both = {"bf16": {"enabled": "auto"}, "fp16": {"enabled": "auto"}}
    assert resolve(both, target="hf").precision == "bf16"
    assert resolve({"fp16": {"enabled": "auto"}}, target="accelerate").precision == "fp16"


def test_hidden_size_fills_auto_buckets_for_hf_only():
    zero = {"stage": 3, "reduce_bucket_size": "auto", "stage3_prefetch_bucket_size": "auto"}
    zero["stage3_param_persistence_threshold"] = "auto"
    filled = resolve({"zero_optimization": zero}, target="hf", hidden_size=4096)
    assert filled.reduce_bucket_size == 16_777_216
    assert filled.prefetch_bucket_size == 15_099_494
    assert filled.param_persistence_threshold == 40_960
    plain = resolve({"zero_optimization": zero}, hidden_size=4096)
    assert plain.reduce_bucket_size == 500_000_000


def test_stage_auto_is_0_for_deepspeed_and_2_for_accelerate():
    config = {"zero_optimization": {"stage": "auto"}}
    assert resolve(config).stage == 0
    assert resolve(config, target="accelerate").stage == 2


@pytest.mark.parametrize(
    ("optimizer", "expected"),
    [
        ({"type": "AdamW"}, ("adamw", True)),
        ({"type": "Adam", "params": {"torch_adam": True}}, ("adam", False)),
        ({"type": "Adam", "params": {"torch_adam": True, "fused": True}}, ("adam", True)),
        ({"type": "SGD", "params": {"momentum": 0.9}}, ("sgd", False)),
        ({"type": "Lion", "params": None}, ("lion", True)),
    ],
)
def test_optimizer(optimizer, expected):
    settings = resolve({"optimizer": optimizer})
    assert (settings.optimizer, settings.optimizer_fused) == expected
    assert settings.momentum == (0.9 if expected[0] == "sgd" else 0)


def test_without_an_optimizer_block_the_script_brings_adamw():
    assert resolve({}, target="hf").optimizer_fused is True
    assert resolve({}).optimizer == "adamw"


# Each row worked out by hand from the rule train = micro × accumulation × ranks, with DeepSpeed's order of filling.
SOLVED = [
    (Batch(64, 4, 2), 8, Batch(64, 4, 2)),
    (Batch(64, 4, None), 8, Batch(64, 4, 2)),
    (Batch(64, None, 2), 8, Batch(64, 4, 2)),
    (Batch(None, 4, 2), 8, Batch(64, 4, 2)),
    (Batch(64, None, None), 8, Batch(64, 8, 1)),
    (Batch(None, 4, None), 8, Batch(32, 4, 1)),
    (Batch(None, None, 2), 8, Batch(None, None, 2)),
    (Batch(4, None, None), 8, Batch(4, None, 1)),
]


@pytest.mark.parametrize(("given", "ranks", "expected"), SOLVED)
def test_batch_sizes_are_filled_as_deepspeed_fills_them(given, ranks, expected):
    assert solve(given, ranks) == expected


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (Batch(64, 4, 2), None),
        (Batch(64, None, None), None),
        (Batch(None, 3, None), None),
        (Batch(60, None, None), "not a multiple of 8 GPUs"),
        (Batch(65, 4, 2), "= 64"),
        (Batch(60, 4, None), "cannot be split"),
        (Batch(None, None, 2), "neither"),
    ],
)
def test_batch_problem(given, words):
    found = problem(given, 8)
    assert found is None if words is None else words in found


def test_sequence_parallel_ranks_share_data():
    config = {"train_batch_size": 16, "sequence_parallel_size": 4}
    settings = resolve(config, world_size=8)
    assert (settings.micro_batch, settings.accumulation) == (8, 1)


def test_auto_batch_sizes_are_unknown():
    config = {"train_batch_size": "auto", "train_micro_batch_size_per_gpu": "auto"}
    settings = resolve(config, 8, "hf")
    assert (settings.train_batch, settings.micro_batch, settings.accumulation) == (None, None, None)


@pytest.mark.parametrize(
    ("config", "path"),
    [
        ({"zero_optimization": None}, "zero_optimization"),
        ({"zero_optimization": {"stage": 4}}, "zero_optimization.stage"),
        ({"zero_optimization": {"stage": 1, "reduce_bucket_size": "5e8"}}, "zero_optimization.reduce_bucket_size"),
        ({"zero_optimization": {"stage": 1, "offload_optimizer": {"device": "gpu"}}}, "device"),
        ({"train_batch_size": 0}, "train_batch_size"),
        ({"train_batch_size": "many"}, "train_batch_size"),
        ({"bf16": True}, "bf16"),
        ({"gradient_clipping": "high"}, "gradient_clipping"),
        ({"data_types": {"grad_accum_dtype": "int3"}}, "data_types.grad_accum_dtype"),
        ({"optimizer": {"type": 3}}, "optimizer.type"),
    ],
)
def test_what_cannot_be_read_names_its_path(config, path):
    with pytest.raises(InputError, match=path) as caught:
        resolve(config)
    assert "\n" not in str(caught.value)


def test_an_unknown_target_is_named():
    with pytest.raises(InputError, match="did you mean 'hf'"):
        resolve({}, target="hff")


def test_settings_with_another_batch_are_what_the_constructor_makes() -> None:
    plain = Settings(stage=3, micro_batch=2)
    assert hash(plain) == hash(Settings(stage=3, micro_batch=2))
    batched = plain.with_batch(4, 8, 64)
    made = Settings(stage=3, micro_batch=4, accumulation=8, train_batch=64)
    assert batched == made
    assert hash(batched) == hash(made) != hash(plain)
    assert vars(batched).keys() - {"_hash"} == vars(made).keys() - {"_hash"}
    assert plain == Settings(stage=3, micro_batch=2)


def test_settings_without_a_batch_are_themselves() -> None:
    plain = Settings(stage=3)
    assert plain.without_batch is plain
    for one in (plain.with_batch(4, 8, 64), Settings(stage=3, train_batch=8), Settings(stage=3, accumulation=2)):
        assert one.without_batch == plain
        assert hash(one.without_batch) == hash(plain) != hash(one)
