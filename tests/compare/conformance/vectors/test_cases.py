"""The cases are what the specification says, cover what kernels get wrong, and never change."""

from __future__ import annotations

import numpy as np

from planish.compare.conformance.vectors.cases import all_cases

CASES = {case.name: case for case in all_cases()}


def test_two_runs_draw_the_same_numbers_and_another_seed_others():
    for case, again in zip(CASES.values(), all_cases(), strict=True):
        for name, array in case.inputs.items():
            np.testing.assert_array_equal(array, again.inputs[name])
    assert (next(all_cases(1)).inputs["x"] != CASES["int8-per_row"].inputs["x"]).any()


def test_every_kind_of_linear_is_there():
    linears = [case.parameters for case in CASES.values() if case.kind == "linear"]
    assert {(p["bits"], p["activation"]) for p in linears} == {
        *((8, name) for name in ("per_token", "per_tensor", "static", "float")),
        *((4, name) for name in ("per_token", "per_group", "float")),
    }
    four = [p for p in linears if p["bits"] == 4]
    assert {p["group_size"] for p in four} == {32, 128, -1}
    assert any(p["in_features"] % p["group_size"] for p in four if p["group_size"] > 0)
    names = {case.name for case in CASES.values() if "zero_point" in case.inputs}
    assert any("a16" in name for name in names) and any("per_group" in name for name in names)


def test_a_small_grid_by_hand():
    case = CASES["int8-static"]
    x, codes = case.inputs["x"], case.expected["codes"]
    for index in ((0, 0), (3, 74), (6, 1)):
        ratio = np.clip(np.rint(x[index] / np.float32(0.0371)), -127, 127)
        assert codes[index] == ratio


def test_grids_have_zero_rows_ties_and_the_floor():
    x, scale = (CASES["int8-per_row"].inputs["x"], CASES["int8-per_row"].expected["scale"])
    zero = ~x.any(axis=1)
    assert zero.any() and (scale[zero] == np.float32(1e-5) / np.float32(127)).all()
    assert (np.abs(x / scale % 1) == 0.5).any()
    four = CASES["int4-signed-g32"]
    assert (four.expected["scale"][1] == 1).all() and (four.expected["codes"][1] == 8).all()
    assert CASES["int4-signed-g32-float32-scales"].expected["scale"].dtype == np.float32
    assert four.expected["scale"].dtype == np.float16


def test_only_sums_of_floats_and_powers_have_a_tolerance():
    loose = {case.kind for case in CASES.values() if case.tolerance}
    assert loose == {"linear", "smoothing"}
    for case in CASES.values():
        if case.kind == "linear":
            assert bool(case.tolerance) == (case.parameters["activation"] == "float")
