"""Calibrations and models that are hard for a method: it ends with a model near the float one.

A channel that is always zero, a text of one token repeated (every Hessian has rank one), groups
larger than a row, and texts that are no texts.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from planish.reference.engine import Engine
from planish.reference.files.load import open_checkpoint

TRAINED = ("teq", "signround")
WHOLE = pytest.mark.whole  # each of them compiles for seconds
METHODS = ["rtn", "gptq", "awq", *(pytest.param(x, marks=WHOLE) for x in ("awq+gptq", *TRAINED))]
TOKENS = list(b"Some words to compare two models by.")
SHORT = ("--samples", 4, "--sequence_length", 32)


@pytest.fixture
def text(tmp_path):
    file = tmp_path / "text.txt"
    file.write_text("Words to calibrate on, of which there are a few. " * 5, encoding="utf-8")
    return file


@pytest.fixture
def quantize(planish, text, tmp_path):
    """quantize(model, method, ...) into tmp_path / "q"; trained methods take one step."""

    def call(model, method, *more):
        where = ("--model", model, "--out", tmp_path / "q", "--recipe", "W4A16-g32")
        given = () if "--calibration" in more else ("--calibration", text)
        engine = ("--engine", "reference")
        if method in TRAINED:
            engine = ("--kernels", "xla", "--iterations", 1)
        return planish("quantize", *where, "--method", method, *given, *SHORT, *engine, *more)

    return call


def relative_error(model: Path, quantized: Path) -> float:
    """The error of the logits relative to their deviation; NaN if one is not finite."""
    expected, found = (Engine(open_checkpoint(path)).forward(TOKENS) for path in (model, quantized))
    return float(np.abs(found - expected).mean() / expected.std())


def with_dead_channels(model: Path) -> Path:
    """The model with channels that no token reaches: of the norms, of up's outputs, of v's."""
    tensors = dict(load_file(model / "model.safetensors"))
    for name, tensor in tensors.items():
        if name.endswith("layernorm.weight"):
            tensor[5] = 0
        if name.endswith(("up_proj.weight", "v_proj.weight")):
            tensor[:, 7], tensor[3] = 0, 0
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    return model


@pytest.mark.matrix(3)
@pytest.mark.parametrize("method", METHODS)
def test_channels_that_are_always_zero(quantize, make_llama, tmp_path, method):
    model = with_dead_channels(make_llama(name="dead"))
    result = quantize(model, method)
    assert result.code == 0, result.err
    assert relative_error(model, tmp_path / "q") < 0.5


@pytest.mark.matrix(3)
@pytest.mark.parametrize("method", METHODS)
def test_one_token_repeated(quantize, tiny_llama, tmp_path, method):
    same = tmp_path / "same.txt"
    same.write_text("a" * 200, encoding="utf-8")
    result = quantize(tiny_llama, method, "--calibration", same)
    assert result.code == 0, result.err
    assert relative_error(tiny_llama, tmp_path / "q") < 0.5


@pytest.mark.matrix(3)
@pytest.mark.parametrize("method", METHODS)
def test_groups_larger_than_a_row_are_the_row(planish, quantize, tiny_llama, tmp_path, method):
    """K is 64, and 96 in down_proj: g = 256 is one group, as g = -1 has it."""
    result = quantize(tiny_llama, method, "--recipe", "W4A16-g256")
    assert result.code == 0, result.err
    (tmp_path / "q").rename(tmp_path / "wide")
    assert quantize(tiny_llama, method, "--recipe", "W4A16-g-1").code == 0
    wide, row = (load_file(tmp_path / name / "model.safetensors") for name in ("wide", "q"))
    assert wide.keys() == row.keys()
    assert all(np.array_equal(wide[name], row[name]) for name in row if "codes" in name)


def test_fewer_samples_than_asked_for_are_said(quantize, tiny_llama, tmp_path):
    result = quantize(tiny_llama, "gptq", "--samples", 4000)
    assert result.code == 0
    assert "calibrating on 7 samples of 32 tokens: the text has no more" in result.err
    said = json.loads((tmp_path / "q" / "config.json").read_text())["quantization_config"]
    assert said["calibration"]["samples"] == 7


@pytest.mark.parametrize("method", ["gptq", "awq", *TRAINED])
@pytest.mark.parametrize(
    ("name", "data", "problem"),
    [
        ("empty.txt", b"", "contains no text"),
        ("short.txt", b"Too short.", "is too short; expected at least 32 tokens, found 10"),
        ("latin.txt", "caf\u00e9 ".encode("latin-1") * 99, "is not text; expected UTF-8"),
        ("blank.jsonl", b"\n\n  \n", "contains no text"),
        ("field.jsonl", b'{"content": "x"}\n', "line 1: text: is missing"),
        ("binary.jsonl", b'{"text": "\xff"}\n', "is not text; expected UTF-8"),
    ],
)
@pytest.mark.matrix(5)
def test_a_text_that_is_none_is_refused(
    quantize, tiny_llama, tmp_path, method, name, data, problem
):
    file = tmp_path / name
    file.write_bytes(data)
    result = quantize(tiny_llama, method, "--calibration", file)
    assert result.code == 2 and problem in result.err and result.err.count("\n") == 1, result.err
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["text.txt", name])
