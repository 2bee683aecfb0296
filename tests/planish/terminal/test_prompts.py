"""Prompts from flags and files, and what a .jsonl file may hold."""

from __future__ import annotations

import json

import pytest

from planish import records
from planish.reference.errors import PromptError
from planish.terminal import prompts


@pytest.fixture
def jsonl(tmp_path):
    """Write lines into prompts.jsonl."""

    def write(*lines):
        file = tmp_path / "prompts.jsonl"
        file.write_text("\n".join(lines), encoding="utf-8")
        return str(file)

    return write


def test_typed_prompts_come_first_then_those_of_each_file(jsonl, tmp_path):
    plain = tmp_path / "plain.txt"
    plain.write_text("{not json}\n")
    file = jsonl('{"prompt": "b"}', "", '{"prompt": "c\\nd"}')
    expected = ["a", "b", "c\nd", "{not json}\n"]
    assert prompts.read_prompts(["a"], [file, str(plain)]) == expected


def test_only_a_newline_ends_a_line(jsonl):
    text = "a\u2028b\x85c"
    assert prompts.read_prompts([], [jsonl(json.dumps({"prompt": text}, ensure_ascii=False))]) == [
        text
    ]


def test_other_fields_are_named_once(jsonl, monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(records, "notice", said.append)
    file = jsonl('{"prompt": "a", "id": 1}', '{"id": 2, "prompt": "b", "source": "x"}')
    assert prompts.read_prompts([], [file]) == ["a", "b"]
    assert said == [f"{file}: fields that are not read: id, source"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("x", "line 2: is not JSON at column 1; .*found x"),
        ('{"prompt": "a"', "line 2: is not JSON at column"),
        ("[" * 100_000, "line 2: is not JSON"),
        ("9" * 5000, "line 2: is"),
        ('["a"]', "line 2: is not an object; .*found list"),
        ('{"promt": "a"}', "line 2: prompt: is missing; .*found promt"),
        ("{}", "line 2: prompt: is missing; .*found no field"),
        ('{"prompt": 3}', "line 2: prompt: bad value; expected text, found 3"),
        ('{"prompt": null}', "line 2: prompt: bad value; expected text, found None"),
        ('{"prompt": ""}', "line 2: prompt: bad value; expected text, found ''"),
        ('{"prompt": "\\ud800"}', "line 2: prompt: is not text; found a lone surrogate"),
    ],
    ids=lambda value: value[:20],
)
def test_a_bad_line_is_named_with_its_field(jsonl, line, message):
    with pytest.raises(PromptError, match=f"prompts.jsonl: {message}"):
        prompts.read_prompts([], [jsonl('{"prompt": "good"}', line)])


def test_a_file_without_a_prompt_is_refused(jsonl):
    problem = r"prompts.jsonl: contains no prompt; expected lines like"
    with pytest.raises(PromptError, match=problem):
        prompts.read_prompts([], [jsonl("", "  ")])


def test_a_field_that_is_there_twice_is_refused(jsonl):
    with pytest.raises(PromptError, match="line 1: is not JSON"):
        prompts.read_prompts([], [jsonl('{"prompt": "a", "prompt": "b"}')])


def test_of_many_fields_that_are_not_read_some_are_named(jsonl, caplog):
    fields = {"prompt": "a", **{f"k{i}": 1 for i in range(1000)}}
    assert prompts.read_prompts([], [jsonl(json.dumps(fields))]) == ["a"]
    assert caplog.messages[0].endswith(
        "fields that are not read: k0, k1, k2, k3, k4, k5, k6, k7, ..."
    )
