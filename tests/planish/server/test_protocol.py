"""What openai's client sees of a server: the endpoints, streams, errors and figures."""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from planish.fast.session.opening import open_session
from tests.planish.server.serving import Serving, describe

MESSAGES = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def client(server):
    with server.client() as client:
        yield client


@pytest.fixture(scope="module")
def http(server):
    with server.http() as http:
        yield http


def joined(stream):
    return "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)


def test_the_model_is_listed_and_another_is_not_found(client):
    (model,) = client.models.list().data
    assert (model.id, model.object, model.owned_by) == ("tiny", "model", "planish")
    assert model.max_model_len == 512
    assert client.models.retrieve("tiny").id == client.models.retrieve("default").id == "tiny"
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("a/b")
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt-x", messages=MESSAGES)
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


def test_a_chat_is_answered(client):
    found = client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=5)
    assert found.id.startswith("chatcmpl-") and found.object == "chat.completion"
    (choice,) = found.choices
    assert choice.message.role == "assistant" and choice.finish_reason in ("stop", "length")
    usage = found.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert usage.prompt_tokens == len("<|user|>\nHello<|end|>\n<|assistant|>\n")


@pytest.mark.parametrize("sampling", [{"temperature": 0}, {"temperature": 1.0, "seed": 5}])
def test_a_stream_says_what_the_whole_answer_says(client, sampling):
    asked = {"model": "tiny", "messages": MESSAGES, "max_tokens": 24, **sampling}
    whole = client.chat.completions.create(**asked)
    options = {"include_usage": True}
    chunks = list(client.chat.completions.create(stream=True, stream_options=options, **asked))
    assert joined(chunks) == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert len({chunk.id for chunk in chunks}) == len({chunk.created for chunk in chunks}) == 1
    assert chunks[-1].choices == [] and chunks[-2].choices[0].finish_reason
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_a_stream_on_the_wire(http):
    body = {"model": "tiny", "prompt": "ab", "max_tokens": 3, "stream": True}
    found = http.post("/v1/completions", json=body)
    assert found.headers["content-type"] == "text/event-stream; charset=utf-8"
    events = found.text.split("\n\n")
    assert events[0] == ": waiting" and events[-2:] == ["data: [DONE]", ""]
    values = [json.loads(event.removeprefix("data: ")) for event in events[1:-2]]
    reasons = [value["choices"][0]["finish_reason"] for value in values]
    assert reasons[:-1] == [None] * (len(reasons) - 1) and reasons[-1] in ("stop", "length")
    assert all("usage" not in value for value in values)


def test_completions_of_several_prompts_are_in_order(client):
    for prompt in ("ab", ["ab", "cd"], [97, 98], [[97, 98], [99]]):
        found = client.completions.create(model="tiny", prompt=prompt, n=3, max_tokens=2)
        prompts = len(prompt) if isinstance(prompt[0], list) or prompt == ["ab", "cd"] else 1
        assert [choice.index for choice in found.choices] == list(range(3 * prompts))


def test_no_new_tokens_score_the_prompt(client):
    asked = {"model": "tiny", "prompt": "abc", "echo": True, "logprobs": 1}
    for most, count in ((0, 3), (1, 4)):
        found = client.completions.create(max_tokens=most, temperature=0, **asked).choices[0]
        assert len(found.logprobs.token_logprobs) == count
        assert found.logprobs.token_logprobs[0] is None
        assert found.text.startswith("abc")


def test_a_stop_string_ends_the_text_and_the_computing(client, server):
    asked = {"model": "tiny", "prompt": "ab", "temperature": 0}
    text = client.completions.create(max_tokens=40, **asked).choices[0].text
    stop = text[5:7]
    found = client.completions.create(max_tokens=400, stop=stop, **asked)
    assert found.choices[0].text == text[: text.index(stop)]
    assert found.choices[0].finish_reason == "stop"
    streamed = client.completions.create(max_tokens=400, stop=stop, stream=True, **asked)
    pieces = [chunk.choices[0].text for chunk in streamed]
    assert "".join(pieces) == text[: text.index(stop)]
    server.until_idle()


def test_a_seed_says_the_same_among_others_and_no_seed_something_else(client):
    def ask(seed=None):
        given = {} if seed is None else {"seed": seed}
        asked = {"model": "tiny", "prompt": "ab", "max_tokens": 20, "temperature": 1.0}
        return client.completions.create(**asked, **given).choices[0].text

    alone = [ask(seed) for seed in range(4)]
    with ThreadPoolExecutor(12) as pool:
        among = list(pool.map(ask, [0, 1, 2, 3] * 3))
    assert among == alone * 3
    assert len({ask() for _ in range(5)}) == 5


