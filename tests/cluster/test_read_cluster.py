"""What a person says about the cluster becomes a Cluster, or one clear line."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsconf.cluster.catalogue import find_gpu
from dsconf.cluster.figures import figures_text
from dsconf.cluster.read import assumption, read_cluster
from dsconf.cluster.spec import MOST_HOST_BYTES
from dsconf.errors import InputError
from dsconf.units import GIB, TIB


def test_a_named_gpu_is_taken_from_the_catalogue():
    cluster = read_cluster(16, "a100-80gb", host_memory="1TiB", nvme="/scratch")
    assert cluster.gpu == find_gpu("a100-80gb")
    assert (cluster.world_size, cluster.gpus_per_node, cluster.nodes) == (16, 8, 2)
    assert cluster.host_memory_bytes == TIB
    assert cluster.nvme_path == "/scratch"
    assert assumption(cluster) is None


def test_no_gpu_is_an_assumption_that_shows():
    cluster = read_cluster(8)
    assert cluster.gpu.memory_bytes == find_gpu("h100").memory_bytes
    assert "assumed" in cluster.gpu.name
    assert cluster.gpu.name in assumption(cluster)


def test_memory_alone_takes_the_speed_of_the_nearest_card_and_says_so():
    cluster = read_cluster(8, gpu_memory="80GiB")
    assert cluster.gpu.memory_bytes == 80 * GIB
    assert cluster.gpu.bf16_flops == find_gpu("h100").bf16_flops
    assert cluster.gpu.name == "80.00 GiB GPU (speed assumed: H100 SXM 80GB)"
    assert "H100" in assumption(cluster)
    assert "H100" in cluster.gpu.source


def test_memory_overrides_that_of_the_named_card():
    cluster = read_cluster(8, "l40s", 30 * GIB)
    assert cluster.gpu.memory_bytes == 30 * GIB
    assert cluster.gpu.memory_bandwidth == find_gpu("l40s").memory_bandwidth
    assert assumption(cluster) is None


@given(st.integers(1, 5000), st.integers(1, 72))
def test_nodes_hold_every_gpu(gpus, per_node):
    cluster = read_cluster(gpus, "h100", gpus_per_node=per_node)
    assert cluster.gpus_per_node == min(gpus, per_node)
    assert (cluster.nodes - 1) * cluster.gpus_per_node < gpus <= cluster.nodes * cluster.gpus_per_node


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"gpus": 0}, "--gpus: 0 is not a positive whole number"),
        ({"gpus": -1}, "--gpus: -1 is not a positive whole number"),
        ({"gpus": "eight"}, "--gpus: 'eight' is not a positive whole number"),
        ({"gpus": 2.5}, "--gpus: 2.5 is not a positive whole number"),
        ({"gpus": float("inf")}, "--gpus: inf is not a positive whole number"),
        ({"gpus": None}, "--gpus: None is not a positive whole number"),
        ({"gpus": 8, "gpus_per_node": 0}, "--gpus-per-node: 0 is not a positive whole number"),
        ({"gpus": 8, "gpu_memory": "-80GiB"}, "--gpu-memory: -80GiB is not a positive number"),
        ({"gpus": 8, "gpu_memory": 0}, "--gpu-memory: 0 is not a positive whole number"),
        ({"gpus": 8, "host_memory": "much"}, "--host-memory: 'much' is not a size"),
        ({"gpus": 8, "gpu": "h10"}, "--gpu: 'h10' is more than one card"),
        ({"gpus": 8, "gpu": ""}, "--gpu: '' is not in the catalogue"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(words, message):
    with pytest.raises(InputError) as caught:
        read_cluster(**words)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_more_gpus_than_anybody_has_are_refused_at_once() -> None:
    assert read_cluster(2**17, "h100").world_size == 131_072
    with pytest.raises(InputError, match=r"^--gpus: 99999999999 is more than 131072, the most that dsconf plans for$"):
        read_cluster(99_999_999_999, "h100")


def test_network_and_hosts_are_assumed_unless_stated() -> None:
    """400 Gbit/s are 50 GB/s, 100 Gbit/s 12.5."""
    assumed = read_cluster(16, "h100")
    assert (assumed.network_rate, assumed.cores, assumed.host_rate) == (50e9, 64, 300e9)
    assert (assumed.node_bandwidth, assumed.cpu_cores, assumed.host_memory_bandwidth) == (None, None, None)
    stated = read_cluster(16, "h100", network="100Gbps", cpu_cores="96", host_bandwidth="500GB/s")
    assert (stated.network_rate, stated.cores, stated.host_rate) == (12.5e9, 96, 500e9)
    assert figures_text(stated, networked=False, offloads=False) == (
        ", network 100 Gbit/s a GPU, 96 CPU cores a node, 500 GB/s of host memory bandwidth a node"
    )


def test_of_a_node_that_the_job_does_not_fill_it_has_its_share_of_the_cores() -> None:
    """One GPU of eight has 8 of 64 cores, a GPU alone in its node all of them; what is stated is for the job."""
    assert [read_cluster(gpus, "h100").cores for gpus in (1, 2, 8, 16)] == [8, 16, 64, 64]
    assert read_cluster(1, "h100", gpus_per_node=1).cores == 64
    assert read_cluster(1, "h100", cpu_cores=16).cores == 16
    assert replace(read_cluster(8, "h100"), world_size=1, gpus_per_node=1).cores == 8


def test_what_is_assumed_is_said_where_it_matters() -> None:
    cluster = read_cluster(16, "h100", cpu_cores=96)
    network = "network 400 Gbit/s a GPU (assumed, --network)"
    hosts = "300 GB/s of host memory bandwidth a node (assumed, --host-bandwidth)"
    assert figures_text(cluster, networked=False, offloads=False) == ", 96 CPU cores a node"
    assert figures_text(cluster, networked=True, offloads=True) == f", {network}, 96 CPU cores a node, {hosts}"
    assert assumption(cluster) is None
    assert assumption(cluster, networked=True) == network
    assert assumption(cluster, networked=True, offloads=True) == f"{network}; {hosts}"
    unnamed = assumption(read_cluster(16), networked=True)
    assert unnamed == f"GPU: H100 SXM 80GB (assumed, name yours with --gpu); {network}"


def test_a_host_nobody_described_has_what_hosts_are_sold_with_at_most() -> None:
    assert read_cluster(8, "h100").host_limit_bytes == MOST_HOST_BYTES == 4 * TIB
    assert read_cluster(8, "h100", host_memory="6TiB").host_limit_bytes == 6 * TIB


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"gpu_memory": 24}, "--gpu-memory: 24 is 24 bytes; did you mean 24GiB?"),
        ({"gpu_memory": "24"}, "--gpu-memory: 24 is 24 bytes; did you mean 24GiB?"),
        ({"gpu_memory": 81_559}, "--gpu-memory: 81559 is 81559 bytes; did you mean 81559MiB?"),
        ({"host_memory": "1.5e3"}, "--host-memory: 1.5e3 is 1500 bytes; did you mean 1.5e3GiB?"),
        ({"host_memory": 2**20 - 1}, "--host-memory: 1048575 is 1048575 bytes; did you mean 1048575MiB?"),
        ({"nvme": ""}, "--nvme: '' is not a path; give a folder"),
        ({"nvme": " "}, "--nvme: ' ' is not a path; give a folder"),
        ({"network": "400"}, "--network: '400' has no unit; write it like 400Gbit/s (bits) or 50GB/s (bytes)"),
        ({"network": 50e9}, "--network: 50000000000.0 has no unit; write it like 400Gbit/s"),
        ({"host_bandwidth": "fast"}, "--host-bandwidth: 'fast' is not a rate; write it like"),
        ({"cpu_cores": 0}, "--cpu-cores: 0 is not a positive whole number"),
    ],
)
def test_units_and_paths_that_are_missing_are_asked_for(words, message):
    with pytest.raises(InputError) as caught:
        read_cluster(8, **words)
    assert str(caught.value).startswith(message)


def test_a_size_with_a_unit_and_one_of_a_mebibyte_are_believed() -> None:
    assert read_cluster(8, gpu_memory=2**20).gpu.memory_bytes == 2**20
    assert read_cluster(8, host_memory="512KiB").host_memory_bytes == 2**19
