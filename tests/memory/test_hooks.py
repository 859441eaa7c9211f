"""Which gradients a rank owns at stages 1 and 2, and how buckets fill, against a walk parameter by parameter."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from model_cases import GQA
from small_models import models, tiny

from dsconf.memory.zero.gradient_order import hooks
from dsconf.memory.zero.reduce_buckets import (
    Bucketing,
    partition,
    reductions_after_backward,
    reductions_in_hooks,
)
from dsconf.memory.zero.slices import distinct_ranks, owned
from dsconf.model.read import read_model
from dsconf.model.spec import Model

EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 40,
}
WORLDS = st.integers(1, 9)
BUCKETS = st.integers(1, 400)


@pytest.mark.parametrize(
    ("total", "world_size", "expected"), [(10, 1, 10), (11, 1, 12), (10, 4, 4), (16, 4, 4), (17, 4, 6), (1, 8, 2)]
)
def test_partition_by_hand(total: int, world_size: int, expected: int) -> None:
    """The flat buffer is padded to 2 x ranks: 17 elements on 4 ranks are padded to 24."""
    assert partition(total, world_size) == expected


@given(models(), WORLDS)
def test_slices_add_up_to_the_padded_buffer(model: Model, world_size: int) -> None:
    """And to every element once: the pieces of all parameters on all ranks are the trained parameters."""
    slices = [owned(model, world_size, rank) for rank in range(world_size)]
    total = hooks(model).total
    assert sum(s.elements for s in slices) == -(-total // (2 * world_size)) * 2 * world_size
    assert total == model.num_params


def _element_owners(model: Model, world_size: int) -> list[list[int]]:
    """For every rank, the parameter number of each element it owns: the flat buffer written out."""
    flat = [number for number, (numel, _) in enumerate(hooks(model).registered) for _ in range(numel)]
    part = partition(len(flat), world_size)
    return [flat[part * rank : part * (rank + 1)] for rank in range(world_size)]


@given(models(), WORLDS)
def test_a_slice_is_what_its_elements_say(model: Model, world_size: int) -> None:
    sizes = [numel for numel, _ in hooks(model).registered]
    for rank, elements in enumerate(_element_owners(model, world_size)):
        numbers = set(elements)
        slice_ = owned(model, world_size, rank)
        assert slice_.whole == sum(sizes[n] for n in numbers)
        assert slice_.largest == max((elements.count(n) for n in numbers), default=0)
        assert slice_.tensors == len(numbers)


@given(models(), st.integers(1, 600))
def test_a_few_ranks_for_each_parameter_have_all_slices_that_there_are(model: Model, world_size: int) -> None:
    known = hooks(model)
    ranks = distinct_ranks(known.registered, known.total, world_size)
    assert len(ranks) <= 4 * len(known.registered) + 3
    slices = {owned(model, world_size, rank) for rank in ranks}
    assert slices == {owned(model, world_size, rank) for rank in range(world_size)}


def test_the_tiny_model_by_hand() -> None:
    """40 + 3 x 144 + 4 + 40 = 516 elements on 4 ranks: padded to 520, 130 each.

    Rank 0 holds the embedding and 90 elements of layer 0: q, k, v, o (64), gate (24) and 2 of up's 24. Rank 3 begins at
    390, 62 elements into layer 2 (at 328): 2 of o, the rest of the layer, the norm and the head.
    """
    model = tiny()
    assert [owned(model, 4, rank).elements for rank in range(4)] == [130] * 4
    assert owned(model, 4, 0) == (130, 40 + 64 + 24 + 24, 40, 7)
    assert owned(model, 4, 3) == (130, 16 + 3 * 24 + 2 * 4 + 4 + 40, 40, 8)


def test_gradients_come_last_layer_first() -> None:
    """Head, final norm, then in each layer down, up, gate, the second norm, o, v, k, q, the first norm; embedding last.

    Of operations that read one tensor the later recorded runs backward first: up before gate, v before k before q.
    """
    model = tiny(layers=2)
    order = [(h.numel, h.layer) for h in hooks(model).order]
    layer = [24, 24, 24, 4, 16, 16, 16, 16, 4]
    assert order == [(40, 2), (4, 2), *((n, 1) for n in layer), *((n, 0) for n in layer), (40, -1)]


def _order(family: str, more: dict[str, Any]) -> Any:
    return pytest.param(family, more, id="-".join((family, *more)))


@pytest.mark.parametrize(
    ("family", "more"),
    [
        _order("llama", {}),
        _order("mistral", {}),
        _order("mixtral", {"num_local_experts": 4}),
        _order("granite", {}),
        _order("gemma", {}),
        _order("gemma2", {}),
        _order("gemma3_text", {}),
        _order("phi3", {}),
        _order("falcon", {"bias": False}),
        _order("qwen3", {"head_dim": 16}),
        _order("olmo2", {}),
        _order("qwen2_moe", EXPERTS),
        _order("qwen2", {}),
        _order("phi", {}),
        _order("gpt_neox", {}),
        _order("opt", {"ffn_dim": 96}),
        _order("bloom", {"n_head": 4}),
        _order("gpt2", {"n_embd": 64, "n_layer": 3, "n_head": 4}),
    ],
)
def test_torch_runs_the_hooks_in_that_order(family: str, more: dict[str, Any]) -> None:
    """Elements of every gradient as the real model's hooks see them arrive."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = GQA | {"pad_token_id": 1 if family == "opt" else None} | more
    real = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(family, **config))
    found: list[int] = []

    def arrived(parameter: Any) -> None:
        found.append(parameter.numel())

    for parameter in real.parameters():
        parameter.register_post_accumulate_grad_hook(arrived)
    ids = torch.arange(2, 10).reshape(1, 8)
    real(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    model = read_model(model={"model_type": family} | config)
    assert [h.numel for h in hooks(model).order] == found


class _Reduced(NamedTuple):
    """One reduction, as one rank sees it."""

    layer: int
    event: int
    unreduced: int
    outside: int
    copied: int
    exists: bool
    own: int
    filled: int


def _fast(buckets: Bucketing, rank: int) -> list[_Reduced]:
    return [
        _Reduced(
            layer=one.layer,
            event=one.event,
            unreduced=one.unreduced_elements,
            outside=one.outside,
            copied=copied,
            exists=exists,
            own=own,
            filled=one.filled,
        )
        for one, copied, exists, own in reductions_in_hooks(buckets, rank)
    ]


def _slow(model: Model, bucket: int, world_size: int, rank: int) -> list[_Reduced]:
    """DeepSpeed's loop written out element by element (stage_1_and_2.py: reduce_independent_p_g_buckets)."""
    part = partition(hooks(model).total, world_size)
    found: list[_Reduced] = []
    waiting_in: list[tuple[int, int]] = []
    held = False

    def reduce(layer: int, event: int, waiting: int) -> None:
        nonlocal held
        owners = [[(at // part) for at in range(offset, offset + numel)] for numel, offset in waiting_in]
        filled = sum(map(len, owners))
        ranks = {owner for piece in owners for owner in piece}
        copied = 0
        if len(ranks) > 1:
            copied = filled if filled <= bucket else _slow_sliced(owners[0], bucket)
        mine = max(piece.count(rank) for piece in owners)
        outside = filled if filled > bucket else 0
        found.append(_Reduced(layer, event, waiting, outside, copied, held, mine, filled))
        held = held or mine > 0
        waiting_in.clear()

    for hook in hooks(model).order:
        if waiting_in and sum(n for n, _ in waiting_in) + hook.numel > bucket:
            reduce(hook.layer, hook.event, hook.numel)
        waiting_in.append((hook.numel, hook.offset))
    reduce(-1, -1, 0)
    return found


def _slow_sliced(owners: list[int], bucket: int) -> int:
    """Most elements flattened together where slices are collected until they exceed the bucket."""
    most = 0
    slices: list[int] = []
    ranks = sorted(set(owners))
    for owner in ranks:
        slices.append(owners.count(owner))
        if sum(slices) > bucket or owner == ranks[-1]:
            most = max(most, sum(slices) if len(slices) > 1 else 0)
            slices = []
    return most


def _no_less(rival: _Reduced, one: _Reduced, layers: int) -> bool:
    """Whether ``rival`` is at least as high at every moment that ``one`` makes.

    One hook of a lower layer has less below it and the same around it; the head's hooks compare with no layer's. The
    last reduction, after backward, has nothing alive that another one has not.
    """
    same_part = rival.layer == one.layer or (layers > rival.layer >= one.layer >= 0)
    place = (rival.event == one.event and same_part) or (one.layer, one.event) == (-1, -1)
    sizes = rival.unreduced >= one.unreduced and rival.outside >= one.outside and rival.copied >= one.copied
    return place and sizes and rival.exists == one.exists and rival.own >= one.own and bool(rival.own) == bool(one.own)


@given(models(), BUCKETS, WORLDS, st.integers(0, 8))
def test_every_reduction_is_one_of_the_slow_walk(model: Model, bucket: int, world_size: int, rank: int) -> None:
    slow = _slow(model, bucket, world_size, rank % world_size)
    assert set(_fast(Bucketing(model, bucket, world_size, True), rank % world_size)) <= set(slow)


@given(models(), BUCKETS, WORLDS, st.integers(0, 8))
@example(tiny(4, 300, 8, 100), 1000, 8, 1)
def test_no_reduction_that_could_be_the_highest_is_left_out(
    model: Model, bucket: int, world_size: int, rank: int
) -> None:
    fast = _fast(Bucketing(model, bucket, world_size, True), rank % world_size)
    for one in _slow(model, bucket, world_size, rank % world_size):
        assert any(_no_less(rival, one, model.layers) for rival in fast), one


@given(models(), BUCKETS, WORLDS, st.integers(0, 8))
def test_slices_that_are_reduced_apart_are_flattened(model: Model, bucket: int, world_size: int, rank: int) -> None:
    """A bucket with several parameters, of which one is this rank's, is copied whole whoever the others belong to."""
    for one in _fast(Bucketing(model, bucket, world_size, True, flat_fp32_slice=True), rank % world_size):
        if 0 < one.own < one.filled <= bucket:
            assert one.copied == one.filled


@given(models(), BUCKETS, WORLDS)
def test_a_cast_leaves_no_fuller_bucket_out(model: Model, bucket: int, world_size: int) -> None:
    fullest = max(one.filled for one in _slow(model, bucket, world_size, 0))
    fast = _fast(Bucketing(model, bucket, world_size, True, is_cast=True), 0)
    assert max(one.filled for one in fast) == fullest


@given(models(), BUCKETS, WORLDS)
def test_where_owners_are_reduced_one_by_one_nothing_is_copied(model: Model, bucket: int, world_size: int) -> None:
    assert all(one.copied == 0 for one in _fast(Bucketing(model, bucket, world_size, False), 0))


@given(models(), BUCKETS)
def test_one_rank_copies_nothing(model: Model, bucket: int) -> None:
    assert all(one.copied == 0 for one in _fast(Bucketing(model, bucket, 1, True), 0))


def test_reductions_by_hand() -> None:
    """Two layers, bucket 80, one rank: 40 + 4 + 24 fill it to 68 and up does not fit any more.

    Then up, gate, norm, o (68), v waits; v, k, q, norm, down (76); up, gate, norm, o (68); v, k, q, norm (52), and the
    embedding of 40 waits, which comes last and alone.
    """
    buckets = Bucketing(tiny(layers=2), 80, 1, True)
    slow = _slow(tiny(layers=2), 80, 1, 0)
    assert [(one.layer, one.unreduced) for one in slow] == [(1, 24), (1, 16), (0, 24), (0, 16), (-1, 40), (-1, 0)]
    first = _fast(buckets, 0)[0]
    assert (first.layer, first.event, first.unreduced, first.exists, first.own) == (1, 1, 24, False, 40)
    assert reductions_in_hooks(buckets, 0)[0].reduction.hook == "1 mlp.up_proj.weight"


@given(models(), BUCKETS, WORLDS, st.data())
def test_stage_1_reduces_in_registration_order(model: Model, bucket: int, world_size: int, data: st.DataObject) -> None:
    """The first reduction, and those with elements of this rank while its pieces get larger, element by element."""
    rank = data.draw(st.integers(0, world_size - 1))
    part = partition(hooks(model).total, world_size)
    every: list[tuple[int, int, int, int]] = []
    inside: list[tuple[int, int]] = []
    moved = 0
    for numel, offset in (*hooks(model).registered, (bucket + 1, -1)):
        if inside and sum(n for n, _ in inside) + numel > bucket:
            owners = [[at // part for at in range(start, start + n)] for n, start in inside]
            filled = sum(n for n, _ in inside)
            several = len({owner for owned in owners for owner in owned}) > 1
            own = max(owned.count(rank) for owned in owners)
            every.append((moved, filled if several else 0, filled, own))
            inside = []
        inside.append((numel, offset))
        moved += numel if numel <= bucket else 0
    buckets = Bucketing(model, bucket, world_size, True)
    found = reductions_after_backward(buckets, rank, all_pieces=True)
    assert found.first == (*every[0][:3], 0)
    largest, expected = 0, []
    for one in every:
        if one[3] > largest:
            largest = one[3]
            expected.append(one)
    assert found.own == tuple(expected)
    assert reductions_after_backward(buckets, rank, all_pieces=False).own == tuple(
        (*one[:3], 0) for one in expected[:1]
    )
