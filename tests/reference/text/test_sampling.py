"""Sampling: temperature, then top_k, then top_p, then the draw (SPEC 7)."""

import math

import numpy as np
import pytest

from planish.reference.errors import SamplingError
from planish.reference.text.sampling import Sampling, adjust_logits, greedy, sample, uniform

TRANSFORMERS = [0, 0, 0.243741, 0.458507, 0, 0.140704, 0, 0.157047]


def logits_of(*shares):
    return np.log(np.array(shares, np.float32))


def shares(logits, draws=3000, **settings):
    """How often each id is drawn."""
    sampling = Sampling(**settings)
    drawn = [sample(logits, sampling, 0, step) for step in range(draws)]
    return np.bincount(drawn, minlength=len(logits)) / draws


def test_temperature_0_is_greedy_with_ties_to_the_lowest_id():
    assert sample(np.array([1, 5, 5, 2], np.float32), Sampling()) == 1
    assert greedy(np.array([-np.inf, -3], np.float32)) == 1


def test_draws_follow_the_distribution():
    assert shares(logits_of(0.5, 0.3, 0.2), temperature=1.0) == pytest.approx(
        [0.5, 0.3, 0.2], abs=0.03
    )


def test_temperature_divides_the_logits():
    expected = np.array([0.25, 0.09, 0.04]) / 0.38  # squares
    assert shares(logits_of(0.5, 0.3, 0.2), temperature=0.5) == pytest.approx(expected, abs=0.03)


def test_top_k_keeps_the_likeliest_and_of_ties_the_lowest_ids():
    assert shares(logits_of(0.2, 0.4, 0.2, 0.2), temperature=1.0, top_k=2) == pytest.approx(
        [1 / 3, 2 / 3, 0, 0], abs=0.03
    )


def test_of_a_thousand_equals_top_k_keeps_the_lowest_ids():
    logits = np.zeros(1000, np.float32)
    logits[500] = 1
    found = shares(logits, 300, temperature=1.0, top_k=5)
    assert set(np.flatnonzero(found)) == {0, 1, 2, 3, 500}


def test_top_p_keeps_the_smallest_set_that_reaches_the_mass():
    logits = logits_of(0.15, 0.5, 0.25, 0.1)
    assert set(np.flatnonzero(shares(logits, 500, temperature=1.0, top_p=0.49))) == {1}
    assert set(np.flatnonzero(shares(logits, 500, temperature=1.0, top_p=0.7))) == {1, 2}
    assert set(np.flatnonzero(shares(logits, 500, temperature=1.0, top_p=0.8))) == {0, 1, 2}
    assert set(np.flatnonzero(shares(logits, 500, temperature=1.0))) == {0, 1, 2, 3}


def test_top_p_keeps_at_least_one():
    assert set(np.flatnonzero(shares(logits_of(0.4, 0.6), 100, temperature=1, top_p=1e-9))) == {1}


def test_temperature_comes_before_top_p():
    logits = logits_of(0.5, 0.3, 0.2)  # at temperature 0.25 the first alone has 0.87
    assert set(np.flatnonzero(shares(logits, 500, temperature=0.25, top_p=0.8))) == {0}
    assert set(np.flatnonzero(shares(logits, 500, temperature=1.0, top_p=0.8))) == {0, 1}


def test_top_k_comes_before_top_p():
    logits = logits_of(0.4, 0.3, 0.2, 0.1)  # of the two kept the first has 4/7 > 0.55
    assert set(np.flatnonzero(shares(logits, 500, temperature=1.0, top_k=2, top_p=0.55))) == {0}
    assert set(np.flatnonzero(shares(logits, 500, temperature=1.0, top_p=0.55))) == {0, 1}


def test_a_seed_gives_the_same_draws_and_another_gives_others():
    def drawn(seed, row=0):
        sampling = Sampling(temperature=1.0, seed=seed)
        return [sample(np.zeros(1000, np.float32), sampling, row, step) for step in range(20)]

    assert drawn(5) == drawn(5)
    assert len({tuple(drawn(5)), tuple(drawn(6)), tuple(drawn(5, row=1))}) == 3


def test_the_draw_is_a_function_of_seed_row_and_step_alone():
    assert uniform(3, 2, 1) == uniform(3, 2, 1)
    seen = {uniform(s, r, t) for s in range(3) for r in range(3) for t in range(3)}
    assert len(seen) == 27 and all(0 <= u < 1 for u in seen)
    assert 0 <= uniform(2**64 - 1, 0, 0) < 1


@pytest.mark.parametrize("temperature", [1e-30, 1e-308, 5e-324])
def test_a_tiny_temperature_is_nearly_greedy(temperature):
    assert sample(np.array([1, 3, 2], np.float32), Sampling(temperature=temperature)) == 1


