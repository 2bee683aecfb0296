"""Completions: prompts in every form, ends, and echo with log-probabilities as lm_eval reads it."""

import numpy as np
import pytest
from openai.types import Completion

from planish.openai import completions
from planish.openai.scores import top_texts
from planish.reference.text.evaluate import log_softmax
from planish.reference.text.requests import Event, TokenScore
from tests.planish.openai.conftest import script

IDS = [72, 105, 10, 200]


def texts(whole):
    return [choice["text"] for choice in whole["choices"]]


@pytest.mark.parametrize(
    ("prompt", "count"), [("ab", 1), (["ab", "c"], 2), (IDS, 1), ([IDS, [5]], 2)]
)
def test_a_prompt_is_a_text_ids_or_several(api, prompt, count):
    whole = api.whole(api.complete(prompt, n=3, max_tokens=2, seed=1))
    read = Completion.model_validate(whole)
    assert read.object == "text_completion"
    assert [choice.index for choice in read.choices] == list(range(3 * count))
    lengths = {"ab": 2, "c": 1}
    given = [prompt] if count == 1 else prompt
    size = sum(lengths[p] if isinstance(p, str) else len(p) for p in given)
    assert read.usage.prompt_tokens == size  # each prompt once
    assert read.usage.completion_tokens == 6 * count


@pytest.mark.parametrize("prompt", [None, [], [[]], 5, [1, "a"], [True], [["a"]], {"a": 1}, [1.0]])
def test_another_prompt_is_refused(api, prompt):
    assert api.refusal(api.complete, prompt=prompt).param.startswith("prompt")


@pytest.mark.parametrize("prompt", [[300], [-1], [[5], [10**30]], ""])
def test_ids_outside_the_vocabulary_and_no_tokens_are_refused(api, prompt):
    assert api.refusal(api.complete, prompt=prompt).param == "prompt"


def test_the_seed_and_the_index_of_a_choice_decide_its_text(api):
    whole = api.whole(api.complete(["ab", "ab"], n=2, max_tokens=8, seed=11))
    again = api.whole(api.complete("ab", n=4, max_tokens=8, seed=11))
    assert texts(whole) == texts(again)
    assert len(set(texts(whole))) == 4
    alone = api.whole(api.complete("ab", max_tokens=8, seed=11))
    assert texts(alone) == texts(whole)[:1]


def test_without_a_seed_answers_differ_and_their_seed_gives_them_again(api):
    answers = [api.whole(api.complete("ab", max_tokens=8)) for _ in range(5)]
    assert len({texts(one)[0] for one in answers}) == 5
    again = api.whole(api.complete("ab", max_tokens=8, seed=answers[0]["seed"]))
    assert texts(again) == texts(answers[0])


def test_a_seed_of_minus_one_is_random_and_other_negative_ones_are_not(api):
    assert api.complete(seed=-1).seed != api.complete(seed=-1).seed
    assert api.complete(seed=-2).seed == 2**64 - 2


@pytest.mark.parametrize("new", [0, 1])
def test_echo_scores_every_token_of_the_prompt(api, new):
    given = {"max_tokens": new, "logprobs": 1, "echo": True, "temperature": 0}
    (choice,) = api.whole(api.complete(IDS, **given))["choices"]
    log_p = log_softmax(api.engine.forward(IDS))
    found = choice["logprobs"]
    assert {len(values) for values in found.values()} == {len(IDS) + new}
    assert found["token_logprobs"][0] is None and found["top_logprobs"][0] is None
    expected = [log_p[i, token] for i, token in enumerate(IDS[1:])]
    assert found["token_logprobs"][1 : len(IDS)] == pytest.approx(expected, abs=1e-5)
    tops = found["top_logprobs"][1 : len(IDS)]
    assert [max(top.values()) for top in tops] == [row.max() for row in log_p[:-1]]
    given = zip(found["token_logprobs"][1:], tops, strict=False)
    assert all(value in top.values() for value, top in given)


def test_echo_counts_an_end_as_a_token_so_that_lm_eval_cuts_off_the_right_one(api):
    bias = {"257": 100}  # the model's end
    given = {"max_tokens": 1, "logprobs": 1, "echo": True, "temperature": 0, "logit_bias": bias}
    (choice,) = api.whole(api.complete(IDS, **given))["choices"]
    assert choice["finish_reason"] == "stop"
    assert choice["text"] == api.served.tokenizer.decode(IDS)
    assert choice["logprobs"]["tokens"][-1] == "</s>"
    assert len(choice["logprobs"]["token_logprobs"]) == len(IDS) + 1


