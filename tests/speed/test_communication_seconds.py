"""Volumes and bandwidths of the collectives, worked out by hand."""

from dataclasses import replace

import pytest

from dsconf.cluster.read import read_cluster
from dsconf.config.settings import Settings
from dsconf.job import Job
from dsconf.model.spec import Model, Param, Parameters
from dsconf.speed import communication, offload, optimizer
from dsconf.speed.cost import run_cost
from dsconf.speed.step_time import step_time
from dsconf.workload import Workload

LAYERS, HIDDEN = 10, 1000
BILLION = 10**9
EIGHT = read_cluster(8, "h100")
RING = 0.8 * 450e9
SMALL = 25e-6


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
    assert communication.ring_bandwidth(EIGHT) == RING


def test_a_ring_across_nodes_runs_at_a_nodes_adapters():
    sixteen = read_cluster(16, "h100")
    assert communication.ring_bandwidth(sixteen) == pytest.approx(0.8 * 8 * 50e9)
    one_each = read_cluster(16, "h100", gpus_per_node=1)
    assert communication.ring_bandwidth(one_each) == pytest.approx(0.8 * 50e9)
    assert communication.ring_bandwidth(replace(sixteen, node_bandwidth=100e9)) == RING


def test_latency_grows_with_the_nodes():
    assert communication.latency(EIGHT, 8) == SMALL
    assert communication.latency(read_cluster(64, "h100"), 64) == pytest.approx(SMALL + 3 * 10e-6)


def test_one_gpu_communicates_nothing():
    for stage in range(4):
        assert communication.collectives(job(read_cluster(1, "h100"), stage=stage)) == (0, 0, 0, 0)


def test_stage_0_all_reduces_at_the_boundary():
    """2 · 7/8 · 2 bytes · 10^9, in two buckets of 5 · 10^8; an all-reduce is two turns of the ring."""
    expected = 3.5e9 / RING + 2 * 2 * SMALL
    assert communication.collectives(job(stage=0)) == pytest.approx((0, 0, expected, 0))


def test_stages_1_and_2_all_reduce_and_gather():
    reduced = 3.5e9 / RING + 2 * 2 * SMALL
    gathered = 1.75e9 / RING + 2 * SMALL
    assert communication.collectives(job(stage=1)) == pytest.approx((0, 0, reduced, gathered))
    assert communication.collectives(job(stage=2)) == pytest.approx((0, reduced, 0, gathered))


def test_gradients_in_fp32_double_what_is_reduced():
    plain = communication.collectives(job(stage=2, reduce_bucket_size=2 * BILLION))
    wide = communication.collectives(job(stage=2, reduce_bucket_size=2 * BILLION, communication_dtype="fp32"))
    assert wide.backward - 2 * SMALL == pytest.approx(2 * (plain.backward - 2 * SMALL))
    assert wide.step == plain.step


def test_stage_3_gathers_twice_and_reduce_scatters():
    """No reuse: 7/8 · 2 · 10^9 bytes three times. Ten tensors are ten fetches; two buckets of gradients."""
    found = communication.collectives(job(stage=3, max_reuse_distance=0))
    turn = 1.75e9 / RING
    assert found == pytest.approx((turn + 10 * SMALL, 2 * turn + 12 * SMALL, 0, 0))


def test_stage_3_keeps_half_the_reuse_distance_gathered():
    assert communication.gathers(job(stage=3, max_reuse_distance=0)) == (1, 1)
    assert communication.gathers(job(stage=3, max_reuse_distance=BILLION)) == (1, 0.5)
    assert communication.gathers(job(stage=3, max_reuse_distance=2 * BILLION)) == (1, 0)


def test_recomputation_gathers_again_where_a_layer_is_beyond_reuse():
    assert communication.gathers(job(stage=3, checkpointing=True, max_reuse_distance=0)) == (1, 2)
    assert communication.gathers(job(stage=3, checkpointing=True, max_reuse_distance=BILLION)) == (1, 0.5)


def test_frozen_parameters_are_gathered_but_never_reduced():
    frozen = of_a_billion(trainable=False)
    assert communication.collectives(job(stage=2, model=frozen)).backward == pytest.approx(2 * SMALL)
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
    reduced = 15 / 16 * 2e9 / (0.8 * 400e9) + 2 * (SMALL + 10e-6)
    assert communication.collectives(near).forward == communication.collectives(far).forward
    assert communication.collectives(near).backward == pytest.approx(7 / 8 * 2e9 / RING + 10 * SMALL + reduced)


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
    assert run_cost(1e12, 1e6, 8).sentence() == "11.6 days, 2.22k GPU-hours"
