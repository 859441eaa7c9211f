"""Volumes and bandwidths of the collectives, worked out by hand."""

from dataclasses import replace

import pytest

from dsconf.cluster.read import read_cluster
from dsconf.config.settings import Settings
from dsconf.job import Job
from dsconf.model.spec import Model, Param, Parameters
from dsconf.speed import communication, nccl, offload, optimizer
from dsconf.speed.run_cost import run_cost
from dsconf.speed.step_time import step_time
from dsconf.workload import Workload

LAYERS, HIDDEN = 10, 1000
BILLION = 10**9
EIGHT = read_cluster(8, "h100")
RING = 0.8 * 450e9
GATHER = 8.4e-6 + 7 * 3.4e-6
"""A ring of 8 on NVLink with NCCL's Simple protocol that carries nothing: 32 µs."""
REDUCE = 0.56 * 450e9
"""An all-reduce of 8 H100 in their switches, which takes 40 µs for nothing."""


def of_a_billion(trainable=True):
    """10 layers of one weight of 10^5 × 10^3: 10^9 parameters."""
    layer = (Param("mlp.up_proj.weight", (100_000, HIDDEN), trainable, kind="linear"),)
    return Model(
        name="by hand",
        family="llama",
        layers=LAYERS,
        hidden=HIDDEN,
        heads=10,
        kv_heads=10,
        head_dim=100,
        mlp=100_000,
        vocab=8,
        positions=2048,
        tied=True,
        parameters=Parameters((), layer, LAYERS, ()),
    )


def job(cluster=EIGHT, model=None, checkpointing=False, **words):
    config = Settings(precision="bf16", **words)
    return Job(model or of_a_billion(), cluster, config, Workload(checkpointing=checkpointing))


def test_a_ring_in_a_node_runs_at_the_link():
    assert nccl.ring_bandwidth(EIGHT) == RING


def test_a_ring_across_nodes_runs_at_a_nodes_adapters():
    sixteen = read_cluster(16, "h100")
    assert nccl.ring_bandwidth(sixteen) == pytest.approx(0.8 * 8 * 50e9)
    one_each = read_cluster(16, "h100", gpus_per_node=1)
    assert nccl.ring_bandwidth(one_each) == pytest.approx(0.8 * 50e9)
    assert nccl.ring_bandwidth(replace(sixteen, node_bandwidth=100e9)) == RING


def test_latencies_of_rings_and_trees_are_nccls():
    """8 ranks: 7 hops; 64 on 8 nodes: 56 hops in nodes and 7 across, or 7 levels up a node's and 3 across, and down."""
    one, eight = nccl.fabric(EIGHT, 8), nccl.fabric(read_cluster(64, "h100"), 64)
    assert one.all_gather == pytest.approx((14e-6 + 7 * 1.9e-6, GATHER))
    assert one.all_reduce == pytest.approx((14e-6 + 14 * 1.9e-6, 8.4e-6 + 14 * 3.4e-6))
    assert one.tree == float("inf")
    assert eight.all_gather == pytest.approx((14e-6 + 56 * 1.9e-6 + 7 * 4e-6, 8.4e-6 + 56 * 3.4e-6 + 7 * 14e-6))
    assert eight.tree == pytest.approx(14e-6 + 2 * (7 * 1.25e-6 + 3 * 8.5e-6))
    assert (one.switch, eight.switch) == (REDUCE, 0)


def test_a_small_all_reduce_over_many_nodes_takes_the_tree_and_a_large_one_the_ring():
    """Carrying nothing, tree before ring; 16 GB in a ring at 0.8 · 8 · 50 GB/s, whose hops no longer count."""
    many = read_cluster(64, "h100")
    assert nccl.all_reduce(many, 0, 1) == pytest.approx(nccl.fabric(many, 64).tree)
    ring = 2 * 63 / 64 * 16e9 / (0.8 * 400e9) + 8.4e-6 + 112 * 3.4e-6 + 14 * 14e-6
    assert nccl.all_reduce(many, 16e9, 1) == pytest.approx(ring)


def test_links_are_told_from_pcie():
    """The GH200's way to its host is as fast as its links."""
    assert [nccl.linked(read_cluster(8, name)) for name in ("gh200", "h100", "h100 pcie", "rtx 4090")] == [1, 1, 0, 0]


