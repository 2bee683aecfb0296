"""response_format: answers that keep a schema, and schemas that are refused in time."""

import itertools
import json
import string
import time
from concurrent.futures import Future
from dataclasses import replace

import pytest

from planish.openai import grammar
from planish.reference.text.sampling import Sampling

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 3},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 2},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
ROOM = {"max_tokens": 120}


def schema(value, **given):
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": value, **given}}


def biased(api, letters, value):
    return {str(token): value for token in api.served.tokenizer.encode(letters)}


def chain(count, link):
    """References `count` deep."""
    letters = (range(1, 4), string.ascii_letters)
    names = [
        "".join(name)
        for size in letters[0]
        for name in itertools.islice(itertools.product(letters[1], repeat=size), count + 1)
    ][: count + 1]
    links = {a: link(f"#/$defs/{b}") for a, b in itertools.pairwise(names)}
    return {**link(f"#/$defs/{names[0]}"), "$defs": {**links, names[-1]: {"type": "null"}}}


@pytest.mark.parametrize("seed", range(3))
def test_an_answer_keeps_the_schema(api, seed):
    job = api.complete("x", response_format=schema(PERSON, strict=True), seed=seed, **ROOM)
    (choice,) = api.whole(job)["choices"]
    found = json.loads(choice["text"])
    assert list(found) == ["name", "age", "tags"] and choice["finish_reason"] == "stop"
    assert len(found["name"]) <= 3 and 0 <= found["age"] <= 99 and {*found["tags"]} <= {"a", "b"}


