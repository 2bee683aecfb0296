"""perplexity: windows of a text, the protocol of lm_eval, and what it refuses."""

from __future__ import annotations

import json
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


def rolling_words(model, text, *more):
    return ("perplexity", "--model", model, "--text", text, "--protocol", "rolling", *more)


@pytest.mark.matrix(2)
@pytest.mark.parametrize("engine", ["fast", "reference"])
def test_rolling_as_json(planish, tiny_llama, text, engine):
    values = planish(*rolling_words(tiny_llama, text, "--engine", engine, "--json")).only_json()
    assert (values["tokens"], values["windows"], values["window"]) == (600, 5, 128)
    assert (values["documents"], values["bytes"]) == (1, 600)
    assert values["words"] == len(text.read_text().split())
    total = values["log_likelihood"]
    assert values["perplexity"] == values["byte_perplexity"] == math.exp(-total / 600)
    assert values["word_perplexity"] == pytest.approx(math.exp(-total / values["words"]))
    assert values["bits_per_byte"] == pytest.approx(math.log2(values["byte_perplexity"]))


def test_rolling_over_documents_is_their_sum(planish, tiny_llama, tmp_path):
    texts, common = ["One fox.", "Another\nfox"], ("--engine", "reference", "--json")
    lines, sums = tmp_path / "texts.jsonl", []
    lines.write_text("".join(json.dumps({"text": each}) + "\n" for each in texts))
    for number, each in enumerate(texts):
        file = tmp_path / f"{number}.txt"
        file.write_text(each)
        alone = planish(*rolling_words(tiny_llama, file, *common)).only_json()
        sums.append(alone["log_likelihood"])
    values = planish(*rolling_words(tiny_llama, lines, *common)).only_json()
    assert values["log_likelihood"] == pytest.approx(sum(sums))
    assert (values["documents"], values["words"]) == (2, 4)
    shown = planish(*rolling_words(tiny_llama, lines, "--engine", "reference")).out
    assert "bits per byte" in shown and "(2 documents, 19 tokens, 2 windows of 128)" in shown


def test_rolling_over_no_document_is_refused(planish, tiny_llama, tmp_path):
    file = tmp_path / "empty.jsonl"
    file.write_text("")
    assert planish(*rolling_words(tiny_llama, file)).refused("empty.jsonl: contains no document")


def test_rolling_begins_with_the_token_that_the_tokenizer_names(planish, make_llama, text):
    """BOS, or EOS where a tokenizer has no BOS though config.json has one, as in Qwen."""
    found = set()
    for name, roles in {
        "none": {},
        "bos": {"bos_token": "<s>"},
        "eos": {"eos_token": "</s>"},
    }.items():
        model = make_llama(name=name)
        if roles:
            content = json.dumps({"bos_token": None, **roles})
            (model / "tokenizer_config.json").write_text(content)
        words = rolling_words(model, text, "--engine", "reference", "--json")
        found.add(planish(*words).only_json()["log_likelihood"])
    assert len(found) == 2


def test_rolling_needs_a_first_token_and_a_window(planish, make_llama, tiny_llama, text):
    model = make_llama(bos_token_id=None, eos_token_id=None)
    assert planish(*rolling_words(model, text)).refused("bos_token", "has none", "BOS or EOS")
    words = rolling_words(tiny_llama, text, "--window")
    assert planish(*words, 0).refused("window", "at least 1")
    assert planish(*words, 129).refused("window", "128", "129")
