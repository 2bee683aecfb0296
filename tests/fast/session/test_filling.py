"""Which prompts' tokens a step computes."""

import pytest

from planish.fast.session.filling import fill_step
from planish.fast.session.rows import STEP_TOKENS, Row, make_plan
from planish.reference.text.requests import Request


def reading(*lengths, scored=None, written=0):
    """Rows whose prompts have these lengths; row 0 is the first."""
    return [
        Row(
            handle=number,
            request=Request(prompt=(5,) * length, max_new_tokens=1, prompt_logprobs=scored),
            number=number,
            pages=[],
            tokens=[5] * length,
            written=written,
            cached=0,
        )
        for number, length in enumerate(lengths)
    ]


def counts(parts):
    return [(part.row.number, part.count) for part in parts]


def test_short_prompts_share_a_step():
    parts = fill_step(0, reading(20, 30, 14), 0.0)
    assert counts(parts) == [(0, 20), (1, 30), (2, 14)]
    assert all(part.is_last for part in parts)


def test_a_step_ends_within_the_prompt_that_does_not_fit():
    assert counts(fill_step(0, reading(500, 100), 0.0)) == [(0, 500), (1, 12)]
    assert counts(fill_step(0, reading(600, written=550), 0.0)) == [(0, 50)]


@pytest.mark.parametrize(
    ("answering", "length", "count"),
    [(0, 72, 64), (8, 64, 56), (0, 97, 97), (8, 20, 20), (0, 33, 32), (0, 512, 512)],
)
def test_a_step_that_would_be_padded_by_more_than_a_quarter_takes_less(answering, length, count):
    assert counts(fill_step(answering, reading(length), 0.0)) == [(0, count)]
    assert counts(fill_step(answering, reading(length), 0.0, padded=True)) == [(0, length)]


@pytest.mark.parametrize(
    ("answering", "seconds", "tokens"),
    [(1, 0.001, 64), (4, 0.0005, 128), (1, 0.1, 32), (16, 0.1, 32), (31, 0.1, 64), (0, 0.1, 512)],
)
def test_who_is_answered_waits_for_so_many_tokens(answering, seconds, tokens):
    """At most 0.12 s where that is enough for as many tokens as rows are answered."""
    (part,) = fill_step(answering, reading(2000), seconds)
    assert part.count + answering == tokens


def test_every_step_makes_progress():
    assert counts(fill_step(256, reading(9), 1.0)) == [(0, 9)]
    assert counts(fill_step(60, reading(20), 0.0)) == [(0, 20)]
    assert counts(fill_step(600, reading(9), 1.0)) == [(0, 1)]
    assert counts(fill_step(200, reading(9, scored=0), 1.0)) == [(0, 1)]


def test_scored_prompts_have_steps_of_their_own():
    rows = [*reading(10, 20, 50, scored=1), *reading(9)]
    assert counts(fill_step(4, rows, 0.0)) == [(0, 10), (1, 20), (2, 30)]
    assert counts(fill_step(4, rows[::-1], 0.0)) == [(0, 9)]


def test_the_logits_of_each_prompts_last_token_are_wanted_and_all_of_a_scored_one():
    answering = reading(3)
    answering[0].number = 7
    plan = make_plan(answering, fill_step(1, reading(4, 3, 9000), 0.0))
    assert plan.wanted == [0, 4, 7]
    assert (plan.rows[:9], plan.positions[:9]) == (
        [7, *[0] * 4, *[1] * 3, 2],
        [2, *range(4), 0, 1, 2, 0],
    )
    assert len(plan.tokens) == STEP_TOKENS[-1]
    assert make_plan([], fill_step(0, reading(3, 2, scored=0), 0.0)).wanted == [0, 1, 2, 3, 4]
