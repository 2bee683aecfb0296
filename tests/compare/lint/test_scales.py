"""Scales of literal linears: each fault is counted, and sound ones are not."""

import numpy as np
import pytest

from planish.compare.lint.scales import check_scales
from tests.compare.lint.conftest import activations, linear

HALF = np.float16


def rules(one, dtype=None, dead=None):
    return {found.rule: found.count for found in check_scales(one, dtype, dead)}


def test_sound_scales_have_no_finding():
    assert rules(linear(scale=[[0.5, 2.0]]), "bfloat16") == {}


def test_zero_nan_and_infinite_scales_are_counted():
    found = rules(linear(scale=[[0.0, np.nan, np.inf, 1.0, -0.0]]))
    assert found == {"scale-zero": 2, "scale-not-finite": 2}


def test_a_zero_scale_of_gguf_is_a_block_of_zeros():
    assert rules(linear(scale=[[0.0, 1e-6]], format="Q8_0", scale_type="F16")) == {}
    assert rules(linear(scale=[[np.nan]], format="Q8_0")) == {"scale-not-finite": 1}


def test_denormal_is_judged_in_the_type_of_the_file():
    small = [[2.0**-15, 2.0**-14]]
    assert rules(linear(scale=small, scale_type="F16")) == {"scale-denormal": 1}
    assert rules(linear(scale=small, scale_type="BF16")) == {}
    assert rules(linear(scale=[[2.0**-127]], scale_type="BF16")) == {"scale-denormal": 1}


def test_a_dead_group_may_have_a_denormal_scale():
    one = linear(scale=[[2.0**-15, 2.0**-15]], scale_type="F16")
    assert rules(one, dead=np.array([[True, False]])) == {"scale-denormal": 1}
    assert rules(one, dead=np.array([[True, True]])) == {}


def test_negative_scales_are_an_error_with_int8_inputs_in_groups():
    assert rules(linear(scale=[[-1.0, 1.0]])) == {"scale-negative": 1}
    inputs = activations("per_token")
    assert rules(linear(scale=[[-1.0, 1.0]], scheme=inputs)) == {"scale-negative-int8": 1}
    assert rules(linear(scale=[[1.0, 1.0]], scheme=inputs)) == {}


@pytest.mark.parametrize("fields", [{"format": "planish"}, {"offset": lambda: np.zeros((1, 1))}])
def test_negative_scales_are_usual_in_planish_and_with_offsets(fields):
    assert rules(linear(scale=[[-1.0]], **fields)) == {}


@pytest.mark.parametrize(
    ("form", "dtype", "lost"),
    [
        ("gptq", "bfloat16", 1),
        ("awq", "bfloat16", 1),
        ("pack-quantized", "bfloat16", 1),
        ("gptq", "float16", 0),
        ("gptq", None, 0),
        ("int-quantized", "bfloat16", 0),
        ("mlx", "bfloat16", 0),
    ],
)
def test_scales_that_the_models_dtype_rounds(form, dtype, lost):
    scale = [[1 + 2.0**-9, 1 + 2.0**-7]]  # 9 and 7 bits after the point: bfloat16 has 7
    one = linear(scale=scale, scale_dtype=HALF, scale_type="F16", format=form)
    assert rules(one, dtype).get("scale-rounded", 0) == lost


def test_offsets_and_input_scales():
    one = linear(offset=lambda: np.array([[np.nan, 1.0]]))
    assert rules(one) == {"offset-not-finite": 1}
    for bad in (0.0, -1.0, np.inf, np.nan):
        assert "scale-input" in rules(linear(input_scale=lambda bad=bad: np.array([bad])))
    assert rules(linear(input_scale=lambda: np.array([0.1], np.float32))) == {}
