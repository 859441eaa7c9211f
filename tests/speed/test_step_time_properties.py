"""What must hold for every job: parts add up, more work is never faster, faster hardware never slower."""

from dataclasses import replace
from functools import lru_cache
from timeit import repeat

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dsconf.cluster.catalogue import all_gpus, find_gpu
from dsconf.cluster.read import read_cluster
from dsconf.config.settings import Settings
from dsconf.job import Job
from dsconf.model.attention import masked_share
from dsconf.model.read import read_model
from dsconf.speed import card_efficiency, compute, kernels, nccl
from dsconf.speed.attention_scores import scores_of
from dsconf.speed.step_time import _longest, step_time
from dsconf.workload import Workload


@lru_cache
def llama(layers, hidden, lora_rank=None):
    config = {
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": 4 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden // 64,
        "num_key_value_heads": hidden // 128,
        "vocab_size": 32000,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": False,
    }
    return read_model(model=config, lora_rank=lora_rank)


@st.composite
def jobs(draw):
    stage = draw(st.integers(0, 3))
    optimizer_device = draw(st.sampled_from(["none", "cpu", "nvme"])) if stage else "none"
    param_device = draw(st.sampled_from(["none", "cpu", "nvme"])) if stage == 3 else "none"
    gpus = draw(st.sampled_from([1, 2, 8, 12, 64]))
    config = Settings(
        stage=stage,
        precision=draw(st.sampled_from(["bf16", "fp16", "fp32", "autocast"])),
        optimizer=draw(st.sampled_from(["adamw", "sgd", "lion"])),
        overlap_comm=draw(st.booleans()),
        offload_optimizer=optimizer_device,
        offload_param=param_device,
        max_reuse_distance=draw(st.sampled_from([0, 10**8, 10**9])),
        reduce_bucket_size=draw(st.sampled_from([10**6, 5 * 10**8])),
    )
    work = Workload(
        seq_len=draw(st.sampled_from([128, 1000, 4096])),
        micro_batch=draw(st.integers(1, 32)),
        accumulation=draw(st.integers(1, 4)),
        checkpointing=draw(st.booleans()),
        attention=draw(st.sampled_from(["sdpa", "eager", "flash"])),
    )
    model = llama(
        draw(st.sampled_from([2, 12, 40])), draw(st.sampled_from([256, 2048])), draw(st.sampled_from([None, 8]))
    )
    return Job(model, read_cluster(gpus, draw(st.sampled_from([gpu.name for gpu in all_gpus()]))), config, work)


def seconds(job):
    return step_time(job).seconds


def not_faster(slower, faster):
    more, less = seconds(slower), seconds(faster)
    assert more >= less * (1 - 1e-9)


@given(jobs())
def test_parts_add_up_and_none_is_negative(job):
    step = step_time(job)
    assert min(step.parts.values()) >= 0
    assert step.seconds == pytest.approx(sum(step.parts.values()))
    tokens = job.workload.seq_len * job.workload.micro_batch * job.workload.accumulation * job.cluster.world_size
    assert step.tokens_per_second == pytest.approx(tokens / step.seconds)


@given(jobs(), st.integers(1, 8), st.integers(1, 4))
def test_settings_may_say_the_batch_or_leave_it_to_the_workload(job, micro_batch, accumulation):
    work = replace(job.workload, micro_batch=micro_batch, accumulation=accumulation)
    said = job.settings.with_batch(micro_batch, accumulation, None)
    assert step_time(replace(job, settings=said)) == step_time(replace(job, workload=work))


@given(jobs(), st.integers(1, 4096))
def test_a_longer_sequence_is_never_faster(job, more):
    work = replace(job.workload, seq_len=job.workload.seq_len + more)
    not_faster(replace(job, workload=work), job)


@given(jobs(), st.integers(1, 16))
def test_a_larger_micro_batch_is_never_faster(job, more):
    work = replace(job.workload, micro_batch=job.workload.micro_batch + more)
    not_faster(replace(job, workload=work), job)


@given(jobs())
def test_more_accumulation_is_never_faster(job):
    work = replace(job.workload, accumulation=job.workload.accumulation + 1)
    not_faster(replace(job, workload=work), job)


@given(jobs(), st.integers(1, 30))
def test_more_layers_are_never_faster(job, more):
    model, rank = job.model, job.model.lora_rank or None
    not_faster(replace(job, model=llama(model.layers + more, model.hidden, rank)), job)


