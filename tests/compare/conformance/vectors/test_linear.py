"""check_linear: a right kernel passes, and each mistake that kernels are known for is found."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import planish
from planish.compare.conformance.vectors.linear import LinearInputs, MismatchError, check_linear
from planish.reference.errors import PlanishError
from planish.reference.packing import unpack_nibbles

ROOT = Path(__file__).parents[4]
F = np.float32


def w8a8(a: LinearInputs, *, top=127, reciprocal=False) -> np.ndarray:
    scale = np.maximum(np.abs(a.x).max(axis=1, keepdims=True), F(1e-5)) / F(top)
    ratio = a.x * (F(1) / scale) if reciprocal else a.x / scale
    codes = np.clip(np.rint(ratio), -127, 127).astype(np.int64)
    y = ((codes @ a.codes.T.astype(np.int64)).astype(F) * scale) * a.scale.T
    return y if a.bias is None else y + a.bias


def w4a16(a: LinearInputs) -> np.ndarray:
    size = a.in_features if a.group_size == -1 else a.group_size
    codes = unpack_nibbles(a.codes, a.in_features).astype(F)
    zero = np.full(a.scale.shape, 8) if a.zero_point is None else a.zero_point

    def wide(x):
        return np.repeat(x.astype(F), size, axis=1)[:, : a.in_features]

    y = a.x @ ((codes - wide(zero)) * wide(a.scale)).T
    return y if a.bias is None else y + a.bias


def test_right_kernels_agree():
    assert check_linear(w8a8, bits=8, activation="per_token") == 2
    assert check_linear(w4a16, bits=4, activation="float") == 6
    assert planish.check_linear is check_linear


@pytest.mark.parametrize("mistake", [{"top": 127.5}, {"top": 128}, {"reciprocal": True}])
def test_a_wrong_scale_is_found(mistake):
    with pytest.raises(MismatchError) as caught:
        check_linear(lambda a: w8a8(a, **mistake), bits=8, activation="per_token")
    error = caught.value
    assert error.case == "w8a8-per_channel-per_token"
    assert error.wanted != error.got and len(error.index) == 2
    assert f"y at {list(error.index)} differs; expected {error.wanted:.9g}" in str(error)


def test_a_forgotten_zero_point_is_found():
    with pytest.raises(MismatchError, match="zero_points: y at .* apart, found"):
        check_linear(lambda a: w4a16(replace(a, zero_point=None)), bits=4, activation="float")


def test_a_bias_left_out_is_found():
    with pytest.raises(MismatchError, match="per_tensor-per_token"):
        check_linear(lambda a: w8a8(replace(a, bias=None)), bits=8, activation="per_token")


def test_a_wrong_shape_is_found():
    with pytest.raises(MismatchError, match="wrong shape; expected"):
        check_linear(lambda a: w8a8(a).T, bits=8, activation="per_token")


def test_nan_is_found():
    with pytest.raises(MismatchError, match="found nan"):
        check_linear(lambda a: w8a8(a) * F(np.nan), bits=8, activation="per_token")


def test_a_combination_that_is_not_there_is_refused():
    with pytest.raises(PlanishError, match="no case"):
        check_linear(w8a8, bits=8, activation="per_group")


def test_the_example_runs():
    command = [sys.executable, ROOT / "examples" / "check_a_kernel.py"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "7 cases agree, bit for bit\n"


@pytest.mark.parametrize("result", [None, "y", [[1.0], [1.0, 2.0]], np.array([None])], ids=repr)
def test_what_is_no_array_of_numbers_is_refused(result):
    with pytest.raises(PlanishError, match="bad result; expected y, an array of numbers"):
        check_linear(lambda _: result, bits=8)


@pytest.mark.parametrize("choice", [{"bits": 0}, {"activation": ""}, {"seed": -1}], ids=str)
def test_a_choice_that_is_false_is_not_taken_for_none(choice):
    with pytest.raises(PlanishError, match="no case|seed: bad value"):
        check_linear(w8a8, **choice)