def test_switches_only_where_they_are():
    """From 6 ranks on, on Hopper and Blackwell with NVLink, within one node."""
    for gpus, gpu, there in ((8, "h100", 1), (4, "h100", 0), (8, "a100 80gb", 0), (8, "h100 pcie", 0), (16, "h100", 0)):
        assert bool(nccl.fabric(read_cluster(gpus, gpu), gpus).switch) == bool(there)


MEASURED = {2**15: 0.82, 2**18: 6.71, 2**20: 22.82, 2**24: 125.65, 2**28: 249.23, 2**30: 264.9, 2**34: 275.58}
"""Payload of an all-reduce of 8 H200, and GB/s: https://github.com/stas00/ml-engineering/blob/744d01e/network/README.md"""


@pytest.mark.parametrize("payload", MEASURED)
def test_an_all_reduce_of_a_node_is_near_the_measured_one(payload):
    found = nccl.all_reduce(read_cluster(8, "h200"), payload, 1)
    assert found == pytest.approx(payload / MEASURED[payload] / 1e9, rel=0.22)


ACROSS = {2**28: 229.09, 2**30: 361.99, 2**34: 381.8}
"""The same of 32 B200 on 4 nodes, bus bandwidth (2 · 31/32 of the payload a second)."""


@pytest.mark.parametrize("payload", ACROSS)
def test_an_all_reduce_across_nodes_is_near_the_measured_one(payload):
    found = nccl.all_reduce(read_cluster(32, "b200"), payload, 1)
    assert found == pytest.approx(2 * 31 / 32 * payload / ACROSS[payload] / 1e9, rel=0.22)


def test_one_gpu_communicates_nothing():
    for stage in range(4):
        assert communication.collectives(job(read_cluster(1, "h100"), stage=stage)) == (0, 0, 0, 0)


def test_stage_0_all_reduces_at_the_boundary():
    """2 bytes · 10^9 through the switches, in two buckets of 5 · 10^8."""
    expected = 2e9 / REDUCE + 2 * 40e-6
    assert communication.collectives(job(stage=0)) == pytest.approx((0, 0, expected, 0))


def test_stages_1_and_2_all_reduce_and_gather():
    reduced = 2e9 / REDUCE + 2 * 40e-6
    gathered = 1.75e9 / RING + 2 * GATHER
    assert communication.collectives(job(stage=1)) == pytest.approx((0, 0, reduced, gathered))
    assert communication.collectives(job(stage=2)) == pytest.approx((0, reduced, 0, gathered))


def test_gradients_in_fp32_double_what_is_reduced():
    plain = communication.collectives(job(stage=2, reduce_bucket_size=2 * BILLION))
    wide = communication.collectives(job(stage=2, reduce_bucket_size=2 * BILLION, communication_dtype="fp32"))
    assert wide.backward - 40e-6 == pytest.approx(2 * (plain.backward - 40e-6))
    assert wide.step == plain.step


def test_stage_3_gathers_twice_and_reduce_scatters():
    """No reuse: 7/8 · 2 · 10^9 bytes three times. Ten tensors are ten fetches; two buckets of gradients."""
    found = communication.collectives(job(stage=3, max_reuse_distance=0))
    turn = 1.75e9 / RING
    assert found == pytest.approx((turn + 10 * GATHER, 2 * turn + 12 * GATHER, 0, 0))


def test_stage_3_keeps_half_the_reuse_distance_gathered():
    assert communication.gathers(job(stage=3, max_reuse_distance=0)) == (1, 1)
    assert communication.gathers(job(stage=3, max_reuse_distance=BILLION)) == (1, 0.5)
    assert communication.gathers(job(stage=3, max_reuse_distance=2 * BILLION)) == (1, 0)


def test_recomputation_gathers_again_where_a_layer_is_beyond_reuse():
    assert communication.gathers(job(stage=3, checkpointing=True, max_reuse_distance=0)) == (1, 2)
    assert communication.gathers(job(stage=3, checkpointing=True, max_reuse_distance=BILLION)) == (1, 0.5)


def test_frozen_parameters_are_gathered_but_never_reduced():
    frozen = of_a_billion(trainable=False)
    assert communication.collectives(job(stage=2, model=frozen)).backward == pytest.approx(40e-6)
    assert communication.collectives(job(stage=3, model=frozen, max_reuse_distance=0)).forward > 1.75e9 / RING


