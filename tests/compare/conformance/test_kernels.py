"""The thousand random linears: they agree, they are as odd as they claim, and they would tell."""

from __future__ import annotations

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from planish.compare.conformance.attention import CASES as ATTENTION
from planish.compare.conformance.attention import check_attention
from planish.compare.conformance.kernels import (
    CASES,
    Kind,
    check_case,
    check_kernels,
    kinds,
    random_shape,
)
from planish.fast.native import attention as native_attention
from planish.fast.native import linear as native_linear
from tests.compare.conftest import wrap


@pytest.mark.whole
def test_a_thousand_random_linears_are_bit_identical_on_every_instruction_set(kernels):
    assert len(kinds()) * CASES >= 1000
    checks = list(check_kernels(tuple(kernels)))
    assert [str(check) for check in checks if not check.agrees] == []
    assert len({check.part for check in checks}) == len(checks) == len(kinds()) * len(kernels)
    integers = [check for check in checks if "activations float" not in check.part]
    assert {(check.max_error, check.tolerance) for check in integers} == {(0.0, 0.0)}


def test_every_scheme_group_and_scale_is_among_the_kinds():
    found = kinds()
    assert len(set(found)) == len(found)
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


def test_shapes_fill_no_tile_and_no_group():
    shapes = [random_shape(np.random.default_rng((0, n, m))) for n in range(56) for m in range(2)]
    assert {shape.sequences for shape in shapes} == {1, 2}
    assert {1, 7, 11, 13, 31} <= {shape.rows for shape in shapes}
    assert any(shape.outputs % 16 and shape.outputs > 16 for shape in shapes)
    assert any(shape.inputs % 4 and shape.inputs > 128 for shape in shapes)
    assert len({(shape.bias, shape.residual) for shape in shapes}) == 4


def next_zero_point(arguments, layer):
    found = list(arguments(layer))
    if layer.weight.zero_point is not None:
        found[2] = found[2] + jnp.uint8(1)
    return found


def test_a_wrong_zero_point_is_found_wherever_there_is_one(kernels, mutate):
    wrap(native_linear, "weight_arguments", next_zero_point)(mutate)
    checks = list(check_kernels((kernels[0],), cases=4))
    assert {check.agrees for check in checks if "zero points" in check.part} == {False}
    assert {check.agrees for check in checks if "zero points" not in check.part} == {True}


def one_bit(arguments, layer):
    codes, *rest = arguments(layer)
    return [codes.at[0, 0, 0, 0].set(codes[0, 0, 0, 0] ^ jnp.ones((), codes.dtype)), *rest]


@pytest.mark.whole
def test_a_single_bit_of_a_single_code_is_found_in_every_kind(kernels, mutate):
    wrap(native_linear, "weight_arguments", one_bit)(mutate)
    checks = check_kernels((kernels[0],), cases=6)
    assert [check.part for check in checks if check.agrees] == []


def test_a_mismatch_says_how_to_draw_it_again(kernels, mutate):
    wrap(native_linear, "weight_arguments", one_bit)(mutate)
    kind = Kind(4, "per_group", 32, "float16")
    number = kinds().index(kind)
    first = next(iter(check_kernels((kernels[0],), cases=1)))
    (again,) = check_case(kinds()[0], (kernels[0],), (0, 0, 0))
    assert first == again
    assert "inputs" in again.detail and again.detail.endswith("seed (0, 0, 0)")
    (other,) = check_case(kind, (kernels[0],), (0, number, 1))
    assert other.part == f"INT4, activations per_group, float16, group 32, {kernels[0]}"


def test_attention_agrees_on_every_instruction_set_and_over_both_caches(kernels):
    checks = list(check_attention(tuple(kernels)))
    assert [str(check) for check in checks if not check.agrees] == []
    outputs = {check.part for check in checks if check.part.endswith(("row 0", "row 1"))}
    rows = sum(len(case.starts) for case in ATTENTION)
    assert len(outputs) == rows * 2 * len(kernels)


def rows_exchanged(attention, qkv, *rest):
    return attention((qkv[0][::-1], *qkv[1:]), *rest)


def test_rows_of_a_batch_that_are_exchanged_are_found(kernels, mutate):
    wrap(native_attention, "cached_attention", rows_exchanged)(mutate)
    failed = {check.part for check in check_attention((kernels[0],)) if not check.agrees}
    assert failed and all(part.endswith(("row 0", "row 1")) for part in failed)
    assert all(" and " in part for part in failed)


def a_slot_cleared(attention, *arguments, **options):
    mixed, past = attention(*arguments, **options)
    return mixed, replace(past, values=past.values.at[0, 0, 0].set(0))


def test_a_slot_that_should_have_stayed_is_found(kernels, mutate):
    wrap(native_attention, "cached_attention", a_slot_cleared)(mutate)
    failed = {check.part for check in check_attention((kernels[0],)) if not check.agrees}
    touched = {part for part in failed if part.endswith("row 0, other slots, values")}
    assert len(touched) == 2 * sum(case.starts[0] > 0 for case in ATTENTION)
