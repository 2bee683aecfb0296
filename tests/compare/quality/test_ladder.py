"""Mixed precision's steps and where to measure: literal small numbers, and properties."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planish.compare.quality.ladder import (
    W8A8,
    W8A16,
    Bracket,
    Step,
    changes_after,
    ladder,
    linear_steps,
    next_count,
)
from planish.reference.scheme import int4, int8

W4 = int4(128)
KEY = (0, "q")


@pytest.mark.parametrize(
    ("scheme", "expected"),
    [
        (int4(32), (int4(32), W8A16, None)),
        (
            int4(32, activation="per_group"),
            (int4(32, activation="per_group"), W8A8, W8A16, None),
        ),
        (W8A8, (W8A8, W8A16, None)),
        (int8("per_tensor", "static"), (int8("per_tensor", "static"), W8A8, W8A16, None)),
        (W8A16, (W8A16, None)),
        (None, (None,)),
    ],
)
def test_a_ladder_leads_from_the_recipes_scheme_to_float(scheme, expected):
    assert ladder(scheme) == expected
    assert None not in ladder(scheme, stays_quantized=True) or scheme is None


def test_steps_of_one_linear_are_in_order():
    steps = linear_steps(KEY, (W4, W8A16, None), [10.0, 1.0], [4, 8, 16], least=1)
    assert [(s.scheme, s.spared, s.bits) for s in steps] == [(W8A16, 9.0, 4), (None, 1.0, 8)]


def test_a_step_that_spares_more_for_each_bit_is_taken_together_with_the_one_before():
    """8 bits spare 1 for 4 bits; float spares all 10 for 12: straight to float."""
    steps = linear_steps(KEY, (W4, W8A16, None), [10.0, 9.0], [4, 8, 16], least=1)
    assert [(s.scheme, s.spared, s.bits) for s in steps] == [(None, 10.0, 12)]


def test_a_step_without_a_gain_is_left_out():
    steps = linear_steps(KEY, (W4, W8A16, None), [1.0, 2.0], [4, 8, 16], least=1)
    assert [s.scheme for s in steps] == [None]
    assert linear_steps(KEY, (W4, W8A16, None), [0.0, 0.0], [4, 8, 16], least=1) == []


def test_a_step_that_stores_no_more_bits_costs_the_least():
    O3 = int8("per_tensor", "static")  # noqa: N806  (the recipe's name)
    first, *_ = linear_steps(KEY, (O3, W8A8, W8A16, None), [8.0, 1.0, 1.0], [80, 80, 80, 160], 10)
    assert (first.scheme, first.spared, first.bits) == (W8A8, 7.0, 10)


@given(st.lists(st.floats(0, 10), min_size=3, max_size=3), st.integers(1, 8))
def test_each_step_spares_less_for_a_bit_than_the_one_before(losses, least):
    schemes = (int4(32, activation="per_group"), W8A8, W8A16, None)
    steps = linear_steps(KEY, schemes, losses, [4, 8, 8, 16], least)
    rates = [step.spared / step.bits for step in steps]
    assert all(after <= before * (1 + 1e-9) for before, after in pairwise(rates))
    assert sum(step.spared for step in steps) == pytest.approx(losses[0])


def make_steps(spared):
    return [Step(key=(i, "q"), scheme=W8A16, spared=s, bits=1.0) for i, s in enumerate(spared)]


def test_the_next_measurement_is_where_the_prediction_meets_the_tolerance():
    """Predicted 16 in all, measured 0.32: each is worth 0.02, so 0.1 remains after two of 8, 4."""
    steps = make_steps([8, 4, 2, 1, 1])
    ends = Bracket(low=0, high=5, low_loss=0.32, high_loss=0.0)
    assert next_count(ends, steps, 0.08, halve=False) == 2
    assert next_count(ends, steps, 0.16, halve=False) == 1
    assert next_count(ends, steps, 0.0001, halve=False) == 4


def test_halving_splits_the_bits_between_the_ends():
    steps = make_steps([8, 4, 2, 1, 1])
    ends = Bracket(low=1, high=5, low_loss=9.0, high_loss=0.0)
    assert next_count(ends, steps, 0.1, halve=True) == 3


@given(
    st.lists(st.floats(1e-6, 10), min_size=3, max_size=20),
    st.floats(1e-4, 1),
    st.booleans(),
    st.data(),
)
def test_the_next_measurement_is_between_the_ends(spared, tolerance, halve, data):
    low = data.draw(st.integers(0, len(spared) - 2))
    high = data.draw(st.integers(low + 2, len(spared)))
    ends = Bracket(low=low, high=high, low_loss=2 * tolerance, high_loss=tolerance / 2)
    assert low < next_count(ends, make_steps(spared), tolerance, halve) < high


def test_the_last_step_of_a_linear_gives_its_scheme():
    steps = [Step(key=KEY, scheme=s, spared=1.0, bits=1.0) for s in (W8A16, None)]
    assert changes_after(steps, 1) == {KEY: W8A16}
    assert changes_after(steps, 2) == {KEY: None}
