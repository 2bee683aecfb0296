"""planish chat: pipes, --prompt, what it says at the start, and every flag that it refuses."""

from __future__ import annotations

import io
import json
import sys

import pytest

from planish.verbs import chat
from planish.verbs.chat import visible

TEMPLATE = "{% for m in messages %}[{{ m.content }}]{% endfor %}{{ mood }}"


@pytest.fixture
def model(make_llama):
    path = make_llama(num_hidden_layers=1)
    (path / "chat_template.jinja").write_text(TEMPLATE)
    return path


@pytest.fixture
def talk(planish, model, monkeypatch):
    """talk(..., stdin="a\\n") -> what planish chat writes, by the reference."""

    def call(*words, stdin="", path=None, engine="reference"):
        piped = io.TextIOWrapper(io.BytesIO(stdin.encode()), encoding="utf-8")
        monkeypatch.setattr(sys, "stdin", piped)
        few = () if "--max_new_tokens" in words else ("--max_new_tokens", 4)
        return planish("chat", "--model", path or model, "--engine", engine, *few, *words)

    return call


def continued(planish, model, prompt):
    """What generate writes after a prompt, by the reference."""
    words = ("--prompt", prompt, "--max_new_tokens", 4, "--engine", "reference")
    return planish("generate", "--model", model, *words).out.removesuffix("\n")


def test_a_pipe_is_a_message_on_each_line(talk, planish, model):
    first = continued(planish, model, "[Hi]")
    second = continued(planish, model, f"[Hi][{first}][More]")
    result = talk(stdin="Hi\n\nMore\n")
    assert (result.code, result.out) == (0, f"{first}\n{second}\n")
    assert "sampling: temperature 0\n" in result.err


def test_both_engines_say_the_same_and_the_fast_one_reads_nothing_twice(talk):
    words = {"stdin": "Hello, you\nAnd now\n/regenerate\n"}  # on one page of the cache
    exact, fast = talk(**words), talk("--verbose", engine="fast", **words)
    assert fast.out == exact.out
    cached = [line for line in fast.err.splitlines() if "cached" in line]
    assert "(0 cached), 4 new tokens" in cached[0]
    assert "(0 cached)" not in cached[1] and len(cached) == 3


def test_a_prompt_is_one_turn(talk, planish, model):
    result = talk("--prompt", "/Hi", "--system", "Be")
    assert "(--max_new_tokens N)" in result.err
    assert result.out == continued(planish, model, "[Be][/Hi]") + "\n"
    assert result.code == 0


def test_commands_work_in_a_pipe_and_a_bad_one_ends_it(talk, tmp_path):
    file = tmp_path / "saved.json"
    result = talk(stdin=f"Hi\n/save {file}\n/undo\n/tokens\n//Hi\n/quit\nnever\n")
    assert result.code == 0 and "0 tokens of 128" in result.err
    assert [one["role"] for one in json.loads(file.read_text())] == ["user", "assistant"]
    ended = talk(stdin="/nope\nHi\n")
    assert (ended.code, ended.out) == (2, "")
    assert "error: /nope: unknown command" in ended.err


def test_a_full_context_ends_a_pipe_with_both_numbers(talk):
    result = talk("--context", 40, stdin="x" * 50 + "\n")
    assert result.code == 2
    assert "error: context: 15 tokens too many: 52 of the conversation and 4 for" in result.err


def test_the_models_own_sampling_is_shown_and_used(talk, model):
    file = model / "generation_config.json"
    file.write_text('{"do_sample": true, "temperature": 0.7, "top_k": 20}')
    sampled = ("--prompt", "Hi", "--verbose", "--seed")
    result = talk(*sampled, 1)
    assert "sampling: temperature 0.7, top_k 20\n" in result.err and "seed 1" in result.err
    assert result.out == talk(*sampled, 1).out
    other = talk("--prompt", "Hi", "--top_k", 5, "--temperature", 2)
    assert "sampling: temperature 2, top_k 5\n" in other.err
    assert "sampling: temperature 0\n" in talk("--prompt", "Hi", "--generation_config", "none").err
    file.write_text('{"do_sample": true, "top_p": 2}')
    assert talk("--prompt", "Hi").refused("generation_config.json: top_p: bad value")
    assert talk("--prompt", "Hi", "--generation_config", "none").code == 0


def test_unseeded_answers_differ_and_say_their_seeds(talk):
    words = ("--temperature", 2, "--verbose", "--max_new_tokens", 8, "--prompt", "Hi")
    results = [talk(*words) for _ in range(2)]
    assert results[0].out != results[1].out
    seed = results[0].err.strip().rpartition("seed ")[2]
    assert talk(*words, "--seed", seed).out == results[0].out


def test_the_template_and_what_it_reads_can_be_given(talk, planish, model, tmp_path):
    result = talk("--prompt", "Hi", "--template_args", '{"mood": "!"}')
    assert result.out == continued(planish, model, "[Hi]!") + "\n"
    (tmp_path / "mine.jinja").write_text("<{{ messages[-1].content }}>")
    result = talk("--prompt", "Hi", "--chat_template", tmp_path / "mine.jinja")
    assert result.out == continued(planish, model, "<Hi>") + "\n"
    (tmp_path / "system.txt").write_text("Be\n")
    result = talk("--prompt", "Hi", "--system_file", tmp_path / "system.txt")
    assert result.out == continued(planish, model, "[Be][Hi]") + "\n"


def test_a_base_model_is_refused_in_one_line(talk, tiny_llama):
    refused = talk("--prompt", "Hi", path=tiny_llama)
    assert refused.refused("no chat template: a base model", "--chat_template FILE")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--prompt", ""], ["prompt: is empty"]),
        (["--context", 0], ["context: bad value", "1..128"]),
        (["--context", 129], ["context: bad value", "1..128"]),
        (["--max_new_tokens", 0], ["max_new_tokens: bad value"]),
        (["--template_args", "{"], ["--template_args: is not JSON"]),
        (["--template_args", "[]"], ["--template_args: wrong form", "found list"]),
        (["--system", "a", "--system_file", "b"], ["--system_file: is given"]),
        (["--system_file", "/no/such/file"], ["/no/such/file", "No such file"]),
        (["--temperature", "nan"], ["temperature: bad value"]),
        (["--seed", -1], ["seed: bad value"]),
    ],
)
def test_bad_flags_are_one_line(talk, words, expected):
    more = () if "--prompt" in words else ("--prompt", "Hi")
    assert talk(*words, *more).refused(*expected)


def test_a_template_that_refuses_a_message_is_one_line(talk, model):
    (model / "chat_template.jinja").write_text("{{ raise_exception('no users') }}")
    result = talk(stdin="Hi\n")
    assert result.code == 2 and "refuses the conversation: no users" in result.err


def test_without_prompt_toolkit_a_terminal_reads_lines(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "prompt_toolkit", None)
    chat.choose_reader(None)
    assert 'pip install "planish[chat]"' in caplog.text


def test_a_terminal_gets_no_control_characters_from_a_model():
    assert visible("a\x1b[2Jb\tc\n\x07\x9bä") == "a\\x1b[2Jb\tc\n\\x07\\x9bä"