@given(jobs())
def test_checkpointing_is_never_faster(job):
    kept, recomputed = (replace(job, workload=replace(job.workload, checkpointing=on)) for on in (False, True))
    not_faster(recomputed, kept)


@given(
    jobs(),
    st.sampled_from(["memory_bandwidth", "link_bandwidth", "host_bandwidth", "bf16_flops"]),
    st.floats(1, 10),
)
def test_a_faster_gpu_is_never_slower(job, figure, factor):
    """PCIe and NVLink cards differ in what a collective takes of them, so a link stays of its kind."""
    if figure == "link_bandwidth" and not nccl.linked(job.cluster):
        job = replace(job, cluster=replace(job.cluster, gpu=find_gpu("h100")))
    better = replace(job.cluster.gpu, **{figure: factor * getattr(job.cluster.gpu, figure)})
    not_faster(job, replace(job, cluster=replace(job.cluster, gpu=better)))


RATES = [("node_bandwidth", "network_rate"), ("host_memory_bandwidth", "host_rate"), ("cpu_cores", "cores")]


@given(jobs(), st.sampled_from(RATES), st.integers(1, 10))
def test_a_faster_cluster_is_never_slower(job, figure, factor):
    field, rate = figure
    better = replace(job.cluster, **{field: factor * getattr(job.cluster, rate)})
    not_faster(job, replace(job, cluster=better))


@given(jobs())
def test_overlap_is_never_slower(job):
    apart, beside = (replace(job, settings=replace(job.settings, overlap_comm=on)) for on in (False, True))
    not_faster(apart, beside)


@given(jobs())
def test_offload_is_never_faster_on_a_gpu_that_computes_faster_than_its_host(job):
    cluster = replace(job.cluster, gpu=find_gpu("h100"))
    at_home = replace(job.settings, stage=max(1, job.settings.stage), offload_optimizer="none", offload_param="none")
    offloaded = replace(at_home, offload_optimizer="cpu")
    not_faster(*(replace(job, cluster=cluster, settings=config) for config in (offloaded, at_home)))


@given(jobs())
@settings(max_examples=20)
def test_training_adapters_is_never_slower_than_training_all_of_a_wide_model(job):
    """At a width of 2048 it may be: scaling and adding the adapters' outputs costs what no weight's gradient saves."""
    shape = job.model.layers, 8192
    work = replace(job.workload, micro_batch=32, seq_len=4096)
    cluster = replace(job.cluster, gpu=find_gpu("h100"))
    full, adapters = (replace(job, model=llama(*shape, rank), workload=work, cluster=cluster) for rank in (None, 8))
    not_faster(full, adapters)


def test_experts_cost_what_their_tokens_see():
    """8 experts of which a token sees 2 cost a little more than a dense layer of twice the width, not 8 times."""
    sizes = {
        "hidden_size": 2048,
        "intermediate_size": 4096,
        "num_hidden_layers": 8,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 32000,
        "tie_word_embeddings": False,
    }
    mixture = read_model(model={"model_type": "mixtral", **sizes, "num_local_experts": 8, "num_experts_per_tok": 2})
    dense = read_model(model={"model_type": "llama", **sizes, "intermediate_size": 8192})
    work = Workload(seq_len=2048, micro_batch=16)
    both = [
        step_time(Job(model, read_cluster(1, "h100"), Settings(stage=1, precision="bf16"), work)).parts["matmul"]
        for model in (mixture, dense)
    ]
    assert both[1] < both[0] < 1.3 * both[1]


def test_model_flops_utilisation_of_a_well_fed_gpu_is_in_the_published_range():
    """8B llama, 8 H100, stage 3 with checkpointing: 35 to 50 % of the peak by 6 FLOPs a parameter and token."""
    model = read_model(model="meta-llama/Llama-3.1-8B")
    config = Settings(stage=3, precision="bf16", overlap_comm=True)
    step = step_time(
        Job(model, read_cluster(8, "h100"), config, Workload(seq_len=4096, micro_batch=4, checkpointing=True))
    )
    utilisation = 6 * model.num_params * step.tokens_per_second / 8 / 989.4e12
    assert 0.30 < utilisation < 0.50


def test_a_call_for_a_new_shape_is_quick_once_the_model_is_known():
    """Recommend asks for thousands of shapes: about 20 µs each; the bound is for a busy machine."""
    model, cluster = read_model(params="70B"), read_cluster(64, "h100")
    job = Job(model, cluster, Settings(stage=3, precision="bf16", overlap_comm=True), Workload(checkpointing=True))
    shapes = [replace(job, workload=replace(job.workload, seq_len=length)) for length in range(100, 1100)]
    step_time(job)
    assert min(repeat(lambda: [step_time(shape) for shape in shapes], number=1, repeat=5)) / 1000 < 200e-6


