"""A mask over the logits: what it excludes never comes, and complete answers end."""

from dataclasses import dataclass, field

import numpy as np
import pytest

from planish.reference.engine import Engine
from planish.reference.errors import PlanishError
from planish.reference.files.load import open_checkpoint
from planish.reference.text.constraint import mask_logits
from planish.reference.text.requests import OneByOne, Request, answer
from planish.reference.text.sampling import Sampling
from tests.models import make_llama

V = 300  # the rows of the model's embedding


@dataclass
class Ascending:
    """Tokens that are larger than those before, at most `most` of them, below V."""

    most: int = 5
    seen: list[int] = field(default_factory=list)

    @property
    def is_complete(self):
        return len(self.seen) == self.most

    def allowed(self):
        return np.arange(V) > max(self.seen, default=-1)

    def accept(self, token):
        self.seen.append(token)


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    return Engine(open_checkpoint(make_llama(tmp_path_factory.mktemp("constraint"))))


def answered(engine, **fields):
    request = Request(prompt=(3, 4), **{"max_new_tokens": 9, **fields})
    return list(answer(engine.config, engine.weights, request))


def tokens_of(events):
    return [token for event in events for token in event.tokens]


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=1.5, seed=3)])
def test_only_allowed_tokens_come_until_nothing_may_follow(engine, sampling):
    events = answered(engine, sampling=sampling, constraint=Ascending)
    found = tokens_of(events)
    assert found == sorted(set(found)) and len(found) == 5
    assert (events[-1].finish, events[-1].end) == ("stop", None)
    free = tokens_of(answered(engine, sampling=sampling))
    assert free[:5] != sorted(set(free[:5]))


def test_a_complete_answer_ends_with_stop_even_at_the_last_token_and_a_part_with_length(engine):
    assert answered(engine, max_new_tokens=5, constraint=Ascending)[-1].finish == "stop"
    assert answered(engine, max_new_tokens=4, constraint=Ascending)[-1].finish == "length"


def test_no_bias_brings_back_what_is_excluded_and_scores_are_of_raw_logits(engine):
    sampling = Sampling(logit_bias=((0, 100.0),))
    events = answered(engine, sampling=sampling, constraint=Ascending, logprobs=2)
    assert tokens_of(events)[0] == 0 < tokens_of(events)[1]
    first = answered(engine, sampling=sampling, logprobs=2)[0]
    assert events[0].scores == first.scores


def test_an_empty_mask_fails_this_request_only(engine):
    nothing = Ascending(most=9, seen=[V - 1])
    session = OneByOne(engine.config, engine.weights)
    session.submit(Request(prompt=(3,), max_new_tokens=2, constraint=lambda: nothing))
    session.submit(Request(prompt=(3,), max_new_tokens=1))
    events = [event for _ in range(4) for event in session.step()]
    assert [event.finish for event in events] == ["error", "length"]
    assert events[0].error == "constraint: no token of the vocabulary continues the answer"


def test_a_mask_keeps_allowed_logits_as_they_are():
    wide = np.arange(V, dtype=np.float32)
    assert mask_logits(wide, None) is wide
    masked = mask_logits(wide, Ascending(seen=[9]))
    assert masked.dtype == np.float32
    assert np.isneginf(masked[:10]).all() and (masked[10:] == wide[10:]).all()
    with pytest.raises(PlanishError):
        mask_logits(wide, Ascending(seen=[V - 1]))
