"""Requests answered one by one: the same tokens as the generation loop, scores, ends, errors."""

import math
from dataclasses import replace

import numpy as np
import pytest

from planish.reference.engine import Engine
from planish.reference.errors import PromptError, SamplingError
from planish.reference.files.load import open_checkpoint
from planish.reference.text.evaluate import log_softmax
from planish.reference.text.generate import Stop
from planish.reference.text.requests import OneByOne, Request, answer, score_tokens
from planish.reference.text.sampling import Sampling
from tests.models import make_llama

DRAWN = Sampling(temperature=1.0, seed=7)


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    return Engine(open_checkpoint(make_llama(tmp_path_factory.mktemp("requests"))))


def answered(engine, request):
    return list(answer(engine.config, engine.weights, request))


def tokens_of(events):
    return [token for event in events for token in event.tokens]


def test_a_request_gives_the_tokens_of_the_generation_loop(engine):
    rows = list(engine.generate([[1, 2], [3, 4, 5]], Stop(6, ignore_eos=True), DRAWN))
    events = answered(engine, Request(prompt=(3, 4, 5), max_new_tokens=6, sampling=DRAWN, choice=1))
    assert tokens_of(events) == [token for row, token in rows if row == 1]
    assert [event.finish for event in events] == [None] * 5 + ["length"]


def test_penalties_and_bias_count_as_in_the_generation_loop(engine):
    sampling = Sampling(repetition_penalty=1.8, frequency_penalty=1.0, logit_bias=((3, 2.0),))
    rows = engine.generate([[3, 4, 5]], Stop(8, ignore_eos=True), sampling)
    events = answered(engine, Request(prompt=(3, 4, 5), max_new_tokens=8, sampling=sampling))
    plain = answered(engine, Request(prompt=(3, 4, 5), max_new_tokens=8))
    assert tokens_of(events) == [token for _, token in rows] != tokens_of(plain)


def test_an_end_id_ends_it_and_is_no_token_of_the_text(engine):
    found = tokens_of(answered(engine, Request(prompt=(9,), max_new_tokens=3)))
    *_, last = answered(engine, Request(prompt=(9,), max_new_tokens=3, ends=(found[1],)))
    assert (last.finish, last.end, last.tokens) == ("stop", found[1], ())


def test_an_end_id_comes_only_after_the_least_tokens(engine):
    free = tokens_of(answered(engine, Request(prompt=(9,), max_new_tokens=6)))
    request = Request(prompt=(9,), max_new_tokens=6, ends=tuple(free), min_new_tokens=3, logprobs=0)
    events = answered(engine, request)
    found = tokens_of(events)
    assert len(found) >= 3 and not set(found) & set(free)
    biased = Sampling(logit_bias=((free[0], 100.0),))
    *_, last = answered(engine, replace(request, sampling=biased))
    assert (last.finish, last.end, last.tokens) == ("stop", free[0], ())
    assert len(tokens_of(answered(engine, replace(request, sampling=biased)))) == 3


def test_scores_are_log_probabilities_of_the_raw_logits_best_first(engine):
    request = Request(
        prompt=(5, 6, 7), max_new_tokens=1, logprobs=3, prompt_logprobs=2, sampling=DRAWN
    )
    scored, new = answered(engine, request)
    log_p = log_softmax(engine.forward(request.prompt))
    assert scored.prompt[0] is None
    assert [s.logprob for s in scored.prompt[1:]] == [log_p[0, 6], log_p[1, 7]]
    best = np.argsort(-log_p[2])[:3]
    assert new.scores[0].top == tuple((int(i), float(log_p[2, i])) for i in best)
    assert new.scores[0].logprob == log_p[2, new.tokens[0]]


def test_the_probabilities_of_all_tokens_sum_to_one(engine):
    logits = engine.forward((5, 6, 7))
    for score in score_tokens(logits, [1, 2, 3], engine.config.vocab_size):
        assert sum(math.exp(value) for _, value in score.top) == pytest.approx(1, abs=1e-12)
        assert dict(score.top)[score.token] == score.logprob


def test_no_new_tokens_only_scores_the_prompt(engine):
    events = answered(engine, Request(prompt=(5, 6), max_new_tokens=0, prompt_logprobs=0))
    assert [len(event.prompt) for event in events] == [2, 0]
    assert events[-1].finish == "length"


def test_a_session_answers_in_order_and_forgets_what_was_cancelled(engine):
    session = OneByOne(engine.config, engine.weights)
    request = Request(prompt=(5, 6), max_new_tokens=2)
    first, second, third = (session.submit(request) for _ in range(3))
    session.step()
    session.cancel(first)
    session.cancel(second)
    events = []
    while not session.is_idle:
        events += session.step()
    ends = {event.handle: event.finish for event in events if event.finish}
    assert ends == {first: "cancelled", second: "cancelled", third: "length"}
    assert session.step() == []


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"prompt": ()}, PromptError),
        ({"prompt": (300,)}, PromptError),
        ({"max_new_tokens": 500}, PromptError),
        ({"logprobs": 21}, SamplingError),
        ({"sampling": Sampling(top_p=0.0)}, SamplingError),
    ],
)
def test_a_request_that_can_never_be_answered_is_refused_at_once(engine, changes, error):
    session = OneByOne(engine.config, engine.weights)
    with pytest.raises(error):
        session.submit(Request(**{"prompt": (1,), "max_new_tokens": 1, **changes}))
    assert session.is_idle


def test_logits_that_are_no_numbers_fail_this_request_only(engine):
    session = OneByOne(engine.config, engine.weights)
    broken = np.full_like(engine.weights.embed, np.nan)
    good, session.weights = (
        session.weights,
        type(engine.weights)(**{**vars(engine.weights), "embed": broken}),
    )
    failed = session.submit(Request(prompt=(5,), max_new_tokens=1))
    with np.errstate(invalid="ignore"):
        (event,) = session.step()
    assert (event.handle, event.finish) == (failed, "error")
    assert "logits" in event.error
    session.weights = good
    session.submit(Request(prompt=(5,), max_new_tokens=1))
    assert session.step()[0].finish == "length"