@given(jobs())
def test_fused_kernels_are_never_slower_and_compiled_ones_never_slower_than_fused(job):
    eager, fused, compiled = (step_time(job, kernels).seconds for kernels in ("eager", "fused", "compiled"))
    assert eager >= fused * (1 - 1e-9) >= compiled * (1 - 2e-9)


@given(jobs())
def test_newer_attention_kernels_are_never_slower(job):
    model, precision = job.model, job.settings.precision
    assume(scores_of(model, "sdpa", precision) is None and masked_share(model, "sdpa", job.workload.seq_len) == 0)
    first, second, own = (
        seconds(replace(job, workload=replace(job.workload, attention=kernel)))
        for kernel in ("flash1", "flash", "sdpa")
    )
    assert first >= second * (1 - 1e-9) >= own * (1 - 2e-9)


@given(st.integers(1, 10**5), st.sampled_from([64, 100, 1000, 4096]), st.sampled_from([64, 999, 11008]))
def test_a_block_adds_up_the_products_of_the_kernel_model(tokens, inner, columns):
    """The straight lines that a block keeps are ``kernels.matmul`` at every number of rows."""
    gpu = find_gpu("h100")
    projection = compute.Projection(inner, columns, True, 0)
    (lines,) = compute._products(gpu, "bf16", (projection,))
    forward = kernels.matmul(gpu, "bf16", tokens, inner, columns, projection.aligned)
    inputs = kernels.matmul(gpu, "bf16", tokens, columns, inner, projection.aligned)
    weight = kernels.matmul(gpu, "bf16", columns, tokens, inner, projection.aligned)
    assert lines.seconds(tokens) == pytest.approx((forward, inputs + weight))


def test_what_sets_cards_apart():
    """An A100 gets nearer its peak than an H100; FlashAttention-2 uses half of what a Hopper does in a cycle."""
    h100, a100 = find_gpu("h100"), find_gpu("a100 80gb")
    assert card_efficiency.sustained(h100.name) == 1
    assert card_efficiency.sustained(a100.name) == pytest.approx(0.848 / 0.799)
    assert card_efficiency.sustained("somebody's card") == 1
    assert kernels.matmul_rate(a100, "bf16").flops == pytest.approx(0.79 * 0.848 / 0.799 * 312e12)
    assert kernels.attention_fractions(h100, "sdpa", 128) == (0.64, 0.55)
    assert kernels.attention_fractions(h100, "flash", 128) == (0.32, 0.275)
    assert kernels.attention_fractions(a100, "flash", 128) == kernels.attention_fractions(a100, "sdpa", 128)
    assert kernels.attention_fractions(a100, "flash1", 128) == (0.4, 0.3)
    assert kernels.attention_fractions(h100, "flash1", 128) == pytest.approx(
        (0.2 * 0.799 / 0.848, 0.15 * 0.799 / 0.848)
    )
    assert card_efficiency.instruction_width("GB200 186GB") == 4
    assert card_efficiency.instruction_width("GH200 96GB") == 2


def test_a_pass_is_the_longest_way_from_its_first_launch_to_its_last_kernel():
    """Launches of 10 and 1 before kernels of 3 and 8: the second stretch's kernels wait for the first's launches."""
    assert _longest((3, 10), (8, 1)) == 10 + 8
    assert _longest((8, 1), (3, 10)) == 8 + 3  # launched by 11, while the first kernels run
    assert _longest((8, 1), (3, 20)) == 1 + 20
    assert _longest((5, 1), (5, 1)) == 5 + 5


def test_the_update_waits_for_pythons_way_through_the_tensors():
    """147 tensors of a llama of 16 layers at stage 0: 152 µs each, less the kernels of copies, flattening and norm."""
    model = llama(16, 512, None)
    job = Job(
        model, read_cluster(1, "h200"), Settings(stage=0, precision="bf16"), Workload(seq_len=8192, micro_batch=64)
    )
    step, tensors = step_time(job), 16 * 9 + 3
    norm = 18 * model.num_params / (0.6 * 4.8e12)
    assert step.parts["launch"] == pytest.approx(tensors * 152e-6 - norm, rel=0.01)
