"""The tape's rules: by hand, against a slow walk over all that is alive, and against torch itself."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tape_programs import UNIT, Line, recorded, told, walked

from dsconf.memory.autograd.tape import Grad, Peaks, Tape


def test_a_tensor_saved_twice_is_kept_once() -> None:
    """tanh (10) keeps its output and the linear (20, weight 4) its input, which is the same tensor.

    Forward: 10, then 10 + 20. Backward at the linear: kept 10, incoming 20, new 10 + 4; at tanh: 10 + 10 + 10.
    """
    played = recorded([Line((0,), 10, saves_output=True), Line((1,), 20, saves=(1,), weight=4)], 10)
    assert (played.saved, played.saved_input) == (10, 0)
    assert (played.forward_peak, played.no_grad_forward_peak) == (30, 30)
    assert played.backward == Peaks(44, 44)
    # At the hook the incoming gradient is gone: kept 10 (tanh still needs it) and the gradient of it, 10.
    assert played.grads == (Grad("weight 1", 4, 20),)


def test_the_input_lives_until_its_last_reader_or_is_kept_or_held() -> None:
    """7 in, 10 out, 20 out: the input is there beside the first output, and beside the second one if kept or held."""
    kept = recorded([Line((0,), 10, saves=(0,)), Line((1,), 20)], 7)
    assert (kept.saved, kept.saved_input, kept.forward_peak, kept.no_grad_forward_peak) == (7, 7, 37, 30)
    free = recorded([Line((0,), 10), Line((1,), 20)], 7)
    assert (free.saved, free.saved_input, free.forward_peak, free.no_grad_forward_peak) == (0, 0, 30, 30)
    tape = Tape()
    x = tape.tensor(7)
    tape.op("second", [tape.op("first", [x], 10)], 20)
    assert tape.play([x], held=True).no_grad_forward_peak == 37


def test_variables_at_the_end_of_forward() -> None:
    """Held and not kept: the first output; the last one is told apart, since what follows may keep it."""
    tape = Tape()
    first = tape.op("first", [tape.tensor(7)], 10)
    second = tape.op("second", [first], 20)
    tape.hold(first)
    assert (tape.play([0]).held, tape.play([0]).output_held) == (10, False)
    tape.hold(second)
    assert (tape.play([0]).held, tape.play([0]).output_held) == (10, True)


def test_inside_a_checkpoint_the_incoming_gradient_stays() -> None:
    """f(x) + x: plain, f's node has the sum's gradient, which is also x's, and makes 10 more. Inside a checkpoint that
    gradient has a holder besides, so the two of x are added in new memory: 10 + 10 + 10."""
    tape = Tape()
    x = tape.tensor(10)
    tape.op("residual", [x, tape.op("f", [x], 10)], 10, in_place_grad=True)
    assert tape.play([x]).backward.grads_freed == 20
    assert tape.play([x], nested=True).backward.grads_freed == 30


def test_what_a_checkpointed_module_returns_besides_gets_zeros() -> None:
    """Weights w(x), kept, and f(w), the output. At w's node: w, the output's gradient, that of w, and the new one.

    With w returned too there are its zeros besides, and as the checkpoint holds them, what f makes is added in new
    memory."""
    tape = Tape()
    x = tape.tensor(10)
    weights = tape.save_output(tape.op("w", [x], 10))
    tape.op("f", [weights], 10, saves=[weights])
    assert tape.play([x], nested=True).backward.grads_freed == 40
    tape.also_return(weights)
    assert tape.play([x]).backward.grads_freed == 30
    assert tape.play([x], nested=True).backward.grads_freed == 50


def test_a_hook_finds_the_gradients_whose_hooks_come_later() -> None:
    """Bias 3 and weight 20 from one node whose input has an earlier gradient of 10.

    The bias's hook finds the weight's gradient; with a view before the input, both find its 10 not yet added.
    """
    for first, beside in ((False, 10), (True, 20)):
        tape = Tape()
        x = tape.tensor(10)
        y = tape.op("norm", [x], 10)
        linear = tape.op("linear", [y], 10, params=[("bias", 3), ("weight", 20)], params_first=first)
        tape.op("product", [linear, tape.op("other", [y], 10)], 10)
        assert [(g.param, g.live) for g in tape.play([x]).grads] == [("bias", beside + 20), ("weight", beside)]


def test_two_branches_accumulate_in_place() -> None:
    """s, then f(s) and g(s), then their product: at every node of backward three tensors of 10, never four."""
    played = recorded([Line((0,), 10), Line((1,), 10), Line((1,), 10), Line((2, 3), 10)], 10)
    assert played.backward.grads_freed == 30


def test_a_shared_gradient_is_summed_in_new_memory() -> None:
    """(f(s) + s) + s: the inner sum hands s the gradient it already has, so the total needs 10 more.

    At f: that total 10, the shared gradient 10, the new one 10.
    """
    program = [
        Line((0,), 10),
        Line((1,), 10),
        Line((2, 1), 10, in_place_grad=True),
        Line((3, 1), 10, in_place_grad=True),
    ]
    assert recorded(program, 10).backward.grads_freed == 30


def test_a_sum_hands_its_gradient_on() -> None:
    """Three sums in a row make one gradient; with an operation between them there are two at a time."""
    sums = [Line((0,), 10), *(Line((n,), 10, in_place_grad=True) for n in (1, 2, 3))]
    assert recorded(sums, 10).backward.grads_freed == 20  # the gradient, and the input's
    others = [Line((n,), 10) for n in range(4)]
    assert recorded(others, 10).backward.grads_freed == 20


def test_a_residual_of_one_operation_accumulates_in_place() -> None:
    """s + w·s: when the product's node hands s its gradient, only s still has the sum's. 10 kept, 10, 10 and 10."""
    program = [
        Line((0,), 10),
        Line((1,), 10, saves=(1,), weight=10),
        Line((1, 2), 10, in_place_grad=True),
        Line((3,), 10),
    ]
    assert recorded(program, 10).backward == Peaks(40, 40)


def test_views_share_one_storage() -> None:
    """A projection of 30 in three views: kept once and whole; each view's gradient becomes one of the whole.

    Backward: the product holds 30 kept, 10 incoming and 10 + 10 new (60). The second view's gradient becomes 30 beside
    10 + 10 (50), the first one's 30 beside 10 + 30 (70) and is added in place; the projection has 30 and makes 10.
    """
    tape = Tape()
    x = tape.tensor(10)
    whole = tape.op("projection", [x], 30)
    first, second = tape.part("q", whole, 10), tape.part("k", whole, 10)
    tape.op("product", [first, second], 10, saves=[first, second])
    played = tape.play([x])
    assert (played.saved, played.forward_peak) == (30, 40)
    assert played.backward.grads_freed == 70


def test_a_held_output_lives_to_the_end_of_forward() -> None:
    """Logits 100, upcast 200, log-softmax 200 (kept), loss 1; with the logits held the top is 100 higher."""
    program = [Line((0,), 100), Line((1,), 200), Line((2,), 200, saves_output=True), Line((3,), 1)]
    assert recorded(program, 10).forward_peak == 400
    assert recorded(program, 10, held=(1,)).forward_peak == 500
    assert recorded(program, 10, held=(1,)).backward == recorded(program, 10).backward


def test_weights_hoarded_or_reduced() -> None:
    """Two linears of 10 with weights of 50: the second node's height has the first one's gradient only if it stays.

    First node: kept 20, incoming 10, new 10 + 50 = 90. Second: kept 10, incoming 10, new 10 + 50 = 80, grads_kept 130.
    """
    program = [Line((0,), 10, saves=(0,), weight=50), Line((1,), 10, saves=(1,), weight=50)]
    played = recorded(program, 10)
    assert played.backward == Peaks(90, 130)
    assert [g.param for g in played.grads] == ["weight 1", "weight 0"]
    assert [g.live for g in played.grads] == [20, 10]


def test_scratch_counts_while_its_operation_runs() -> None:
    played = recorded([Line((0,), 10, workspace=5, backward_workspace=7, extra=3)], 10)
    assert (played.saved, played.forward_peak, played.no_grad_forward_peak) == (3, 28, 25)
    assert played.backward.grads_freed == 3 + 10 + 10 + 7


def test_replayed_tensors_are_gone_before_the_weight_is_summed() -> None:
    """Under checkpointing what only this node kept (20) is released when the node has used it.

    Plain: 20 + 10 + 20 + 4 and 15 of scratch. Replayed: the scratch takes the place of the 20, so nothing on top.
    """
    program = [Line((0,), 20), Line((1,), 10, saves=(1,), weight=4, reduction=15)]
    played = recorded(program, 20)
    assert played.backward == Peaks(69, 69)
    assert played.replay == Peaks(54, 54)


def test_what_gets_no_gradient_makes_none() -> None:
    """A mask is read and kept but has no gradient; before the first weight nothing has one either."""
    tape = Tape()
    tokens = tape.tensor(8, differentiable=False)
    mask = tape.tensor(5, differentiable=False)
    embedded = tape.op("embedding", [tokens], 10, params=[("weight", 40)])
    tape.op("masked", [embedded, mask], 10, saves=[mask])
    played = tape.play([tokens, mask])
    assert (played.saved, played.saved_input) == (5, 5)
    # masked: 5 + 10 + 10; embedding: 10 + 40, nothing for the tokens.
    assert played.backward == Peaks(50, 50)


SIZES = st.integers(1, 9)


@st.composite
def programs(draw: st.DrawFn, shared: bool) -> list[Line]:
    """Up to eight lines; with ``shared`` some sums, whose operands are then of one size with everything else."""
    lines: list[Line] = []
    size = draw(SIZES)
    for number in range(draw(st.integers(1, 8))):
        inputs = tuple(draw(st.lists(st.integers(max(0, number - 3), number), min_size=1, max_size=2)))
        kind = draw(st.sampled_from(("op", "op", "view", "sum") if shared else ("op", "op", "view")))
        out = size if shared or kind == "view" else draw(SIZES)
        if kind == "view":
            lines.append(Line(inputs[:1], out, view=True))
        elif kind == "sum":
            lines.append(Line(inputs, out, in_place_grad=True))
        else:
            scratch = st.sampled_from((0, 0, 4))
            lines.append(
                Line(
                    inputs,
                    out,
                    saves=tuple(i for i in inputs if draw(st.booleans())),
                    saves_output=draw(st.booleans()),
                    weight=draw(st.sampled_from((0, 5))),
                    extra=draw(scratch),
                    workspace=draw(scratch),
                    backward_workspace=draw(scratch),
                    reduction=draw(st.sampled_from((0, 9))),
                )
            )
    return lines


@given(programs(shared=False), SIZES, st.integers(0, 8))
def test_the_tape_is_the_slow_walk(program: list[Line], size: int, held: int) -> None:
    where = (min(held, len(program)),) if held else ()
    assert told(recorded(program, size, where)) == walked(program, size, where)


RESIDUAL = [Line((0,), 7), Line((1,), 7, saves=(1,), weight=5), Line((1, 2), 7, in_place_grad=True), Line((3,), 7)]


@given(programs(shared=True))
@example(RESIDUAL)
def test_the_tape_is_the_slow_walk_where_sums_share_gradients(program: list[Line]) -> None:
    size = program[0].size
    assert told(recorded(program, size)) == walked(program, size)


TORCH_KINDS = {
    "tanh": Line((), UNIT, saves_output=True),
    "silu": Line((), UNIT),
    "scale": Line((), UNIT),
    "mul": Line((), UNIT),
    "weight": Line((), UNIT, weight=UNIT),
    "add": Line((), UNIT, in_place_grad=True),
}
KEEPS_INPUTS = {"silu", "mul", "weight"}
Step = tuple[str, tuple[int, ...]]


@st.composite
def torch_programs(draw: st.DrawFn, shared: bool) -> list[Step]:
    """Elementwise operations whose every output is used; the first makes the input's gradient a tensor of its own."""
    steps: list[Step] = [("scale", (0,))]
    unused = {1}
    kinds = sorted(TORCH_KINDS) if shared else sorted(set(TORCH_KINDS) - {"add"})
    for _ in range(draw(st.integers(1, 8))):
        kind = draw(st.sampled_from(kinds))
        count = len(steps)
        operands = st.integers(max(1, count - 2), count)
        inputs = tuple(draw(operands) for _ in range(2 if kind in ("add", "mul") else 1))
        steps.append((kind, inputs))
        unused = (unused - set(inputs)) | {len(steps)}
    while len(unused) > 1:
        first, second = sorted(unused)[:2]
        steps.append(("add" if shared else "mul", (first, second)))
        unused = (unused - {first, second}) | {len(steps)}
    return steps


