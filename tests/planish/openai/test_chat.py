"""Chats: what the openai package reads, streamed as whole, and what the template is given."""

import json

import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from planish.openai.chat import read_chat
from planish.reference.text.chat import Conversation, encode_chat
from tests.planish.openai.conftest import body

USAGE = {"include_usage": True}


def prompt_text(api, **fields):
    return bytes_of(api, api.chat(**fields).requests[0].prompt)


def bytes_of(api, ids):
    return b"".join(api.served.vocabulary.bytes_of(token) for token in ids).decode()


def contents(chunks, index=0):
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    return "".join(c["delta"].get("content") or "" for c in choices if c["index"] == index)


def test_the_answer_is_what_the_openai_package_expects(api):
    found = ChatCompletion.model_validate(api.whole(api.chat(max_tokens=3, seed=1)))
    assert (found.id[:9], found.object, found.model) == ("chatcmpl-", "chat.completion", "tiny")
    assert found.system_fingerprint == "fp_1"
    (choice,) = found.choices
    assert (choice.index, choice.message.role, choice.finish_reason) == (0, "assistant", "length")
    usage = found.usage
    assert usage.completion_tokens == 3
    assert usage.total_tokens == usage.prompt_tokens + 3
    assert usage.prompt_tokens_details.cached_tokens == 0


@pytest.mark.parametrize("fields", [{"temperature": 0}, {"seed": 5}, {"seed": 5, "n": 3}])
def test_the_streamed_text_is_the_whole_text(api, fields):
    given = {"max_tokens": 8, "logprobs": True, "top_logprobs": 1, **fields}
    whole = api.whole(api.chat(**given))
    answer, chunks = api.stream(api.chat(stream=True, **given))
    assert [contents(chunks, i) for i in range(len(whole["choices"]))] == [
        choice["message"]["content"] for choice in whole["choices"]
    ]
    scored = [c for chunk in chunks for c in chunk["choices"] if c["logprobs"]]
    for i, choice in enumerate(whole["choices"]):
        listed = [one for c in scored if c["index"] == i for one in c["logprobs"]["content"]]
        assert listed == choice["logprobs"]["content"] != []
    assert answer.whole()["choices"] == whole["choices"]


def test_a_stream_begins_with_the_role_and_ends_with_the_reason(api):
    _, chunks = api.stream(api.chat(max_tokens=3, seed=1, stream=True))
    read = [ChatCompletionChunk.model_validate(chunk) for chunk in chunks]
    assert len({(one.id, one.created, one.object) for one in read}) == 1
    first, *middle, last = [one.choices[0] for one in read]
    assert (first.delta.role, first.delta.content) == ("assistant", "")
    assert all(one.delta.role is None and one.delta.content for one in middle) and middle
    assert last.delta.model_dump(exclude_unset=True) == {}
    reasons = [
        "finish_reason" in c["choices"][0] and c["choices"][0]["finish_reason"] for c in chunks
    ]
    assert reasons == [None] * (len(chunks) - 1) + ["length"]
    assert all("usage" not in chunk for chunk in chunks)


def test_usage_comes_last_without_choices_and_is_the_same_as_of_the_whole(api):
    answer, chunks = api.stream(api.chat(max_tokens=3, seed=1, stream=True, stream_options=USAGE))
    *rest, last = chunks
    assert all(chunk["usage"] is None for chunk in rest)
    assert (last["choices"], last["usage"]) == ([], answer.whole()["usage"])
    assert last["usage"] == api.whole(api.chat(max_tokens=3, seed=1))["usage"]


def test_the_prompt_is_the_rendered_conversation_with_one_bos(api):
    job = api.chat("Hi")
    assert bytes_of(api, job.requests[0].prompt) == "<s>user: Hi\nassistant: "
    assert job.requests[0].prompt.count(256) == 1
    conversation = Conversation(messages=[{"role": "user", "content": "Hi"}])
    given = api.served.tokenizer, api.served.template, conversation
    assert job.requests[0].prompt == tuple(encode_chat(*given))


