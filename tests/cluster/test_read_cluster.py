"""What a person says about the cluster becomes a Cluster, or one clear line."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsconf.cluster.catalogue import find_gpu
from dsconf.cluster.read import assumption, read_cluster
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
        ({"gpus": 0}, "--gpus: 0 is not a positive number"),
        ({"gpus": -1}, "--gpus: -1 is not a positive number"),
        ({"gpus": "eight"}, "--gpus: 'eight' is not a whole number"),
        ({"gpus": 2.5}, "--gpus: 2.5 is not a whole number"),
        ({"gpus": float("inf")}, "--gpus: inf is not a whole number"),
        ({"gpus": None}, "--gpus: None is not a whole number"),
        ({"gpus": 8, "gpus_per_node": 0}, "--gpus-per-node: 0 is not a positive number"),
        ({"gpus": 8, "gpu_memory": "-80GiB"}, "--gpu-memory: -80GiB is not a positive number"),
        ({"gpus": 8, "gpu_memory": 0}, "--gpu-memory: 0 is not a positive number"),
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
