"""Guesses change no byte of an answer, and stop where they do not pay."""

from __future__ import annotations

from dataclasses import replace

import pytest

from planish.fast.session.batching import Batching
from planish.fast.session.engine import Engine
from planish.fast.session.lookup import PAUSE, UNKNOWN, Costs, Guesser, guesses_of
from planish.reference.files.load import open_checkpoint
from planish.reference.text.requests import Request
from planish.reference.text.sampling import Sampling
from tests.models import make_llama

MEMORY = 2**27


@pytest.mark.parametrize(
    ("tokens", "count", "expected"),
    [
        ([1, 2, 3, 4, 5, 1, 2, 3], 2, [4, 5]),
        ([7, 2, 3, 4, 9, 2, 3, 5, 1, 2, 3], 2, [5, 1]),  # the last occurrence
        ([1, 2, 3, 4, 8, 2, 3, 5, 1, 2, 3], 2, [4, 8]),  # the longest
        ([1, 2, 3], 4, []),
        ([5, 1, 5], 4, []),  # one token is not enough
        ([5, 5, 5], 4, [5, 5, 5, 5]),
        ([1, 2, 1, 2], 5, [1, 2, 1, 2, 1]),  # what repeats goes on repeating
        ([1, 2, 1, 2], 0, []),
        ([1], 4, []),
    ],
)
def test_what_followed_the_last_tokens_before_is_guessed(tokens, count, expected):
    assert Guesser(tokens=tokens).guess(count) == expected
    grown = list[int]()
    guesser = Guesser(tokens=grown)
    for token in tokens:
        grown.append(token)
        found = guesser.guess(count)
    assert found == expected


def test_guesses_that_do_not_pay_pause():
    tokens = [1, 2] * 20
    guesser = Guesser(tokens=tokens)
    for accepted in (7, 7, 0, 7):
        guesser.learn(accepted, 1.5)
    assert guesser.guess(1) == [1]
    while not guesser.resume:
        guesser.learn(0, 1.5)
    assert guesser.guess(1) == []
    tokens += [1, 2] * (PAUSE // 2 - 1)
    assert guesser.guess(1) == []
    tokens += [1, 2]
    assert guesser.guess(1) == [1]
    guesser.learn(1, 1.5)  # measured anew
    tokens += [1, 2] * PAUSE
    assert (guesser.guess(1), len(tokens)) == ([1], guesser.resume)  # twice as long
    guesser.learn(7, 1.5)
    guesser.learn(0, 9.0)
    assert guesser.resume == len(tokens) + PAUSE


def test_a_step_that_verifies_must_save_what_it_costs():
    costs = Costs()
    assert costs.needed(1) == UNKNOWN
    costs.note_verifying(1, 0.02)
    costs.note_plain(1, 0.008)
    costs.note_plain(2, 0.009)
    assert costs.needed(1) == pytest.approx(1.5)
    assert costs.needed(2) == UNKNOWN


@pytest.mark.parametrize(
    ("rows", "most", "left", "count"),
    [(1, 7, 99, 7), (1, 3, 99, 3), (2, 7, 99, 3), (1, 7, 3, 2), (1, 7, 1, 0)],
)
def test_guesses_fit_in_a_step_and_in_the_answer(rows, most, left, count):
    assert guesses_of(rows, most, left) == count


@pytest.fixture(scope="module")
def engine(tmp_path_factory, kernels):
    source = make_llama(tmp_path_factory.mktemp("lookup"), max_position_embeddings=400)
    return Engine(open_checkpoint(source), native=True)


class Clock:
    """Every step takes as long, so that guesses pay as soon as one is right."""

    def __init__(self):
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 0.03
        return self.now


def answers(engine, requests, lookup):
    """The events of every request, merged, without how they came about."""
    session = Batching(engine, 2, 400, MEMORY, lookup=lookup, clock=Clock())
    handles, found = [session.submit(request) for request in requests], {}
    while not session.is_idle:
        for event in session.step():
            before = found.get(event.handle)
            if before is not None:
                event = replace(
                    event,
                    tokens=before.tokens + event.tokens,
                    scores=before.scores + event.scores,
                    prompt=before.prompt or event.prompt,
                    accepted=before.accepted + event.accepted,
                    rejected=before.rejected + event.rejected,
                )
            found[event.handle] = event
    assert session.pages.available == session.pages.count
    return [found[handle] for handle in handles]


REPEATS = (17, 41, 99, 3, 250, 66, 14, 90) * 6
DRAWN = Sampling(temperature=0.7, seed=11)
SAMPLINGS = {
    "greedy": Request(prompt=REPEATS, max_new_tokens=90),
    "drawn": Request(prompt=REPEATS, max_new_tokens=60, sampling=DRAWN, choice=3),
    "filtered": Request(
        prompt=REPEATS, max_new_tokens=60, sampling=replace(DRAWN, top_k=3, top_p=0.8, min_p=0.2)
    ),
    "penalized": Request(
        prompt=REPEATS, max_new_tokens=60, sampling=Sampling(frequency_penalty=-2)
    ),
    "biased": Request(
        prompt=REPEATS, max_new_tokens=60, sampling=Sampling(logit_bias=((9, 99.0),))
    ),
    "scored": Request(prompt=REPEATS, max_new_tokens=60, logprobs=3, prompt_logprobs=1),
}


@pytest.mark.matrix(6)
@pytest.mark.parametrize("name", SAMPLINGS)
def test_answers_are_the_same_with_guesses(engine, name):
    request = SAMPLINGS[name]
    (plain,) = answers(engine, [request], 0)
    assert (plain.accepted, plain.rejected) == (0, 0)
    (guessed,) = answers(engine, [request], 7)
    assert replace(guessed, accepted=0, rejected=0) == plain
    if name in ("greedy", "penalized", "biased", "scored"):
        assert guessed.accepted > 10
    ended = replace(request, ends=(plain.tokens[20],))
    one, other = (answers(engine, [ended], lookup)[0] for lookup in (0, 5))
    assert (one.tokens, one.scores, one.end) == (other.tokens, other.scores, other.end)
    assert one.finish == "stop"


@pytest.mark.whole
def test_two_rows_guess_in_the_same_steps(engine):
    requests = [*SAMPLINGS.values()]
    alone = [answers(engine, [request], 0)[0] for request in requests]
    together = answers(engine, requests, 7)
    for one, other in zip(alone, together, strict=True):
        assert (one.tokens, one.scores, one.finish) == (other.tokens, other.scores, other.finish)
    assert sum(one.accepted for one in together) > 20
