"""One comparison: what counts as equal, what never does, and how it is told."""

from __future__ import annotations

import json

import numpy as np
import pytest

from planish.compare.conformance.check import check, cosine, ulp_distance

ONES = np.ones(3, np.float32)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_never_agrees(bad):
    result = check(1, 0, "q", ONES, np.array([1, bad, 1], np.float32), 1e9)
    assert not result.agrees
    assert result.index == (1,)


def test_nan_in_both_does_not_agree():
    nan = np.full(2, np.nan, np.float32)
    assert not check(1, 0, "q", nan, nan, 1.0).agrees


def test_a_wrong_shape_does_not_agree():
    result = check(3, None, "logits", ONES, ONES[:2], 1.0)
    assert not result.agrees
    assert str(result).endswith("expected the shape [3], found [2]")


def test_the_worst_element_is_the_one_farthest_beyond_its_own_tolerance():
    found = np.array([1.5, 1.1, 1.0], np.float32)
    result = check(1, 0, "q", ONES, found, np.array([1.0, 0.01, 1.0]))
    assert (result.index, result.agrees) == ((1,), False)
    assert result.worst == pytest.approx(10, rel=1e-5)
    assert result.max_error == 0.5


def test_tolerance_zero_means_equal():
    assert check(1, 0, "codes", np.array([1, 2]), np.array([1, 2]), 0.0).agrees
    assert not check(1, 0, "codes", np.array([1, 2]), np.array([1, 3]), 0.0).agrees


def test_a_mismatch_says_where_what_and_how_far():
    found = np.array([1, np.float32(1) + np.float32(2**-22), 1], np.float32)
    text = str(check(2, 4, "mlp", ONES, found, 1e-8))
    where = "level 2, layer 4, mlp at [1]: expected 1, found 1.00000024; "
    assert text == f"{where}off by 2.38e-07 (2 float32 steps), at most 1e-08 is allowed"


def test_a_mismatch_of_what_must_be_equal_says_so():
    text = str(check(1, None, "codes", np.array([3]), np.array([5]), 0.0))
    assert text == "level 1, codes at [0]: expected 3, found 5; off by 2, must be equal"


def test_a_mismatch_is_json_whatever_was_found():
    result = check(1, None, "q", ONES, np.full(3, np.nan, np.float32), 0.0)
    values = json.loads(json.dumps(result.as_dict(), allow_nan=False))
    assert (values["found"], values["ulps"], values["agrees"]) == ("nan", "inf", False)


def test_ulps_are_steps_of_float32():
    assert ulp_distance(1.0, 1 + 2.0**-23) == 1
    assert ulp_distance(0.0, 0.0) == 0
    assert ulp_distance(1.0, float("nan")) == float("inf")


def test_cosine_of_parallel_opposite_and_empty_vectors():
    assert cosine(ONES, 2 * ONES) == pytest.approx(1)
    assert cosine(ONES, -ONES) == pytest.approx(-1)
    assert cosine(0 * ONES, 0 * ONES) == 1
