"""The thousand random linears: they agree, they are as odd as they claim, and they would tell."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from planish.compare.conformance.attention import CASES as ATTENTION
from planish.compare.conformance.attention import MODES, check_slot_attention
from planish.compare.conformance.fast_engine import FastOps
from planish.compare.conformance.kernels import (
    CASES,
    Kind,
    check_kernels,
    check_random_linear,
    draw_size,
    list_kinds,
)
from tests.compare.mutations import Changed, with_weight


@pytest.mark.whole
def test_a_thousand_random_linears_are_bit_identical_on_every_instruction_set(kernels):
    assert len(list_kinds()) * CASES >= 1000
    checks = list(check_kernels(FastOps(tuple(kernels))))
    assert [str(check) for check in checks if not check.agrees] == []
    assert len({check.part for check in checks}) == len(checks) == len(list_kinds()) * len(kernels)
    integers = [check for check in checks if "activations float" not in check.part]
    assert {(check.max_error, check.tolerance) for check in integers} == {(0.0, 0.0)}


def test_every_scheme_group_and_scale_is_among_the_kinds():
    every = list_kinds()
    assert len(set(every)) == len(every)
    found = [kind for kind in every if not kind.foreign]
    assert {kind.activation for kind in found if kind.bits == 8} == {
        *("per_token", "per_tensor", "static", "float")
    }
    assert {
        (kind.group_size, kind.scales, kind.zero_point) for kind in found if kind.bits == 4
    } == {
        (size, scales, zero)
        for size in (32, 64, 128, -1)
        for scales in ("float16", "float32")
        for zero in (False, True)
    }
    foreign = [kind for kind in every if kind.foreign]
    assert {kind.group_size for kind in foreign} == {16, 32, 64, 128, -1}
    assert {(kind.bits, kind.offset, kind.act_order) for kind in foreign} == {
        *((4, True, False), (8, True, False), (8, False, False)),
        *((4, False, True), (8, True, True)),
    }
    around = [kind for kind in every if kind.input_zero_point]
    assert {kind.scales for kind in around} == {"per_channel", "per_tensor"}


def test_shapes_fill_no_tile_and_no_group():
    kinds = range(len(list_kinds()))
    shapes = [draw_size(np.random.default_rng((0, n, m))) for n in kinds for m in range(2)]
    assert {shape.sequences for shape in shapes} == {1, 2}
    assert {1, 7, 11, 13, 31} <= {shape.rows for shape in shapes}
    assert any(shape.outputs % 16 and shape.outputs > 16 for shape in shapes)
    assert any(shape.inputs % 4 and shape.inputs > 128 for shape in shapes)
    assert len({(shape.bias, shape.residual) for shape in shapes}) == 4


def wrong(kernels, change):
    """The first instruction set's kernels, given other weights than those stored."""
    ops = FastOps((kernels[0],))
    return Changed(ops, linear=lambda run, x, linear, *rest: run(x, change(linear), *rest))


@pytest.mark.whole
def test_a_wrong_zero_point_is_found_wherever_there_is_one(kernels):
    next_one = with_weight(zero_point=lambda z: z + np.uint8(1))
    checks = list(check_kernels(wrong(kernels, next_one), cases=4))
    assert {check.agrees for check in checks if "zero points" in check.part} == {False}
    assert {check.agrees for check in checks if "zero points" not in check.part} == {True}


def one_bit(linear):
    codes = linear.weight.codes.copy()
    codes[0, 0] ^= 1
    return replace(linear, weight=replace(linear.weight, codes=codes))


@pytest.mark.whole
def test_a_single_bit_of_a_single_code_is_found_in_every_kind(kernels):
    checks = check_kernels(wrong(kernels, one_bit), cases=6)
    assert [check.part for check in checks if check.agrees] == []


def test_a_mismatch_says_how_to_draw_it_again(kernels):
    ops = wrong(kernels, one_bit)
    kind = Kind(4, "per_group", 32, "float16")
    number = list_kinds().index(kind)
    first = next(iter(check_kernels(ops, cases=1)))
    (again,) = check_random_linear(list_kinds()[0], ops, (0, 0, 0))
    assert first == again
    assert "inputs" in again.detail and again.detail.endswith("seed (0, 0, 0)")
    (other,) = check_random_linear(kind, ops, (0, number, 1))
    assert other.part == f"INT4, activations per_group, float16, group 32, {kernels[0]}"


@pytest.mark.whole
@pytest.mark.again
def test_attention_agrees_on_every_instruction_set_and_in_every_mode(kernels):
    sets = tuple(kernels)
    checks = list(check_slot_attention(FastOps(sets), sets))
    assert [str(check) for check in checks if not check.agrees] == []
    outputs = {check.part for check in checks if check.part.endswith(("row 0", "row 1"))}
    rows = sum(len(case.starts) for case in ATTENTION)
    assert len(outputs) == rows * len(MODES) * len(kernels)


def test_the_cases_of_attention_cross_its_steps_and_its_segments():
    ends = {start + case.tokens for case in ATTENTION for start in case.starts}
    assert 128 in ends and any(end > 256 for end in ends)
    assert any(start < 128 < start + case.tokens for case in ATTENTION for start in case.starts)


def test_rows_of_a_batch_that_are_exchanged_are_found(kernels):
    def exchanged(attention, call, isa):
        return attention(replace(call, q=call.q[::-1]), isa)

    wrong = Changed(FastOps((kernels[0],)), attention=exchanged)
    failed = {c.part for c in check_slot_attention(wrong, (kernels[0],)) if not c.agrees}
    assert failed and all(part.endswith(("row 0", "row 1")) for part in failed)
    assert all(" and " in part for part in failed)


def test_a_slot_that_should_have_stayed_is_found(kernels):
    def cleared(attention, call, isa):
        mixed, (keys, values, *scales) = attention(call, isa)
        values = np.array(values)
        values[0, 0, 0] = 0
        return mixed, (keys, values, *scales)

    wrong = Changed(FastOps((kernels[0],)), attention=cleared)
    failed = {c.part for c in check_slot_attention(wrong, (kernels[0],)) if not c.agrees}
    touched = {part for part in failed if part.endswith("row 0, other slots, values")}
    assert len(touched) == len(MODES) * sum(case.starts[0] > 0 for case in ATTENTION)


def test_a_mistake_of_int8_attention_alone_is_found(kernels):
    """A query's scale of 126 steps, which only INT8 attention has."""

    def by_126(attention, call, isa):
        if call.scales is None:
            return attention(call, isa)
        scales = replace(call.scales, q=call.scales.q * np.float32(127 / 126))
        return attention(replace(call, scales=scales), isa)

    wrong = Changed(FastOps((kernels[0],)), attention=by_126)
    failed = {c.part for c in check_slot_attention(wrong, (kernels[0],)) if not c.agrees}
    assert len(failed) > len(ATTENTION) / 2
    assert all("static INT8 attention" in part for part in failed)
