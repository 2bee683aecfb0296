"""Text as it grows: nothing of a stop string is shown, and no half of a character."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planish.reference.text.requests import TokenScore
from tests.planish.openai.conftest import script

CHARACTERS = "😀 日本 🏳️‍🌈 é नमस्ते 한국어"


def scored(events):
    """Events whose tokens have scores."""
    found = []
    for event in events:
        tokens = [*event.tokens, *([] if event.end is None else [event.end])]
        scores = tuple(TokenScore(token=token, logprob=-1.0) for token in tokens)
        found.append(replace(event, scores=scores))
    return found


def said(api, text, *, end=None, size=1, **fields):
    """The whole answer, and the streamed texts, of a model that says a text."""
    ids = api.served.tokenizer.encode(text) if isinstance(text, str) else text
    job = api.chat(max_tokens=100, **fields)
    answer, chunks = job.open(), []
    for event in scored(script(ids, size, end)):
        chunks += answer.feed(0, event)
    deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
    (choice,) = answer.whole()["choices"]
    pieces = [delta["content"] for delta in deltas if delta.get("content")]
    assert "".join(pieces) == choice["message"]["content"]
    return choice, pieces


@pytest.mark.parametrize(
    ("stop", "text"),
    [
        ("lo", "Hel"),
        (["x", "y", "z", "q", "wor"], "Hello "),  # more than OpenAI's four
        ("o w", "Hell"),  # across tokens
        ("H", ""),
        ("Hello!", "Hello world"),  # begins, and does not go on
    ],
)
@pytest.mark.parametrize("size", [1, 4, 99])
def test_a_stop_string_ends_the_text_and_is_never_shown(api, stop, text, size):
    choice, _ = said(api, "Hello world", stop=stop, size=size)
    assert choice["message"]["content"] == text
    assert choice["finish_reason"] == ("length" if text == "Hello world" else "stop")


def test_a_special_token_is_a_stop_string_and_ends_the_session(api):
    job = api.chat(stop=["</s>", "<s>"], ignore_eos=True)
    assert set(job.requests[0].ends) == {256, 257}
    choice, _ = said(api, "Hello", end=256, stop="<s>", ignore_eos=True)
    assert (choice["message"]["content"], choice["finish_reason"]) == ("Hello", "stop")


def test_a_stop_string_may_hold_the_token_that_ends_the_text(api):
    choice, _ = said(api, "Hello", end=257, stop=["o</s>"])
    assert choice["message"]["content"] == "Hell"


def test_special_tokens_are_not_text_and_have_no_bytes(api):
    ids = [*api.served.tokenizer.encode("ab"), 256, *api.served.tokenizer.encode("c")]
    choice, _ = said(api, ids, logprobs=True)
    assert choice["message"]["content"] == "abc"
    listed = choice["logprobs"]["content"]
    assert [(one["token"], bytes(one["bytes"])) for one in listed] == [
        ("a", b"a"),
        ("b", b"b"),
        ("<s>", b""),
        ("c", b"c"),
    ]


@pytest.mark.parametrize("size", [1, 2, 99])
def test_special_tokens_are_shown_if_asked_for_but_for_the_end(api, size):
    ids = [*api.served.tokenizer.encode("ab"), 256, *api.served.tokenizer.encode("c")]
    asked = {"skip_special_tokens": False, "logprobs": True, "size": size}
    choice, _ = said(api, ids, end=257, **asked)
    assert choice["message"]["content"] == "ab<s>c"
    listed = choice["logprobs"]["content"]
    assert b"".join(bytes(one["bytes"]) for one in listed[:4]) == b"ab<s>c"
    choice, _ = said(api, ids, end=257, stop="</s>x", **asked)
    assert choice["message"]["content"] == "ab<s>c"
    choice, _ = said(api, ids, stop="<s>", **asked)
    assert choice["message"]["content"] == "ab"


def test_ids_are_echoed_with_special_tokens_if_asked_for(api):
    given = {"prompt": [257, 65, 256, 66], "echo": True, "max_tokens": 0, "logprobs": 0}
    plain, shown = (
        api.whole(api.complete(**given, skip_special_tokens=skip))["choices"][0]
        for skip in (True, False)
    )
    words = api.served.tokenizer.text_of(65), api.served.tokenizer.text_of(66)
    assert plain["text"] == "".join(words)
    assert shown["text"] == f"</s>{words[0]}<s>{words[1]}"
    assert shown["logprobs"]["text_offset"] == [0, 4, 5, 8]


@pytest.mark.parametrize("size", [1, 2, 3, 99])
def test_no_chunk_ends_within_a_character(api, size):
    choice, pieces = said(api, CHARACTERS, size=size, logprobs=True)
    assert choice["message"]["content"] == CHARACTERS
    assert not any("\ufffd" in piece for piece in pieces)
    raw = b"".join(bytes(one["bytes"]) for one in choice["logprobs"]["content"])
    assert raw.decode() == CHARACTERS


def test_a_text_may_end_within_a_character(api):
    ids = api.served.tokenizer.encode("a😀")[:3]
    choice, _ = said(api, ids, logprobs=True)
    assert choice["message"]["content"] == "a\ufffd"
    raw = b"".join(bytes(one["bytes"]) for one in choice["logprobs"]["content"])
    assert raw == "a😀".encode()[:3]


def test_a_byte_that_begins_no_character_is_one_beside_a_stop_string(api):
    half = api.served.tokenizer.encode("😀")[:1]
    choice, _ = said(api, [*half, *api.served.tokenizer.encode("a")], stop="a", logprobs=True)
    assert choice["message"]["content"] == "\ufffd"
    assert [one["bytes"] for one in choice["logprobs"]["content"]] == [[0xF0]]


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_streams_hold_what_the_whole_holds(api, data):
    """Any tokens, in events of any size, with any stop strings."""
    ids = data.draw(st.lists(st.integers(0, 257), max_size=24))
    stops = data.draw(st.lists(st.text("ab</s>\n\ufffd", min_size=1, max_size=4), max_size=3))
    ids = [*ids, *api.served.tokenizer.encode("ab</s>b")[: data.draw(st.integers(0, 7))]]
    given = {"stop": stops, "logprobs": True}
    choice, _ = said(api, ids, size=data.draw(st.integers(1, 30)), **given)
    again, _ = said(api, ids, **given)
    assert choice == again
    text = choice["message"]["content"]
    assert not any(stop in text for stop in stops)
    raw = b"".join(bytes(one["bytes"]) for one in choice["logprobs"]["content"])
    assert raw.decode(errors="replace") == text


@given(st.lists(st.integers(0, 255), max_size=40))
@settings(max_examples=30, deadline=None)
def test_offsets_grow_with_the_text(api, ids):
    answer = api.complete("ab", logprobs=0, max_tokens=99).open()
    for event in scored(script(ids, 3, end=257)):
        answer.feed(0, event)
    (choice,) = answer.whole()["choices"]
    found = choice["logprobs"]["text_offset"]
    assert len(found) == len(ids) + 1
    assert found == sorted(found) and found[-1] == len(choice["text"])


def test_usage_counts_tokens_up_to_the_stop_string(api):
    for size in (1, 3, 50):
        answer = api.chat(stop="l").open()
        for event in script(api.served.tokenizer.encode("Hello"), size):
            answer.feed(0, event)
        assert answer.usage()["completion_tokens"] == 3
