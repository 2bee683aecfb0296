"""--max_positions: every verb takes it, learned positions bound it, and no number changes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from planish.command import parse
from planish.opening import with_max_positions
from planish.reference.files.load import open_checkpoint
from planish.verbs.quantize import recipe_of, samples_of

ROOT = Path(__file__).parents[2]

GOLDEN = Path(__file__).parents[1] / "golden"
LEARNED = GOLDEN / "opt-pre-norm"  # of 512 positions
REFERENCE = ("--engine", "reference")


@pytest.fixture
def logits(planish, tmp_path):
    """The logits of so many tokens, and what the command said."""

    def call(model, count, *words):
        out = tmp_path / "out.npy"
        tokens = ",".join(str(3 + i % 40) for i in range(count))
        words = ("--model", model, "--tokens", tokens, "--out", out, *REFERENCE, *words)
        result = planish("logits", *words)
        said = "".join(line for line in result.err.splitlines(True) if ".npy: float32" not in line)
        return replace(result, err=said), np.load(out) if result.code == 0 else None

    return call


def test_rotary_positions_go_on_with_a_notice(logits, tiny_llama):
    result, _ = logits(tiny_llama, 130)
    assert result.refused("at most 128 positions, found 130")
    result, array = logits(tiny_llama, 130, "--max_positions", 140)
    assert result.err == "max_positions: 140, though the model is made for 128\n"
    assert array.shape[0] == 130
    result, _ = logits(tiny_llama, 130, "--max_positions", 129)
    assert result.code == 2 and "at most 129 positions, found 130" in result.err


def test_fewer_positions_are_a_limit_without_a_notice(logits, tiny_llama):
    result, _ = logits(tiny_llama, 9, "--max_positions", 8)
    assert result.refused("at most 8 positions, found 9")


def test_learned_positions_end_with_their_table(logits):
    result, _ = logits(LEARNED, 9, "--max_positions", 513)
    assert result.refused("max_positions", "1..512, the model's learned positions, found 513")
    result, _ = logits(LEARNED, 9, "--max_positions", 8)
    assert result.refused("at most 8 positions, found 9")
    (less, some), (plain, all_) = logits(LEARNED, 9, "--max_positions", 9), logits(LEARNED, 9)
    assert less.code == plain.code == 0 and less.err == ""
    assert np.array_equal(some, all_)


@pytest.mark.parametrize("count", [100, 140])  # on either side of 128, where angles begin to change
def test_no_number_changes(logits, count):
    model = GOLDEN / "llama-dynamic-rope"
    (_, plain), (_, more) = logits(model, count), logits(model, count, "--max_positions", 4096)
    assert np.array_equal(plain, more)


def test_the_window_of_perplexity_follows(planish, tiny_llama, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("some words of text" * 4)
    words = ("--model", tiny_llama, "--text", text, *REFERENCE, "--json")
    result = planish("perplexity", *words, "--max_positions", 16)
    assert result.code == 0 and json.loads(result.out)["window"] == 16
    result = planish("perplexity", *words, "--max_positions", 16, "--window", 17)
    assert result.refused("window", "at most 16")


def test_calibration_samples_follow(tiny_llama, tmp_path):
    words = ["--model", tiny_llama, "--out", tmp_path, "--recipe", "O1"]
    args = parse(["planish", "quantize", *map(str, words), "--max_positions", "8"])
    checkpoint = with_max_positions(open_checkpoint(tiny_llama), args)
    samples = samples_of(args, checkpoint, recipe_of(args))
    assert {len(sample) for sample in samples} == {8}


VERBS = {
    "generate": (),
    "perplexity": ("--text", "none.txt"),
    "evaluate": ("--task", ROOT / "examples/python.jsonl"),
    "logits": ("--tokens", "1", "--out", "out.npy"),
    "compare": (),
    "quantize": ("--out", "none", "--recipe", "W8A8"),
    "bench": (),
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("count", [0, -4])
def test_every_verb_refuses_no_positions(planish, tiny_llama, verb, count):
    result = planish(verb, "--model", tiny_llama, *VERBS[verb], f"--max_positions={count}")
    assert result.refused("max_positions: bad value; expected 1 or more", f"found {count}")


def test_a_model_of_a_shape_has_its_own_length(planish):
    result = planish("bench", "--shape", "110M", "--max_positions", 64)
    assert result.refused("--max_positions: is for --model, not for --shape")
