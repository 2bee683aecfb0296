"""The error of each linear against the float model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from planish.compare.lint.against import LinearError, compare_weights, require_float
from planish.compare.lint.run import lint
from planish.reference.errors import CheckpointError
from planish.reference.files.load import open_checkpoint
from planish.reference.quantized import dequantize
from tests.compare.lint.conftest import FOREIGN, LAYER, linear

SAMPLES = ["gptq-v1-sym-g32-desc_act", "awq-gemm-g32", "ct-w8a8", "mlx-4bit-g64", "gguf-q4_0"]
SAMPLES += ["gguf-q4_k_m", "ct-fp8", "torchao-int8-w8a8"]


def test_the_relative_error_of_literal_weights():
    one = linear([[3, 4, 0, 0]], scale=[[1.0]])
    error = compare_weights(one, np.array([[3, 5, 0, 0]], np.float32))
    assert error == LinearError(prefix="p", error=pytest.approx(1 / np.sqrt(34)), rescaled=False)
    same = compare_weights(one, np.array([[3, 4, 0, 0]], np.float32))
    assert same == LinearError(prefix="p", error=0.0, rescaled=False)


def test_weights_that_are_not_finite_are_the_worst():
    one = linear([[3, 4, 0, 0]], scale=[[np.nan]])
    assert compare_weights(one, np.ones((1, 4), np.float32)).error == np.inf


def matrix(rows=48, cols=64):
    return np.random.default_rng(0).standard_normal((rows, cols)).astype(np.float32)


def quantized(w):
    """INT8 in rows, as literal codes."""
    scale = np.abs(w).max(axis=1, keepdims=True) / 127
    codes = np.rint(w / scale)
    fields = {"bits": 8, "low": -128, "high": 127, "group_size": -1, "dtype": np.int8}
    return linear(codes, scale=scale, **fields)


def test_factors_that_smoothing_folded_in_are_found():
    """What is left is the error of quantization alone, up to the factors' own freedom."""
    w = matrix()
    cols = np.exp(np.random.default_rng(1).standard_normal((1, 64))).astype(np.float32)
    rows = np.exp(np.random.default_rng(2).standard_normal((48, 1))).astype(np.float32)
    for folded in (w * cols, rows * w * cols):
        true = compare_weights(quantized(folded), folded).error
        found = compare_weights(quantized(folded), w, factors=True)
        assert found.rescaled and found.error == pytest.approx(true, rel=0.05)


def test_a_weight_without_factors_keeps_its_error():
    error = compare_weights(quantized(matrix()), matrix(), factors=True)
    assert error == compare_weights(quantized(matrix()), matrix())
    assert not error.rescaled and 0.003 < error.error < 0.01


def test_another_matrix_is_not_taken_for_a_rescaled_one():
    other = np.random.default_rng(9).standard_normal((48, 64)).astype(np.float32)
    assert compare_weights(quantized(other), matrix(), True).error > 0.8


def make_float(sample: str, target: Path) -> Path:
    """A float model of the very weights that a sample represents, as planish reads them."""
    checkpoint = open_checkpoint(FOREIGN / sample)
    tensors, form = {}, checkpoint.format
    for name, entry in checkpoint.entries.items():
        prefix, _, kind = name.rpartition(".")
        scheme = form and form.scheme(checkpoint, prefix, "")
        if kind != "weight" or scheme is None:
            if not kind.startswith("weight_"):
                tensors[name] = entry.map().astype(np.float32)
            continue
        width = "intermediate_size" if prefix.endswith("down_proj") else "hidden_size"
        shape = entry.shape[0], getattr(checkpoint.config, width)
        weights = dequantize(form.read(checkpoint, prefix, scheme, shape).weight)
        tensors[name] = np.ascontiguousarray(weights)
    target.mkdir()
    values = {k: v for k, v in checkpoint.values.items() if k != "quantization_config"}
    (target / "config.json").write_text(json.dumps(values))
    save_file(tensors, target / "model.safetensors")
    return target


@pytest.mark.matrix(2)
@pytest.mark.parametrize("sample", SAMPLES)
def test_every_format_is_compared_in_the_order_of_its_rows_and_inputs(sample, tmp_path):
    floats = open_checkpoint(make_float(sample, tmp_path / "float"))
    result = lint(FOREIGN / sample, floats=floats)
    assert not result.skipped and len(result.errors) == result.linears >= 7
    assert max(one.error for one in result.errors) == 0


def test_a_changed_linear_is_the_worst(tmp_path):
    path = make_float("awq-gemm-g32", tmp_path / "float")
    tensors = load_file(path / "model.safetensors")
    tensors[f"{LAYER}.mlp.up_proj.weight"][5] *= 1.5
    save_file(tensors, path / "model.safetensors")
    errors = lint(FOREIGN / "awq-gemm-g32", floats=open_checkpoint(path)).errors
    assert [one.prefix for one in errors if one.error > 0] == [f"{LAYER}.mlp.up_proj"]


def test_norms_show_that_factors_were_folded(tmp_path):
    path = make_float("awq-gemm-g32", tmp_path / "float")
    tensors = load_file(path / "model.safetensors")
    norm, factors = f"{LAYER}.input_layernorm.weight", np.linspace(0.2, 5, 128, dtype=np.float32)
    tensors[norm] = tensors[norm] * factors
    for part in "qkv":
        tensors[f"{LAYER}.self_attn.{part}_proj.weight"] /= factors
    save_file(tensors, path / "model.safetensors")
    errors = lint(FOREIGN / "awq-gemm-g32", floats=open_checkpoint(path)).errors
    found = {one.prefix.rpartition(".")[2] for one in errors if one.rescaled}
    assert found == {"q_proj", "k_proj", "v_proj"}
    assert max(one.error for one in errors) < 1e-3


def test_what_cannot_be_compared_is_said(tmp_path):
    path = make_float("ct-w4a16-g32", tmp_path / "float")
    broken = Path(shutil.copytree(FOREIGN / "ct-w4a16-g32", tmp_path / "broken"))
    file = broken / "model.safetensors"
    tensors = load_file(file)
    del tensors[f"{LAYER}.mlp.up_proj.weight_packed"]
    save_file(tensors, file)
    result = lint(broken, floats=open_checkpoint(path))
    assert result.skipped == {f"{LAYER}.mlp.up_proj": "cannot be read"}
    assert len(result.errors) == 6


def test_the_float_model_must_be_float(tmp_path):
    require_float(open_checkpoint(FOREIGN / "ct-fp8"))
    with pytest.raises(CheckpointError, match="is quantized; expected the float model"):
        require_float(open_checkpoint(FOREIGN / "ct-w8a8"))