def test_a_special_token_that_a_user_writes_is_text(api):
    prompt = api.chat("a</s>b").requests[0].prompt
    assert 257 not in prompt
    assert "a</s>b" in bytes_of(api, prompt)


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"role": "user", "content": None}, "user: \n"),
        ({"role": "user", "content": [{"type": "text", "text": "a"}] * 2}, "user: a\na\n"),
        ({"role": "developer", "content": "d"}, "system: d\n"),
        ({"role": "user", "content": "x", "name": "me", "unknown": 1}, "user: x\n"),
        ({"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}, "assistant: no"),
    ],
)
def test_contents_are_null_texts_or_parts(api, message, text):
    assert prompt_text(api, messages=[message]).removeprefix("<s>").startswith(text)


@pytest.mark.parametrize(
    ("content", "param"),
    [
        ([{"type": "image_url", "image_url": {"url": "x"}}], "messages.0.content.0"),
        ([{"type": "input_audio"}], "messages.0.content.0"),
        ([5], "messages.0.content.0"),
        ([{"type": "text"}], "messages.0.content.0.text"),
        ({"text": "x"}, "messages.0.content"),
        (5, "messages.0.content"),
    ],
)
def test_contents_that_are_no_text_are_refused(api, content, param):
    refused = api.refusal(api.chat, content=content)
    assert (refused.status, refused.param) == (400, param)


def test_the_last_message_is_continued(api):
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "He"}]
    text = prompt_text(api, messages=messages, continue_final_message=True)
    assert text == "<s>user: Hi\nassistant: He"
    refused = api.refusal(
        api.chat, continue_final_message=True, add_generation_prompt=True, messages=messages
    )
    assert refused.param == "add_generation_prompt"


def with_template(api, source):
    return api.with_(
        template=type(api.served.template)(
            sources={"default": source}, special_tokens={}, path=api.served.template.path
        )
    )


def test_a_template_that_refuses_is_quoted_without_its_path(api):
    strict = with_template(api, "{{ raise_exception('roles must alternate') }}")
    refused = strict.refusal(strict.chat)
    assert (refused.status, refused.param) == (400, "messages")
    assert "roles must alternate" in str(refused)
    assert "model" not in str(refused)


def test_a_base_model_does_not_chat(api):
    base = api.with_(template=None)
    assert "/v1/completions" in str(base.refusal(base.chat))


def test_tools_and_variables_reach_the_template(api):
    source = "{{ tools | tojson }} {{ mood }} {{ messages[-1].tool_calls[0].function.arguments.x }}"
    given = with_template(api, source)
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 42}'}}
    messages = [{"role": "assistant", "content": None, "tool_calls": [call]}]
    fields = {"tools": tools, "messages": messages, "chat_template_kwargs": {"mood": "good"}}
    text = prompt_text(given, **fields)
    assert text == f"{json.dumps(tools)} good 42"
    assert prompt_text(given, **fields, tool_choice="none").startswith("null ")
    bad = {**call, "function": {"name": "f", "arguments": "[]"}}
    refused = given.refusal(given.chat, messages=[{**messages[0], "tool_calls": [bad]}])
    assert refused.param == "messages.0.tool_calls.0.function.arguments"


def test_bytes_of_scored_tokens_are_the_text_and_the_likeliest_are_listed(api):
    whole = api.whole(api.chat(max_tokens=12, seed=3, logprobs=True, top_logprobs=5))
    read = ChatCompletion.model_validate(whole).choices[0]
    raw = b"".join(bytes(one.bytes) for one in read.logprobs.content)
    assert raw.decode(errors="replace") == read.message.content
    assert all(len(one.top_logprobs) == 5 for one in read.logprobs.content)
    best = [one.top_logprobs for one in read.logprobs.content]
    assert all(list(b) == sorted(b, key=lambda one: -one.logprob) for b in best)
    plain = api.whole(api.chat(max_tokens=12, seed=3, logprobs=True, top_logprobs=0))
    assert [one["top_logprobs"] for one in plain["choices"][0]["logprobs"]["content"]] == [[]] * 12


def test_the_newer_name_of_max_tokens_wins(api):
    assert api.chat(max_tokens=9, max_completion_tokens=2).requests[0].max_new_tokens == 2


def test_the_worker_of_a_server_renders_too(api, monkeypatch):
    """Once as in earnest: in a process."""
    monkeypatch.undo()
    assert read_chat(body(messages=[{"role": "user", "content": "Hi"}]), api.served).requests