def taped(steps: list[Step]) -> tuple[int, int, int, int]:
    """(saved, forward's, reduced and grads_kept height) in tensors; the loss is the dot product with itself."""
    lines = [
        TORCH_KINDS[kind]._replace(inputs=inputs, saves=inputs if kind in KEEPS_INPUTS else ())
        for kind, inputs in steps
    ]
    last = len(lines)
    played = recorded([*lines, Line((last, last), 4, saves=(last,))], UNIT)
    return _in_tensors(played.saved, played.forward_peak, *played.backward)


def _in_tensors(*sizes: int) -> Any:
    return tuple(round(size / UNIT) for size in sizes)


def _heights(torch: Any, run: Any, start: int) -> tuple[Any, int, int]:
    """What ``run`` returns, and the bytes alive at its end and at most, from torch's own CPU allocator."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        result = run()
    events = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    alive = peak = start
    for event in sorted(events, key=lambda e: e.start_ns()):
        alive += event.nbytes()
        peak = max(peak, alive)
    return result, alive, peak


def _forward(torch: Any, steps: list[Step], x: Any, weights: list[Any]) -> Any:
    """Runs ``steps``; a tensor's variable ends with its last use."""
    last_use = {tensor: number for number, (_, inputs) in enumerate(steps) for tensor in inputs}
    alive, unused = {0: x}, list(weights)
    run = {"tanh": torch.tanh, "silu": torch.nn.functional.silu, "mul": torch.mul, "add": torch.add}
    for number, (kind, inputs) in enumerate(steps):
        operands = [alive[i] for i in inputs]
        if kind == "scale":
            operands = [operands[0] * 2.0]
        elif kind == "weight":
            operands = [operands[0] * unused.pop()]
        else:
            operands = [run[kind](*operands)]
        alive[number + 1] = operands.pop()
        for tensor in [t for t in alive if last_use.get(t, number + 1) <= number]:
            del alive[tensor]
    y = alive.pop(len(steps))
    alive.clear()
    return torch.dot(y, y)


