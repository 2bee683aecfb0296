"""Bodies: every bound is a refusal that names the field, and no bytes are an exception."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from planish.openai import chat, completions, tokens
from planish.openai.bodies import parse_body
from planish.openai.errors import RequestRefused, error_body
from planish.reference.text.tokenizer import Tokenizer
from tests.planish.openai.conftest import body

BOUNDS = [
    ("temperature", 1e30),
    ("temperature", -1),
    ("temperature", "1"),
    ("temperature", True),
    ("top_p", 0),
    ("top_p", 2),
    ("top_k", -2),
    ("top_k", 1.5),
    ("min_p", 1.1),
    ("repetition_penalty", 0),
    ("presence_penalty", 2.1),
    ("frequency_penalty", -2.1),
    ("n", 0),
    ("n", 10**9),
    ("max_tokens", -1),
    ("max_tokens", 10**18),
    ("max_tokens", "1"),
    ("stop", ["a"] * 10**5),
    ("stop", ""),
    ("stop", [""]),
    ("stop", 5),
    ("stop", [5] * 10**5),
    ("stop_token_ids", [300]),
    ("stop_token_ids", [-1]),
    ("stop_token_ids", list(range(10))),
    ("logit_bias", {"300": 1}),
    ("logit_bias", {"-1": 1}),
    ("logit_bias", {"a": 1}),
    ("logit_bias", {"5": 101}),
    ("logit_bias", {"5": 1, "05": 1}),
    ("logit_bias", [5]),
    ("seed", 2**70),
    ("seed", 1.5),
    ("stream", "yes"),
    ("stream_options", {"include_usage": True}),  # of what is not streamed
    ("response_format", {"type": "xml"}),
    ("response_format", {"type": "json_schema"}),
    ("min_tokens", -1),
    ("min_tokens", 10**6),
    ("skip_special_tokens", "no"),
    ("model", 5),
]
CHAT = [
    ("logprobs", 1),
    ("top_logprobs", 1),  # without logprobs
    ("max_completion_tokens", -1),
    ("tool_choice", "required"),
    ("tools", [{"type": "search"}]),
    ("tools", [5] * 10**5),
    ("messages", []),
    ("messages", "Hi"),
    ("messages", [{"role": "user"}, {"role": "king"}]),
    ("messages", [5] * 10**5),
    ("chat_template", "{{ 1 }}"),
    ("chat_template_kwargs", {"messages": []}),
    ("reasoning_effort", "high"),
    ("modalities", ["audio"]),
    ("add_generation_prompt", False),
]
COMPLETION = [
    ("logprobs", 21),
    ("logprobs", True),
    ("best_of", 2),
    ("suffix", "x"),
    ("echo", "yes"),
    ("prompt", [[1]] * 200),
]


@pytest.mark.parametrize(("field", "value"), [*BOUNDS, *CHAT])
def test_a_chat_out_of_bounds_is_refused_by_its_field(api, field, value):
    refused = api.refusal(api.chat, **{field: value})
    assert refused.status == 400
    assert refused.param.partition(".")[0] == field
    assert field in str(refused)


@pytest.mark.matrix(2)
@pytest.mark.parametrize(("field", "value"), [*BOUNDS, *COMPLETION])
def test_a_completion_out_of_bounds_is_refused_by_its_field(api, field, value):
    refused = api.refusal(api.complete, **{field: value})
    assert refused.status == 400
    assert refused.param.partition(".")[0] == field


def test_the_likeliest_tokens_are_at_most_twenty(api):
    assert api.refusal(api.chat, logprobs=True, top_logprobs=21).param == "top_logprobs"
    assert api.chat(logprobs=True, top_logprobs=20).requests[0].logprobs == 20


def test_what_changes_nothing_is_ignored(api):
    ignored = {"user": "u", "metadata": {"a": 1}, "store": True, "anything": [1], "mirostat": 0}
    neutral = {"suffix": None, "best_of": 1, "length_penalty": 1.0, "tools": None, "n": None}
    job = api.complete("ab", seed=1, **ignored, **neutral)
    assert job.requests == api.complete("ab", seed=1).requests


def test_fields_become_sampling_and_those_left_out_take_the_defaults(api):
    fields = {
        "temperature": 0.5,
        "top_p": 0.9,
        "min_p": 0.1,
        "repetition_penalty": 1.1,
        "presence_penalty": -1,
        "frequency_penalty": 2,
        "seed": 3,
    }
    sampling = api.complete(**fields, top_k=7, logit_bias={"5": -100, "3": 1}).requests[0].sampling
    assert {name: getattr(sampling, name) for name in fields} == fields
    assert (sampling.top_k, sampling.logit_bias) == (7, ((3, 1.0), (5, -100.0)))
    plain = api.complete().requests[0].sampling
    assert (plain.temperature, plain.top_k, plain.top_p) == (1.0, 0, 1.0)
    assert api.complete(top_k=-1).requests[0].sampling.top_k == 0
    assert api.complete(top_k=10**6).requests[0].sampling.top_k == 0  # all of them


def test_bias_bans_and_forces(api):
    bias = {str(token): -100 for token in range(200)} | {"77": 100}
    (request,) = api.complete(max_tokens=3, temperature=0, logit_bias=bias).requests
    choice = api.whole(api.complete(max_tokens=3, temperature=0, logit_bias=bias))["choices"][0]
    assert choice["text"] == api.served.tokenizer.decode([77] * 3)
    assert request.sampling.logit_bias[77] == (77, 100.0)


@pytest.mark.parametrize(
    ("prompt", "new", "param"), [(100, 30, "max_tokens"), (129, 1, "prompt"), (129, None, "prompt")]
)
def test_what_does_not_fit_is_refused_with_the_numbers(api, prompt, new, param):
    refused = api.refusal(api.complete, prompt=[5] * prompt, max_tokens=new)
    assert (refused.code, refused.param) == ("context_length_exceeded", param)
    assert str(prompt) in str(refused) and "128" in str(refused)


@pytest.mark.parametrize("field", ["prompt", "content"])
def test_a_text_that_can_never_fit_is_refused_before_it_is_tokenized(api, monkeypatch, field):
    monkeypatch.setattr(Tokenizer, "encode", lambda *_, **__: pytest.fail("is tokenized"))
    read = api.complete if field == "prompt" else api.chat
    refused = api.refusal(read, **{field: "a" * 10**5})
    assert refused.code == "context_length_exceeded"
    assert "100000" in str(refused) and "128" in str(refused)


def test_without_max_tokens_the_default_or_what_fits(api):
    assert api.complete([5] * 100).requests[0].max_new_tokens == 29  # the last needs no position
    assert api.with_(max_tokens=9).complete([5]).requests[0].max_new_tokens == 9
    assert api.complete([5] * 128).requests[0].max_new_tokens == 1


def test_ends_are_the_models_and_the_requests(api):
    assert api.complete().requests[0].ends == (257,)
    assert api.complete(stop_token_ids=[3, 257]).requests[0].ends == (257, 3)
    assert api.complete(stop_token_ids=[3], ignore_eos=True).requests[0].ends == (3,)


def test_the_model_is_this_one_or_404(api):
    assert api.complete(model="tiny").requests and api.complete(model="default").requests
    refused = api.refusal(api.complete, model="other")
    assert (refused.status, refused.code) == (404, "model_not_found")
    assert refused.body()["error"]["type"] == "not_found_error"
    assert api.with_(any_model=True).complete(model="other").requests


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[]",
        b"5",
        b'"a"',
        b"\xff",
        b'{"n": NaN}',
        b'{"temperature": 1e999}',
        b'{"a": 1, "a": 2}',
        b'{"prompt": "\\ud800"}',
        b'{"\\udc00": 1}',
        b'{"a": ' + b"[" * 100_000,
        b'{"a": ' + b"[" * 300 + b"]" * 300 + b"}",
        b'{"seed": ' + b"9" * 5000 + b"}",
        b'{"a": \x00}',
    ],
)
def test_a_body_that_is_no_json_object_is_refused(raw):
    with pytest.raises(RequestRefused) as refused:
        parse_body(raw)
    assert refused.value.status == 400
    assert json.dumps(refused.value.body())


FIELDS = [name for name, _ in [*BOUNDS, *CHAT, *COMPLETION]]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)
READERS = [chat.read_chat, completions.read_completion, tokens.tokenize, tokens.detokenize]


def outcome(read, raw, served):
    """The status of what a body leads to; no other exception than a refusal."""
    try:
        read(raw, served)
    except RequestRefused as refused:
        return refused.status
    return 200


@given(st.dictionaries(st.sampled_from([*FIELDS, "content", "tokens"]), VALUES, max_size=4))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_values_are_a_job_or_a_refusal(api, fields):
    given = {"prompt": "a", "messages": [{"role": "user", "content": "a"}], **fields}
    for read in READERS:
        assert outcome(read, body(**given), api.served) in (200, 400, 404)


GOOD = body(
    messages=[{"role": "user", "content": [{"type": "text", "text": "a"}]}],
    stop=["a"],
    logit_bias={"5": 1},
    prompt=[[1, 2]],
)


@given(st.integers(0, len(GOOD) - 1), st.binary(max_size=3))
@settings(max_examples=150, deadline=None)
def test_any_change_of_a_body_is_a_job_or_a_refusal(api, place, change):
    for read in READERS:
        assert outcome(read, GOOD[:place] + change + GOOD[place + 1 :], api.served) in (
            200,
            400,
            404,
        )


def test_errors_have_openais_form():
    for status, kind in [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (404, "not_found_error"),
        (413, "invalid_request_error"),
        (429, "rate_limit_error"),
        (503, "server_error"),
    ]:
        error = error_body(status, "no\nmore", param="p", code="c")["error"]
        assert error == {"message": "no more", "type": kind, "param": "p", "code": "c"}


def test_min_tokens_excludes_every_end_before(api):
    (request,) = api.complete(min_tokens=4, max_tokens=9, stop_token_ids=[5]).requests
    assert (request.min_new_tokens, request.excluded(3), request.excluded(4)) == (4, (257, 5), ())
    assert api.complete(max_tokens=9).requests[0].excluded(0) == ()
    for also in ({"stop": "a"}, {"response_format": {"type": "json_object"}}):
        assert api.refusal(api.complete, min_tokens=4, **also).param == "min_tokens"
