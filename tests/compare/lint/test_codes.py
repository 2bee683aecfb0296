"""Codes of literal linears: range, -128, dead groups, saturation."""

import numpy as np

from planish.compare.lint.codes import check_codes, count_codes
from planish.reference.scheme import Scheme
from tests.compare.lint.conftest import linear

INT8 = {"bits": 8, "low": -128, "high": 127, "group_size": -1, "dtype": np.int8}


def rules(one):
    return {found.rule: (found.count, found.total) for found in check_codes(one, count_codes(one))}


def test_codes_of_four_bits_in_int8_must_be_of_four_bits():
    fields = {"low": 0, "high": 15, "zero": 8, "format": "int-quantized"}
    one = linear([[0, 15, 16, 200]], **fields)
    (found,) = check_codes(one, count_codes(one))
    assert (found.rule, found.count, found.total, found.detail) == ("code-range", 2, 4, "-8..7")
    assert rules(linear([[3, 5, 6, 9]], **fields)) == {}


def test_minus_128_is_a_note_but_an_error_where_planish_declares_a_symmetric_grid():
    codes = [[-128, 3, 4, 127] + [1] * 400]
    assert rules(linear(codes, format="int-quantized", **INT8)) == {"code-minus-128": (1, 404)}
    own = {"format": "planish", **INT8}
    assert rules(linear(codes, scheme=Scheme(bits=8), **own)) == {
        "code-minus-128-refused": (1, 404)
    }
    full = Scheme(bits=8, full_range=True)
    assert rules(linear(codes, scheme=full, **own)) == {"code-minus-128": (1, 404)}
    assert rules(linear([[-127, 3, 4, 127] + [1] * 400], format="planish", **INT8)) == {}


def test_a_group_of_the_zero_point_is_dead():
    codes = [[8, 8, 8, 8, 8, 8, 8, 9]]
    assert rules(linear(codes, zero=8)) == {"group-dead": (1, 2)}
    zero = np.array([[8, 3]], np.uint8)
    assert rules(linear([[8, 8, 8, 8, 3, 3, 3, 3]], zero=lambda: zero)) == {"group-dead": (2, 2)}
    assert rules(linear([[5, 8, 8, 8, 3, 9, 3, 3]], zero=lambda: zero)) == {}


def test_a_short_last_group_may_be_dead():
    assert rules(linear([[1, 2, 3, 4, 8, 8]], zero=8)) == {"group-dead": (1, 2)}


def test_a_group_whose_offset_cancels_its_codes_is_dead():
    offset, scale = np.array([[-6.0, -6.0]]), [[2.0, 2.0]]
    one = linear([[3, 3, 3, 3, 4, 4, 4, 4]], scale=scale, offset=lambda: offset)
    assert rules(one) == {"group-dead": (1, 2)}


def rows_of(good, bad):
    """INT4 codes [good + bad, 128], of which the bad rows are clipped to the ends."""
    rng = np.random.default_rng(0)
    codes = np.clip(np.round(8 + 2.2 * rng.standard_normal((good + bad, 128))), 0, 15)
    codes[good:] = np.where(codes[good:] < 8, 0, 15)
    return codes


def test_clipped_rows_are_counted():
    found = rules(linear(rows_of(good=5, bad=3), group_size=32))
    assert found == {"code-saturated": (3, 8)}
    assert rules(linear(rows_of(good=8, bad=0), group_size=32)) == {}


def test_one_constant_group_is_not_a_clipped_row():
    codes = rows_of(good=4, bad=0)
    codes[:, :32] = 15
    assert rules(linear(codes, group_size=32)) == {}


def test_int8_rows_are_judged_by_the_share_of_eight_bits():
    row = np.arange(-100, 100).tolist()
    assert rules(linear([row + [127] * 4], format="mlx", **INT8)) == {}
    assert rules(linear([row + [127] * 12], format="mlx", **INT8)) == {"code-saturated": (1, 1)}


def test_saturation_is_the_share_of_the_ends():
    assert count_codes(linear([[0, 15, 7, 8]])).saturation == 0.5
    assert count_codes(linear(None)) is None