def test_lm_eval_sums_what_the_reference_sums(api):
    """The sums and the greedy flag of lm_eval's parse_logprobs."""
    given = {"max_tokens": 1, "logprobs": 1, "echo": True, "temperature": 0, "seed": 1234}
    log_p = log_softmax(api.engine.forward(IDS))
    greedy = [*IDS[:3], int(log_p[2].argmax())]
    whole = api.whole(api.complete([IDS, greedy], **given))
    for ids, choice in zip((IDS, greedy), whole["choices"], strict=True):
        scored = choice["logprobs"]
        total = sum(scored["token_logprobs"][3:-1])
        pairs = zip(scored["token_logprobs"][3:-1], scored["top_logprobs"][3:-1], strict=True)
        is_greedy = all(value == max(top.values()) for value, top in pairs)
        assert total == pytest.approx(log_p[2, ids[3]], abs=1e-5)
        assert is_greedy == (ids[3] == greedy[3])


def test_offsets_are_characters_of_the_echoed_text(api):
    given = {"max_tokens": 3, "logprobs": 0, "echo": True, "seed": 1}
    (choice,) = api.whole(api.complete("<s>héj", **given))["choices"]
    assert choice["text"].startswith("<s>héj")
    assert choice["logprobs"]["text_offset"][:6] == [0, 3, 4, 4, 5, 6]
    assert choice["logprobs"]["tokens"][:5] == ["<s>", "h", "bytes:\\xc3", "bytes:\\xa9", "j"]


def test_echo_is_the_first_part_of_a_stream(api):
    given = {"max_tokens": 4, "logprobs": 2, "echo": True, "seed": 1}
    (whole,) = api.whole(api.complete("abc", **given))["choices"]
    _, chunks = api.stream(api.complete("abc", stream=True, **given))
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    assert choices[0]["text"] == "abc"
    assert "".join(one["text"] for one in choices) == whole["text"]
    for name, values in whole["logprobs"].items():
        parts = [one["logprobs"][name] for one in choices if one["logprobs"]]
        assert [value for part in parts for value in part] == values
    assert choices[-1]["finish_reason"] == whole["finish_reason"] == "length"


def test_log_zero_is_a_number(api):
    score = TokenScore(token=5, logprob=-np.inf, top=((6, 0.0),))
    assert min(top_texts(api.served.vocabulary, score).values()) == -9999.0


def test_a_larger_value_stays_where_two_tokens_are_the_same_text(api):
    score = TokenScore(token=290, logprob=-3.0, top=((291, -1.0),))  # rows without a text
    assert top_texts(api.served.vocabulary, score) == {"": -1.0}


def test_a_prompt_that_does_not_fit_is_refused_before_it_is_made_text(api, monkeypatch):
    monkeypatch.setattr(completions, "echo_ids", lambda *_: pytest.fail("is made text"))
    refused = api.refusal(api.complete, prompt=[5] * 10**5, echo=True, logprobs=1)
    assert refused.code == "context_length_exceeded"


def test_max_tokens_0_scores_or_says_nothing(api):
    assert texts(api.whole(api.complete("ab", max_tokens=0))) == [""]
    assert texts(api.whole(api.complete("ab", max_tokens=0, echo=True))) == ["ab"]


def test_events_after_the_end_change_nothing(api):
    answer = api.complete("ab", stop="b").open()
    first, *rest = script(api.served.tokenizer.encode("abc"), size=2)
    answer.feed(0, first)
    assert answer.is_done(0) and answer.finished
    assert [answer.feed(0, event) for event in rest] == [[]]
    assert answer.whole()["usage"]["completion_tokens"] == 2


def test_a_failure_of_the_engine_is_told(api):
    answer = api.complete("ab").open()
    assert answer.feed(0, Event(handle=1, finish="error", error="logits: NaN")) == []
    assert answer.failure == "logits: NaN"


def test_guesses_are_counted_where_a_session_made_some(api):
    job = api.complete(max_tokens=4)
    assert "completion_tokens_details" not in api.whole(job)["usage"]
    answer = job.open()
    answer.feed(0, Event(handle=1, tokens=(70, 71), accepted=1, rejected=6))
    answer.feed(0, Event(handle=1, tokens=(72, 73), accepted=1, finish="length"))
    details = answer.whole()["usage"]["completion_tokens_details"]
    assert details == {"accepted_prediction_tokens": 2, "rejected_prediction_tokens": 6}