@pytest.mark.parametrize(
    "logits", [[1, np.nan, 3], [-np.inf, -np.inf], [1, np.inf], [np.nan, np.inf]]
)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_allow_no_token_are_an_error(logits, temperature):
    with pytest.raises(SamplingError, match="logits: cannot sample"):
        sample(np.array(logits, np.float32), Sampling(temperature=temperature))


def test_a_barred_token_is_never_drawn():
    assert shares(np.array([0, -np.inf, 0], np.float32), 300, temperature=2.0)[1] == 0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -1.0),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("top_k", -2),
        ("top_k", 49),
        ("top_p", 0.0),
        ("top_p", 1.5),
        ("top_p", math.nan),
        ("seed", -1),
        ("seed", 2**64),
    ],
)
def test_values_out_of_range_are_refused_by_name(name, value):
    with pytest.raises(SamplingError, match=rf"^{name}: bad value; expected .*, found "):
        Sampling(**{name: value}).check(48)


def test_values_at_the_ends_of_the_ranges_are_taken():
    Sampling(temperature=0.0, top_k=48, top_p=1.0, seed=2**64 - 1).check(48)
    Sampling(temperature=1e30, top_k=0, top_p=1e-9, seed=0).check(48)


def test_min_p_keeps_what_is_likely_beside_the_likeliest():
    logits = logits_of(0.5, 0.3, 0.15, 0.05)
    assert set(np.flatnonzero(shares(logits, 500, temperature=1.0, min_p=0.59))) == {0, 1}
    assert set(np.flatnonzero(shares(logits, 500, temperature=1.0, min_p=0.61))) == {0}
    assert set(np.flatnonzero(shares(logits, 500, temperature=1.0, min_p=1.0))) == {0}


def test_temperature_and_top_p_come_before_min_p():
    logits = logits_of(0.5, 0.3, 0.15, 0.05)
    hot = {"temperature": 2.0, "min_p": 0.5}  # square roots: 0.3 is 0.77 of 0.5, 0.15 is 0.55
    assert set(np.flatnonzero(shares(logits, 800, **hot))) == {0, 1, 2}
    assert set(np.flatnonzero(shares(logits, 800, **hot, top_p=0.5))) == {0, 1}


def test_bias_then_penalties_adjust_the_logits_as_written():
    logits = np.array([4, -2, 1, 0.5, -8], np.float32)
    sampling = Sampling(
        repetition_penalty=2.0,
        presence_penalty=0.5,
        frequency_penalty=0.25,
        logit_bias=((4, 10.0), (3, -1.0)),
    )
    found = adjust_logits(logits, sampling, prompt=[0, 1], text=[1, 4, 4, 4])
    # 4: (-8 + 10) / 2 - 0.5 - 3 / 4;  1: -2 * 2 - 0.5 - 1 / 4;  0: 4 / 2;  3: 0.5 - 1
    assert found.tolist() == [2, -4.75, 1, -0.5, -0.25]
    assert logits.tolist() == [4, -2, 1, 0.5, -8]


def test_without_bias_and_penalties_logits_are_the_same_array():
    logits = np.array([1, 2], np.float32)
    assert adjust_logits(logits, Sampling(temperature=1, min_p=0.5), [0], [1]) is logits


def test_a_penalty_of_the_first_token_has_an_empty_text():
    logits = np.array([1, 2], np.float32)
    assert adjust_logits(logits, Sampling(presence_penalty=2), [1], []).tolist() == [1, 2]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("min_p", -0.1),
        ("min_p", 1.1),
        ("min_p", math.nan),
        ("repetition_penalty", 0),
        ("repetition_penalty", math.inf),
        ("presence_penalty", 2.1),
        ("frequency_penalty", -2.1),
        ("logit_bias", ((5, 1.0),)),
        ("logit_bias", ((-1, 1.0),)),
        ("logit_bias", ((1, 101.0),)),
        ("logit_bias", ((1, math.nan),)),
        ("logit_bias", ((1, 1.0), (1, 2.0))),
    ],
)
def test_a_bias_or_penalty_outside_its_range_is_refused(name, value):
    with pytest.raises(SamplingError, match=f"{name}: bad value"):
        Sampling(**{name: value}).check(5)


def test_the_order_and_the_numbers_are_those_of_transformers():
    """Computed once by transformers 5.24's processors: repetition 1.3, temperature 0.7, top_k 6,
    top_p 0.9 and min_p 0.2, in that order, on these logits after the tokens 2, 5, 5."""
    logits = np.array([1.5, -0.5, 3.0, 2.75, 0.25, 2.5, -1.0, 2.0], np.float32)
    sampling = Sampling(temperature=0.7, top_k=6, top_p=0.9, min_p=0.2, repetition_penalty=1.3)
    adjusted = adjust_logits(logits, sampling, [2, 5], [5])
    drawn = [sample(adjusted, sampling, 0, step) for step in range(4000)]
    found = np.bincount(drawn, minlength=8) / 4000
    assert found == pytest.approx(TRANSFORMERS, abs=0.025)
    assert (found > 0).tolist() == [share > 0 for share in TRANSFORMERS]
