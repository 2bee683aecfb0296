"""perplexity, logits, inspect, compare and bench: what they print, as text and as JSON."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from reference.checkpoint import open_checkpoint
from reference.engine import Engine


@pytest.fixture
def text(tmp_path):
    """600 bytes, so 600 tokens: four windows of 128 and a tail."""
    file = tmp_path / "text.txt"
    file.write_text("The quick brown fox jumps over it. " * 17 + "Right", encoding="utf-8")
    assert file.stat().st_size == 600
    return file


def only_json(result) -> dict:
    """Stdout is one line with one JSON object, every number in it finite."""
    assert result.code in (0, 3), result
    assert result.out.count("\n") == 1
    return json.loads(result.out, parse_constant=lambda word: pytest.fail(word))


@pytest.mark.parametrize("engine", ["fast", "reference"])
def test_perplexity_as_json(planish, tiny_llama, text, engine):
    words = ("perplexity", "--model", tiny_llama, "--text", text, "--engine", engine)
    values = only_json(planish(*words, "--json"))
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
    result = planish("perplexity", "--model", tiny_llama, "--text", short)
    assert result.refused("too short", "128", "127")


@pytest.mark.parametrize("engine", ["fast", "reference"])
def test_logits_of_every_position(planish, tiny_llama, tmp_path, engine):
    out = tmp_path / "logits.npy"
    words = ("--tokens", "72,101,108", "--out", out, "--engine", engine)
    result = planish("logits", "--model", tiny_llama, *words)
    assert (result.code, result.out) == (0, "")
    found, expected = np.load(out), Engine(open_checkpoint(tiny_llama)).forward([72, 101, 108])
    assert found.shape == (3, 300) and found.dtype == np.float32
    assert np.abs(found - expected).max() < 2e-5 * np.ptp(expected)
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ("", ["tokens"]),
        ("1,,2", ["tokens", "1,2,3"]),
        ("1,two", ["tokens", "1,two"]),
        ("300", ["token", "0..299", "300"]),
        ("-1", ["token"]),
        (",".join(["1"] * 129), ["128", "129"]),
    ],
)
def test_logits_refuses_tokens(planish, tiny_llama, tmp_path, tokens, expected):
    words = (f"--tokens={tokens}", "--out", tmp_path / "x.npy", "--engine", "reference")
    assert planish("logits", "--model", tiny_llama, *words).refused(*expected)
    assert list(tmp_path.iterdir()) == []


def test_logits_refuses_a_target_that_cannot_be_written(planish, tiny_llama, tmp_path):
    words = ("logits", "--model", tiny_llama, "--tokens", "1", "--engine", "reference", "--out")
    assert planish(*words, tmp_path / "no" / "x.npy").refused("no such directory")
    assert planish(*words, tiny_llama / "config.json" / "x.npy").refused("no such directory")
    assert planish(*words, tmp_path).refused("directory")
    assert list(tmp_path.iterdir()) == []


def test_inspect_counts_bits_and_bytes(planish, tiny_llama):
    values = only_json(planish("inspect", "--model", tiny_llama, "--json"))
    assert values["architecture"] == "llama"
    assert values["bits_per_weight"] == 32
    assert values["bytes"] == 4 * values["parameters"]
    assert values["bytes"] == sum(tensor["bytes"] for tensor in values["tensors"].values())
    assert values["config"]["num_kv_heads"] == 2 and values["quantization"] is None


@pytest.mark.parametrize(("rule", "zero_point"), [("signed", 0), ("minmax", 8)])
def test_inspect_of_int4(planish, tiny_llama, tmp_path, rule, zero_point):
    words = ("--recipe", "W4A16", "--group_size", 32, "--lm_head", "int8", "--rule", rule)
    planish("quantize", "--model", tiny_llama, "--out", tmp_path / "q", *words)
    values = only_json(planish("inspect", "--model", tmp_path / "q", "--json"))
    # 4 bits, and per group of 32 a float16 scale and under minmax a byte of zero point
    assert values["bits_per_weight"] == 4 + (16 + zero_point) / 32
    assert values["tensors"]["lm_head.weight"]["scheme"] == "int8 per_channel"
    assert values["bytes"] == sum(values["bytes_by_kind"].values())
    text = planish("inspect", "--model", tmp_path / "q").out
    assert f"int4 {rule} g=32" in text
    assert f"{values['bits_per_weight']:.3f} bits per weight" in text


@pytest.mark.parametrize("layout", ["tiles", "canonical"])
def test_inspect_tells_the_layout_and_counts_the_bytes_in_the_files(
    planish, make_llama, tmp_path, layout
):
    source = make_llama(name="odd", hidden_size=72, intermediate_size=100)
    words = ("--recipe", "W4A8", "--group_size", 32, "--layout", layout)
    planish("quantize", "--model", source, "--out", tmp_path / "q", *words)
    values = only_json(planish("inspect", "--model", tmp_path / "q", "--json"))
    assert values["layout"] == values["quantization"]["layout"] == layout
    shapes = [(72, 72), (36, 72), (36, 72), (72, 72), (100, 72), (100, 72), (72, 100)]
    row, col = (16, 8) if layout == "tiles" else (1, 2)  # to what codes are padded
    held = sum(-(-n // row) * row * (-(-k // col) * col / 2 + 2 * -(-k // 32)) for n, k in shapes)
    assert values["bits_per_weight"] == 8 * held / sum(n * k for n, k in shapes)
    down = values["tensors"]["model.layers.0.mlp.down_proj.weight"]["shape"]
    assert down == ([5, 13, 16, 4] if layout == "tiles" else [72, 50])
    text = planish("inspect", "--model", tmp_path / "q").out
    assert f"layout {layout}" in text and str(down) in text


def test_compare_agrees_on_a_float_model(planish, tiny_llama):
    result = planish("compare", "--model", tiny_llama, "--json")
    assert result.code == 0
    assert only_json(result)["agree"] is True


def test_compare_exits_with_3_where_engines_differ(planish, tiny_llama, monkeypatch):
    class Report:
        agree = False

        def table(self) -> str:
            return "DIFFER"

    monkeypatch.setattr("compare.report.run", lambda *arguments: Report())
    result = planish("compare", "--model", tiny_llama)
    assert (result.code, result.out) == (3, "DIFFER\n")


def test_compare_refuses_a_bad_prompt_file(planish, tiny_llama, tmp_path):
    bad = tmp_path / "bad.txt"
    bad.write_bytes(b"\xff")
    result = planish("compare", "--model", tiny_llama, "--prompt_file", bad)
    assert result.refused("bad.txt", "UTF-8")


def test_bench_measures_beside_limits(planish, tiny_llama, monkeypatch):
    monkeypatch.setattr("compare.speed.READ_BYTES", 2**20)
    words = ("bench", "--model", tiny_llama, "--peers", "llama.cpp")
    values = only_json(planish(*words, "--json"))
    assert set(values) == {"rows", "limits", "machine"}
    prefill, decode, peer = values["rows"]
    assert (prefill["test"], decode["test"]) == ("pp128", "tg127")
    assert prefill["runs"] >= 5 and 0 < decode["low"] <= decode["median"] <= decode["high"]
    assert peer["median"] is None and peer["note"]
    assert values["limits"]["memory_read_bytes_per_second"] > 0
    assert values["machine"]["cores"] >= 1


def test_bench_refuses_an_unknown_peer(planish, tiny_llama):
    assert planish("bench", "--model", tiny_llama, "--peers", "lama").refused("peers", "llama.cpp")