def test_a_chat_answers_with_an_object_and_a_cut_one_says_length(api):
    bias = {**biased(api, "}", 100), **biased(api, " \n", -100)}
    fields = {"response_format": {"type": "json_object"}, "temperature": 0}
    (choice,) = api.whole(api.chat(**fields, logit_bias=bias, max_tokens=20))["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("{}", "stop")
    bias = biased(api, "}", -100)
    (choice,) = api.whole(api.chat(**fields, logit_bias=bias, max_tokens=3))["choices"]
    assert choice["message"]["content"].startswith("{") and choice["finish_reason"] == "length"


def test_choices_have_grammars_of_their_own(api):
    job = api.complete("x", response_format=schema(PERSON), seed=1, n=3, **ROOM)
    texts = [choice["text"] for choice in api.whole(job)["choices"]]
    assert len({json.dumps(json.loads(text)) for text in texts}) > 1
    again = [api.whole(replace(job, requests=job.requests[i : i + 1], n=1)) for i in range(3)]
    assert [one["choices"][0]["text"] for one in again] == texts


def test_whitespace_ends_although_the_model_prefers_it(api):
    bias = biased(api, " \n\t", 100)
    fields = {"response_format": schema({"type": "object", "maxProperties": 0}), "temperature": 0}
    (choice,) = api.whole(api.complete("x", **fields, logit_bias=bias, **ROOM))["choices"]
    assert json.loads(choice["text"]) == {} and choice["finish_reason"] == "stop"
    assert len(choice["text"]) > 2


def test_an_end_comes_only_where_the_value_may_end(api):
    end = api.served.tokenizer.encode("!")
    fields = {"temperature": 0, "max_tokens": 4, "stop_token_ids": end}
    bias = {**biased(api, "!", 100), **biased(api, "7", 50)}
    job = api.complete("x", response_format=schema({"type": "integer"}), logit_bias=bias, **fields)
    (choice,) = api.whole(job)["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("7", "stop")


def test_options_of_the_library_in_a_schema_are_ignored(api):
    schemas = [
        {"const": [1, [2]], **extra} for extra in ({}, {"x-guidance": {"item_separator": "x"}})
    ]
    jobs = [api.complete("x", response_format=schema(one), seed=1, **ROOM) for one in schemas]
    first, second = [api.whole(job)["choices"] for job in jobs]
    assert first == second and json.loads(first[0]["text"]) == [1, [2]]


def test_the_text_type_constrains_nothing(api):
    fields = {"seed": 2, "max_tokens": 9}
    free = api.whole(api.complete("x", response_format={"type": "text"}, **fields))
    assert free["choices"] == api.whole(api.complete("x", **fields))["choices"]


HARD = {
    "no type of JSON": {"type": "number of cows"},
    "unsupported": {"type": "array", "uniqueItems": True},
    "unsupported, with a request to be lenient": {"not": {}, "x-guidance": {"lenient": True}},
    "overlapping": {"oneOf": [{"type": "integer"}, {"type": "number"}]},
    "impossible": {"allOf": [{"type": "string"}, {"type": "integer"}]},
    "empty": {"enum": []},
    "nothing but itself": {"$ref": "#"},
    "a file": {"$ref": "file:///etc/passwd"},
    "bad pattern": {"type": "string", "pattern": "(("},
    "long pattern": {"type": "string", "pattern": "^" + "a?" * 30_000 + "$"},
    "many patterns": {
        "anyOf": [{"type": "string", "pattern": "a?" * 200 + str(i)} for i in range(30)]
    },
    "many remainders": {"multipleOf": 2**31},
    "many remainders together": {"allOf": [{"multipleOf": 997}, {"multipleOf": 9.91}]},
    "large": {"enum": [f"x{i}" for i in range(20_000)]},
    "long": {"const": "x" * 20_000},
    "many": {"type": "object", "properties": {f"p{i}": {"type": "null"} for i in range(1500)}},
    "ambiguous": {
        "anyOf": [{"type": "object", "properties": {f"k{i}": {}}} for i in range(1200)],
    },
}


@pytest.mark.matrix(2)
@pytest.mark.parametrize("case", HARD)
def test_a_schema_that_cannot_be_kept_is_refused_at_once(api, case):
    start = time.perf_counter()
    refused = api.refusal(api.complete, response_format=schema(HARD[case]))
    assert refused.status == 400 and refused.param == grammar.SCHEMA
    assert len(str(refused)) < 600 and "\n" not in str(refused)
    assert time.perf_counter() - start < grammar.COMPILE_SECONDS


@pytest.mark.matrix(2)
@pytest.mark.parametrize(
    "link", [lambda r: {"allOf": [{"$ref": r}]}, lambda r: {"items": {"$ref": r}}]
)
def test_deep_references_do_not_end_the_process(api, link):
    deep = chain(1500, link)
    assert len(json.dumps(deep, separators=(",", ":"))) < grammar.LARGEST
    job = api.complete(response_format=schema(deep), temperature=0, max_tokens=2)
    assert api.answer(job).finished


def test_recursive_schemas_are_kept(api):
    tree = {"type": "array", "items": {"$ref": "#"}, "maxItems": 2}
    job = api.complete("x", response_format=schema(tree), seed=1, max_tokens=100)
    (choice,) = api.whole(job)["choices"]
    assert {*choice["text"]} <= {*"[], \n\t"}


def test_a_schema_that_takes_too_long_is_refused(api, monkeypatch):
    monkeypatch.setattr(grammar, "COMPILE_SECONDS", 0.0)
    refused = api.refusal(api.complete, response_format=schema(PERSON))
    assert "takes longer than 0 s" in str(refused) and refused.status == 400


def test_one_schema_at_a_time_may_take_too_long(api, monkeypatch):
    fresh = api.with_()
    monkeypatch.setattr(fresh.served.grammars, "latest", Future())
    refused = fresh.refusal(fresh.complete, response_format=schema(PERSON))
    assert refused.status == 503 and "still being compiled" in str(refused)


def test_without_the_extra_a_constraint_is_refused_and_text_is_not(api, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "llguidance", None)
    monkeypatch.delitem(__import__("sys").modules, "planish.openai.grammar")
    fresh = api.with_()
    refused = fresh.refusal(fresh.complete, response_format={"type": "json_object"})
    assert "planish[constrained]" in str(refused) and refused.param == "response_format"
    assert fresh.complete(response_format={"type": "text"}, max_tokens=1).requests


def test_a_seed_gives_the_same_answer_again(api):
    fields = {"response_format": schema(PERSON), "seed": 5, **ROOM}
    texts = {api.whole(api.complete("x", **fields))["choices"][0]["text"] for _ in range(2)}
    assert len(texts) == 1
    drawn = api.complete("x", **fields).requests[0].sampling
    assert drawn == Sampling(temperature=1.0, seed=5)