def test_a_repeated_prompt_is_found_in_the_cache(client):
    asked = {"model": "tiny", "prompt": "x" * 200, "max_tokens": 8, "temperature": 0}
    first = client.completions.create(**asked)
    again = client.completions.create(**asked)
    assert again.usage.prompt_tokens_details.cached_tokens > 100
    assert again.choices[0].text == first.choices[0].text
    salted = client.completions.create(**asked, extra_body={"cache_salt": "other"})
    assert salted.usage.prompt_tokens_details.cached_tokens == 0


def test_a_seed_says_the_same_after_a_prefix_was_found_and_after_a_restart(engine, quantized):
    body = {"prompt": "y" * 200, "max_tokens": 20, "temperature": 1.0, "seed": 7}
    answers, cached = [], []
    for asked in (2, 1):  # a second server knows no prefix
        opened = Serving(lambda: open_session(engine, slots=4, context=512), describe(quantized))
        with opened as serving, serving.http() as http:
            for _ in range(asked):
                found = http.post("/v1/completions", json=body).json()
                answers.append(found["choices"])
                cached.append(found["usage"]["prompt_tokens_details"]["cached_tokens"])
    assert cached == [0, 199, 0]
    assert answers[0] == answers[1] == answers[2]


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"temperature": -1}, "temperature"),
        ({"top_p": 2}, "top_p"),
        ({"n": 10**9}, "n"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 511}, "max_tokens"),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs"),
        ({"seed": 2**70}, "seed"),
        ({"stop": [""]}, "stop"),
    ],
)
def test_what_cannot_be_done_is_refused_by_the_name_of_its_field(client, changes, param):
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**{"model": "tiny", "messages": MESSAGES, **changes})
    assert caught.value.param.startswith(param)


def test_texts_and_tokens(http):
    found = http.post("/tokenize", json={"prompt": "ab"}).json()
    assert found["tokens"] == [64, 65] and found["max_model_len"] == 512
    assert http.post("/detokenize", json={"tokens": [64, 65]}).json()["prompt"] == "ab"
    text = http.post("/apply-template", json={"messages": MESSAGES}).json()["prompt"]
    assert text == "<|user|>\nHello<|end|>\n<|assistant|>\n"
    assert http.get("/tokenizer_info").json()["eos_token"] == "</s>"


def test_health(http):
    found = http.get("/health")
    assert (found.status_code, found.json()) == (200, {"status": "ok"})


@pytest.mark.parametrize("path", ["/v1", "/v1/../health", "/v1/%2e%2e/health", "//health"])
def test_other_paths_are_not_found(server, path):
    found = server.raw(
        f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
    )
    assert b" 404 " in found.split(b"\r\n")[0]
    assert json.loads(found.partition(b"\r\n\r\n")[2])["error"]["type"] == "not_found_error"


def test_a_method_that_an_endpoint_does_not_take(http):
    found = http.get("/v1/chat/completions")
    assert (found.status_code, found.headers["allow"]) == (405, "POST")
    assert found.json()["error"]["type"] == "invalid_request_error"
    assert http.delete("/v1/models").status_code == 405


def test_metrics_are_the_sums_of_usage(client, http, server):
    def read():
        families = text_string_to_metric_families(http.get("/metrics").text)
        return {s.name: s.value for family in families for s in family.samples if not s.labels}

    before = read()
    usages = [
        client.completions.create(model="tiny", prompt="abc", n=2, max_tokens=k).usage
        for k in (1, 4)
    ]
    server.until_idle()
    after = read()
    grown = {name: after[name] - before[name] for name in after if name in before}
    assert grown["planish:prompt_tokens_total"] == sum(u.prompt_tokens for u in usages) == 6
    assert grown["planish:generation_tokens_total"] == sum(u.completion_tokens for u in usages)
    assert grown["planish:time_to_first_token_seconds_count"] == 2
    assert after["planish:num_requests_running"] == 0
    assert after["planish:programs_compiled_while_serving_total"] == 0


def test_a_line_for_each_request_without_its_prompt(client, server):
    client.completions.create(model="tiny", prompt="a secret word", max_tokens=2)
    server.until(lambda: server.lines and "13 prompt tokens" in server.lines[-1])
    start = r"POST /v1/completions 200; 13 prompt tokens(?: \(\d cached\))?, \d new, \w+"
    form = start + r"; seed \d+; first after \d\.\d+ s; \d\.\d+ s; req-[0-9a-f]+"
    assert re.fullmatch(form, server.lines[-1])
    assert not any("secret" in line for line in server.lines)
