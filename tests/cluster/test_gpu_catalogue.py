"""The GPU data file has the right form, plausible figures, and every figure a source."""

import json
from pathlib import Path

import jsonschema
import pytest

import dsconf.cluster
from dsconf.cluster.catalogue import all_gpus, find_gpu, nearest_in_memory
from dsconf.errors import InputError
from dsconf.units import GIB, MIB

DOCUMENT = json.loads((Path(dsconf.cluster.__file__).parent / "gpus.json").read_text(encoding="utf-8"))
FIGURES = ("memory_mib", "bf16_tflops", "fp32_tflops", "memory_gb_per_s", "link_gb_per_s", "host_gb_per_s")
FORM = {
    "type": "object",
    "required": ["about", "sources", "gpus"],
    "additionalProperties": False,
    "properties": {
        "about": {"type": "string"},
        "sources": {
            "additionalProperties": {
                "type": "object",
                "required": ["title", "url", "as_of"],
                "additionalProperties": False,
                "properties": {
                    "title": {"type": "string", "minLength": 10},
                    "url": {"type": ["string", "null"], "pattern": "^https://"},
                    "as_of": {"type": "string", "pattern": r"^20\d\d-\d\d-\d\d$"},
                },
            }
        },
        "gpus": {
            "type": "array",
            "minItems": 25,
            "items": {
                "type": "object",
                "required": ["name", "aliases", "has_bf16", *FIGURES],
                "additionalProperties": False,
                "properties": {
                    "name": {"type": "string"},
                    "aliases": {"type": "array", "items": {"type": "string"}, "uniqueItems": True},
                    "has_bf16": {"type": "boolean"},
                    **{
                        key: {
                            "type": "array",
                            "prefixItems": [
                                {"type": "number", "exclusiveMinimum": 0},
                                {"enum": list(DOCUMENT["sources"])},
                            ],
                            "minItems": 2,
                            "maxItems": 2,
                        }
                        for key in FIGURES
                    },
                },
            },
        },
    },
}


def test_the_data_file_has_the_right_form():
    jsonschema.Draft202012Validator(FORM).validate(DOCUMENT)


def test_every_source_is_used():
    used = {row[key][1] for row in DOCUMENT["gpus"] for key in FIGURES}
    assert used == set(DOCUMENT["sources"])


def test_a_card_has_more_than_sources_without_an_address():
    named = {key for key, source in DOCUMENT["sources"].items() if source["url"]}
    for row in DOCUMENT["gpus"]:
        assert {row[key][1] for key in FIGURES} & named - {"pcie"}


def test_cards_that_only_bridges_join_talk_over_pcie():
    for row in DOCUMENT["gpus"]:
        if "PCIe" in row["name"] or "NVL " in row["name"]:
            assert row["link_gb_per_s"] == row["host_gb_per_s"]


def test_no_word_stands_for_two_gpus():
    words = [
        "".join(filter(str.isalnum, word.lower()))
        for row in DOCUMENT["gpus"]
        for word in dict.fromkeys((row["name"], *row["aliases"]))
    ]
    assert sorted(words) == sorted(set(words))


@pytest.mark.parametrize("gpu", all_gpus(), ids=lambda gpu: gpu.name)
def test_figures_are_those_of_a_gpu(gpu):
    assert 14 * GIB < gpu.memory_bytes < 300 * GIB
    assert 18e12 < gpu.bf16_flops < 3e15
    assert 1 <= gpu.bf16_flops / gpu.fp32_flops < 40
    assert 300e9 <= gpu.memory_bandwidth <= 8e12
    assert 15e9 < gpu.host_bandwidth <= 450e9
    assert gpu.link_bandwidth >= 15e9
    assert "https://" in gpu.source


def test_the_size_in_a_name_is_its_memory():
    for gpu in all_gpus():
        for word in gpu.name.split():
            if word.endswith("GB"):
                assert abs(gpu.memory_bytes / (int(word[:-2]) * 1e9) - 1) < 0.08


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ("h100", "H100 SXM 80GB"),
        ("NVIDIA H100 80GB HBM3", "H100 SXM 80GB"),
        ("H100-PCIe", "H100 PCIe 80GB"),
        ("NVIDIA H200", "H200 SXM 141GB"),
        ("a100-80gb", "A100 SXM 80GB"),
        ("A100_40GB", "A100 SXM 40GB"),
        ("NVIDIA A100-SXM4-40GB", "A100 SXM 40GB"),
        ("rtx4090", "RTX 4090"),
        ("NVIDIA GeForce RTX 3090", "RTX 3090"),
        ("Tesla T4", "T4"),
        ("Tesla V100-SXM2-16GB", "V100 SXM 16GB"),
        ("Tesla V100-PCIE-32GB", "V100 PCIe 32GB"),
        ("NVIDIA B300 SXM6 AC", "B300 288GB"),
        ("NVIDIA GH200 480GB", "GH200 96GB"),
        ("NVIDIA A100 80GB PCIe", "A100 PCIe 80GB"),
        ("NVIDIA RTX 6000 Ada Generation", "RTX 6000 Ada"),
        ("AMD Instinct MI300X", "MI300X 192GB"),
        ("l40s", "L40S"),
        ("L40", "L40"),
    ],
)
def test_names_as_people_and_drivers_write_them(said, name):
    assert find_gpu(said).name == name


def test_published_figures_of_a_card():
    gpu = find_gpu("a100 sxm 80gb")
    assert gpu.bf16_flops == 312e12
    assert gpu.memory_bandwidth == 2039e9
    assert gpu.link_bandwidth == 300e9
    assert gpu.memory_bytes <= 81920 * MIB
    assert gpu.has_bf16
    assert not find_gpu("v100-32gb").has_bf16


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("a100", "--gpu: 'a100' is more than one card; choose from A100 SXM 80GB, A100 SXM 40GB"),
        ("h1000", "--gpu: 'h1000' is not in the catalogue; did you mean"),
        ("rtx 4009", "did you mean 'rtx4090'?"),
        ("abacus", "--gpu: 'abacus' is not in the catalogue; give --gpu-memory instead"),
        ("", "--gpu: '' is not in the catalogue"),
    ],
)
def test_unclear_names_are_refused(said, message):
    with pytest.raises(InputError) as caught:
        find_gpu(said)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_nearest_in_memory():
    assert nearest_in_memory(80 * GIB).name == "H100 SXM 80GB"
    assert nearest_in_memory(40 * GIB).name == "A100 SXM 40GB"
    assert nearest_in_memory(1).memory_bytes == min(gpu.memory_bytes for gpu in all_gpus())
    assert nearest_in_memory(2**60).memory_bytes == max(gpu.memory_bytes for gpu in all_gpus())
