"""planish convert and quantize to GGUF files, and --config with one."""

import json

import numpy as np
import pytest

from planish.reference.files.load import load_weights, open_checkpoint
from planish.reference.gguf import read_gguf
from planish.reference.model.transformer import forward


def logits(path):
    checkpoint = open_checkpoint(path)
    return forward(checkpoint.config, load_weights(checkpoint), [1, 5, 9])


@pytest.fixture
def quantized(planish, tiny_llama, tmp_path):
    """W4A16 codes as a directory, and the flags that made it."""
    words = ("--model", tiny_llama, "--recipe", "W4A16-g32", "--engine", "reference")
    assert planish("quantize", *words, "--out", tmp_path / "w4").code == 0
    return tmp_path / "w4", words


def test_a_model_is_one_file_and_a_directory_again(planish, quantized, tmp_path):
    source, file = quantized[0], tmp_path / "model.gguf"
    words = ("convert", "--model", source, "--out", file, "--format", "gguf")
    result = planish(*words)
    assert (result.code, result.out) == (0, "")
    assert f"{file}: gguf, " in result.err
    np.testing.assert_array_equal(logits(file), logits(source))
    assert "made by planish" in planish("inspect", "--model", file).out
    refused = planish(*words)
    assert refused.code != 0 and "exists; give --overwrite to replace it" in refused.err
    assert planish(*words, "--overwrite").code == 0
    back = ("convert", "--model", file, "--out", tmp_path / "back", "--format", "planish")
    assert planish(*back).code == 0
    np.testing.assert_array_equal(logits(tmp_path / "back"), logits(source))


def test_quantize_writes_the_same_file(planish, quantized, tmp_path):
    source, words = quantized
    file, other = tmp_path / "direct.gguf", tmp_path / "converted.gguf"
    assert planish("quantize", *words, "--out", file, "--format", "gguf").code == 0
    assert planish("convert", "--model", source, "--out", other, "--format", "gguf").code == 0
    first, second = (read_gguf(one).tensors for one in (file, other))
    assert first == second
    assert all(np.array_equal(first[name].data, second[name].data) for name in first)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name[0] == ".") == []


def test_a_recipe_that_gguf_cannot_hold_is_refused_first(planish, tiny_llama, tmp_path):
    words = ("--recipe", "W4A8-g32", "--engine", "reference", "--format", "gguf")
    result = planish("quantize", "--model", tiny_llama, "--out", tmp_path / "x.gguf", *words)
    assert result.code != 0 and "cannot be held by gguf; expected inputs in float" in result.err
    assert not (tmp_path / "x.gguf").exists()


def test_a_config_is_given_for_a_file(planish, quantized, tmp_path):
    source, given = quantized[0], tmp_path / "given"
    file = tmp_path / "model.gguf"
    assert planish("convert", "--model", source, "--out", file, "--format", "gguf").code == 0
    given.mkdir()
    values = open_checkpoint(file).values | {"max_position_embeddings": 77}
    (given / "config.json").write_text(json.dumps(values))
    (given / "tokenizer.json").write_bytes((source / "tokenizer.json").read_bytes())
    shown = planish("inspect", "--model", file, "--config", given).out
    assert "77 positions" in shown
    words = ("convert", "--model", file, "--config", given, "--format", "planish")
    assert planish(*words, "--out", tmp_path / "out").code == 0
    assert open_checkpoint(tmp_path / "out").config.max_positions == 77
    refused = planish("inspect", "--model", source, "--config", given)
    assert refused.code != 0 and "config: is for a GGUF file" in refused.err
