"""planish quality: the demo's table for a user's own model."""

from __future__ import annotations

import json

import pytest

TEXT = "A quick brown fox jumps over the lazy dog, and then it jumps back over the dog again. " * 4


@pytest.fixture
def text(tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    return tmp_path / "text.txt"


@pytest.mark.whole
def test_quality_measures_as_perplexity_does(planish, one_layer, text):
    """One protocol: the float row is what `planish perplexity` says of the same text."""
    words = ("--model", one_layer, "--text", text, "--json", "--kernels", "xla")
    samples = ("--calibration", text, "--samples", 2, "--sample_length", 64)
    done = planish("quality", *words, *samples, "--recipes", "float,W8A8")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    alone = json.loads(planish("perplexity", *words).out)
    rows = {row["recipe"]: row for row in found["rows"]}
    assert list(rows) == ["float", "W8A8"]
    assert (found["windows"], found["window"]) == (alone["windows"], alone["window"])
    assert rows["float"]["perplexity"] == pytest.approx(alone["perplexity"], rel=1e-6)
    assert rows["float"]["standard_error"] == pytest.approx(alone["standard_error"], rel=1e-4)
    assert rows["W8A8"]["mean_kl"] > 0 and rows["W8A8"]["tokens_per_second"] > 0


@pytest.mark.whole
def test_the_table_says_what_its_columns_mean(planish, one_layer, text):
    """All models have the length asked for, which is more than their config.json says."""
    words = ("--text", text, "--recipes", "W8A16", "--max_positions", 160, "--kernels", "xla")
    done = planish("quality", "--model", one_layer, *words)
    assert done.code == 0, done.err
    assert "2 windows of 160 tokens" in done.out
    for word in ("perplexity  ", "difference  ", "KL  ", "top-1  ", "size  ", "tokens/s  "):
        assert word in done.out
    assert [line.split()[1] for line in done.out.splitlines() if line.startswith("| ")] == [
        "recipe",
        "---",
        "float",
        "W8A16",
    ]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--recipes", "W8A9"), ("W8A9", "did you mean W8A8?")),
        (("--recipes", "W4A8-minimax"), ("'minimax'",)),
        (("--window", "0"), ("window", "at least 2")),
        (("--window", "999999"), ("window", "the model's length")),
        (("--text", "/nowhere.txt"), ("/nowhere.txt",)),
    ],
)
def test_bad_input_is_refused_before_anything_is_computed(planish, one_layer, words, expected):
    done = planish("quality", "--model", one_layer, *words)
    errors = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert (done.code, done.out, len(errors)) == (2, "", 1)
    assert all(word in errors[0] for word in expected), errors


def test_a_quantized_model_cannot_be_quantized_again(planish, one_layer, tmp_path, text):
    out = tmp_path / "q"
    planish("quantize", "--model", one_layer, "--out", out, "--recipe", "W8A16")
    done = planish("quality", "--model", out, "--text", text)
    assert done.refused("is already quantized")


def test_calibration_flags_without_effect_are_named(planish, one_layer, text):
    words = ("--text", text, "--recipes", "float", "--samples", 3, "--kernels", "xla")
    done = planish("quality", "--model", one_layer, *words)
    assert done.code == 0 and "--samples: no effect" in done.err