def run_by_torch(steps: list[Step]) -> tuple[int, int, int, int]:
    """The figures of ``taped``, from real runs of forward and backward on the CPU."""
    torch = pytest.importorskip("torch")
    peaks = []
    for reduced in (True, False):
        x = torch.ones(UNIT // 4, requires_grad=True)
        weights = [torch.ones(UNIT // 4, requires_grad=True) for kind, _ in steps if kind == "weight"]
        for weight in weights if reduced else ():
            weight.register_post_accumulate_grad_hook(lambda w: setattr(w, "grad", None))
        loss, saved, peak = _heights(torch, lambda x=x, w=weights: _forward(torch, steps, x, w), 0)
        peaks.append(_heights(torch, loss.backward, saved)[2])
    return _in_tensors(saved, peak, *peaks)  # type: ignore[no-any-return]


@given(torch_programs(shared=False))
def test_the_tape_is_torch(steps: list[Step]) -> None:
    assert taped(steps) == run_by_torch(steps)


@given(torch_programs(shared=True))
@example([("scale", (0,)), ("weight", (1,)), ("add", (1, 2)), ("scale", (3,))])
def test_the_tape_is_torch_where_sums_share_gradients(steps: list[Step]) -> None:
    assert taped(steps) == run_by_torch(steps)
