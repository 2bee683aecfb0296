"""perplexity: windows of a text, and what it refuses."""

from __future__ import annotations

import math

import pytest


@pytest.fixture
def text(tmp_path):
    """600 bytes, so 600 tokens: four windows of 128 and a tail."""
    file = tmp_path / "text.txt"
    file.write_text("The quick brown fox jumps over it. " * 17 + "Right", encoding="utf-8")
    assert file.stat().st_size == 600
    return file


@pytest.mark.parametrize("engine", ["fast", "reference"])
def test_perplexity_as_json(planish, tiny_llama, text, engine):
    words = ("perplexity", "--model", tiny_llama, "--text", text, "--engine", engine)
    values = planish(*words, "--json").only_json()
    assert values["tokens"] == 600 and values["windows"] == 4 and values["window"] == 128
    assert math.isclose(values["perplexity"], math.exp(values["mean_nll"]))
    assert 0 < values["standard_error"] < values["perplexity"]


def test_perplexity_as_text(planish, tiny_llama, text):
    words = ("perplexity", "--model", tiny_llama, "--text", text, "--engine", "reference")
    result = planish(*words, "--window", 50)
    assert result.out.startswith("perplexity ") and "12 windows of 50" in result.out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--window", "0"], ["window", "at least 2"]),
        (["--window", "-5"], ["window", "-5"]),
        (["--window", "129"], ["window", "128", "129"]),
        (["--text", "/no/such/text"], ["/no/such/text"]),
    ],
)
def test_perplexity_refuses(planish, tiny_llama, text, words, expected):
    result = planish("perplexity", "--model", tiny_llama, "--text", text, *words, "--json")
    assert result.refused(*expected)


def test_perplexity_refuses_a_text_shorter_than_a_window(planish, tiny_llama, tmp_path):
    short = tmp_path / "short.txt"
    short.write_text("x" * 127)
    result = planish("perplexity", "--model", tiny_llama, "--text", short, "--window", 128)
    assert result.refused("too short", "128", "127")


def test_without_a_window_a_short_text_is_one(planish, tiny_llama, tmp_path):
    short = tmp_path / "short.txt"
    short.write_text("x" * 127)
    words = ("perplexity", "--model", tiny_llama, "--text", short, "--engine", "reference")
    result = planish(*words)
    assert "1 window of 127" in result.out
    assert result.err == "window: 127 tokens instead of 128, as the text has no more\n"
    short.write_text("x")
    assert planish(*words).refused("text", "too short", "at least 128", "found 1")