def test_overlap_hides_what_computing_covers():
    assert communication.exposed(3.0, 2.0, overlap=True) == 1.0
    assert communication.exposed(3.0, 4.0, overlap=True) == 0.0
    assert communication.exposed(3.0, 4.0, overlap=False) == 3.0
    assert not communication.overlaps(Settings(stage=0, overlap_comm=True))
    assert communication.overlaps(Settings(engine="ddp"))


def test_a_collective_takes_processors_from_what_it_hides_behind():
    """24 of 132 in an NVLink node: 2 s hidden behind 10 s of computing make them 10.36 s; 12 s are waited for."""
    taken = communication.processors(EIGHT)
    assert taken == 24 / 132
    assert communication.exposed(2.0, 10.0, overlap=True, taken=taken) == pytest.approx(2 * 24 / 132)
    assert communication.exposed(12.0, 10.0, overlap=True, taken=taken) == pytest.approx(24 / 11)
    assert communication.exposed(30.0, 10.0, overlap=True, taken=taken) == 20.0
    assert communication.processors(read_cluster(16, "h100")) == 16 / 132
    assert communication.processors(read_cluster(2, "rtx 4090")) == 16 / 132


def test_ulysses_exchanges_heads_for_tokens():
    """8 ranks share 8192 tokens: of 1024 each, queries, keys, values and output of 10 · 100 elements, 2 bytes, leave
    7/8 in each of 10 layers, both ways, and a third time where the layer is recomputed."""
    shared = job(stage=3, sequence_parallel=8)
    long = replace(shared, workload=replace(shared.workload, seq_len=8192))
    layer = 7 / 8 * 2 * 1024 * 4 * 1000 / RING + 4 * (8.4e-6 + 3.4e-6)
    assert communication.exchanges(long) == pytest.approx((10 * layer, 10 * layer))
    again = replace(long, workload=replace(long.workload, checkpointing=True))
    assert communication.exchanges(again) == pytest.approx((10 * layer, 20 * layer))
    assert communication.exchanges(job(stage=3)) == (0, 0)


def test_ranks_that_share_a_sequence_see_their_share_of_its_tokens():
    alone = replace(job(stage=3), workload=Workload(seq_len=1024))
    shared = replace(job(stage=3, sequence_parallel=8), workload=Workload(seq_len=8192))
    one, eight = step_time(alone), step_time(shared)
    assert eight.parts["matmul"] == pytest.approx(one.parts["matmul"])
    assert eight.parts["attention"] > 7 * one.parts["attention"] / (1 + 750 / 1024)
    assert eight.tokens_per_second * eight.seconds == pytest.approx(one.tokens_per_second * one.seconds) == 8192


def test_frozen_weights_travel_as_they_are_stored():
    """Of 10^9 weights frozen in 4 bits, 5 · 10^8 bytes; in 16 bits 2 · 10^9."""
    frozen = job(stage=3, model=of_a_billion(trainable=False))
    stored = replace(frozen, workload=replace(frozen.workload, quantize="4bit"))
    assert communication.gathered_bytes(frozen) == (2e9, 2e9)
    assert communication.gathered_bytes(stored) == (5e8, 5e8)
    assert communication.gathered_bytes(replace(stored, model=of_a_billion())) == (2e9, 2e9)


def test_zero_plus_plus_halves_weights_and_quarters_gradients():
    """hpZ keeps 16 bits in the node, so only forward's gather is halved; gradients go in 4 of 16 bits."""
    plain, both = job(stage=3), job(stage=3, quantized_weights=True, quantized_gradients=True)
    assert communication.gathered_bytes(both) == (1e9, 1e9)
    assert communication.reduced_bytes(plain) == 2e9
    assert communication.reduced_bytes(both) == 5e8
    near = job(stage=3, quantized_weights=True, hpz_partition_size=8)
    assert communication.gathered_bytes(near) == (1e9, 2e9)


def test_hpz_gathers_for_backward_within_the_node():
    """Of 16 ranks, forward's ring is at the adapters' 400 GB/s, backward's at NVLink's 450."""
    cluster = read_cluster(16, "h100", gpus_per_node=8)
    far = job(cluster, stage=3, max_reuse_distance=0)
    near = replace(far, settings=replace(far.settings, hpz_partition_size=8))
    reduced = 15 / 16 * 2e9 / (0.8 * 400e9) + 2 * (8.4e-6 + 14 * 3.4e-6 + 14e-6)
    assert communication.collectives(near).forward == communication.collectives(far).forward
    assert communication.collectives(near).backward == pytest.approx(7 / 8 * 2e9 / RING + 10 * GATHER + reduced)


def test_bytes_of_the_optimizer_step():
    """Stage 2, bf16, AdamW: 2 + 16 (norm) + 4 (flatten) + 6 (cast) + 8 (clip) + 28 + 6 (back) = 70."""
    assert optimizer.step_bytes(Settings(stage=2, precision="bf16")) == 70
    assert optimizer.step_bytes(Settings(stage=0, precision="bf16")) == 60
    assert optimizer.step_bytes(Settings(stage=0, precision="fp32")) == 40
    assert optimizer.step_bytes(Settings(stage=2, precision="bf16", optimizer="sgd")) == 54
    expected = 70 * BILLION / 8 / (0.6 * 3.35e12)
    assert optimizer.step_seconds(job(stage=2)) == pytest.approx(expected)
    assert optimizer.step_seconds(job(stage=0)) == pytest.approx(60 * BILLION / (0.6 * 3.35e12))
    assert optimizer.step_seconds(job(stage=2, offload_optimizer="cpu")) == 0


def test_offload_seconds():
    """Of each rank 1.25 · 10^8 elements, 8 of 64 cores: 42 bytes each at 20.8 GB/s; PCIe 5 at 0.88 · 63 GB/s."""
    link, elements = 0.88 * 63e9, 1.25e8
    offloaded = job(stage=2, offload_optimizer="cpu")
    assert offload.gradient_copy(offloaded) == pytest.approx(4 * elements / link)
    assert offload.cpu_step(offloaded) == pytest.approx(42 * elements / (8 * 2.6e9) + 2 * elements / link)
    third = job(stage=3, offload_optimizer="cpu", offload_param="cpu", max_reuse_distance=0)
    assert offload.gradient_copy(third) == pytest.approx(2 * elements / link)
    assert offload.cpu_step(third) == pytest.approx(48 * elements / (8 * 2.6e9))
    assert offload.parameter_copy(third) == pytest.approx((2 * elements / link, 2 * elements / link))


def test_twin_flow_shares_the_step():
    half = job(stage=3, offload_optimizer="cpu", offload_optimizer_ratio=0.5)
    whole = job(stage=3, offload_optimizer="cpu")
    assert offload.cpu_step(half) == pytest.approx(offload.cpu_step(whole) / 2)
    assert optimizer.step_seconds(half) == pytest.approx(optimizer.step_seconds(job(stage=3)) / 2)


def test_nvme_only_at_stage_3():
    """16 bytes an element read at 6 GB/s and written at 3.5 GB/s, all of one node's."""
    expected = 16 * BILLION / 6e9 + 16 * BILLION / 3.5e9
    assert offload.nvme_step(job(stage=3, offload_optimizer="nvme")) == pytest.approx(expected)
    assert offload.nvme_step(job(stage=2, offload_optimizer="nvme")) == 0


def test_a_slow_network_shows_as_communication():
    near = job(read_cluster(16, "h100"), stage=3, overlap_comm=True)
    far = replace(near, cluster=replace(near.cluster, node_bandwidth=1e9))
    assert step_time(far).parts["communication"] > step_time(near).parts["communication"]


def test_cost_of_a_run():
    """3.6 · 10^9 tokens at 10^6 a second are one hour; 8 GPUs at 2.5 are 20."""
    cost = run_cost(3.6e9, 1e6, 8, 2.5)
    assert cost == (1.0, 8.0, 20.0)
    assert cost.sentence() == "1.0 hours, 8 GPU-hours, cost 20"
    assert run_cost(3.6e9, 1e6, 8).price is None
    assert run_cost(1e12, 1e6, 8).sentence() == "11.6 days (278 hours), 2.22k GPU-hours"
    assert run_cost(1.2e8, 1e6, 8).sentence() == "2 minutes, 0.267 GPU-hours"
