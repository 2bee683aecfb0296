"""--attention and --kv_cache: what they imply, what they store, and what they refuse."""

from __future__ import annotations

import json

import numpy as np
import pytest

from planish import api

TEXT = "Once upon a time there was a fox. " * 30


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture
def static(tiny_llama, tmp_path, text):
    """An O3 model with INT8 attention."""
    given = {"calibration": text, "samples": 2, "sequence_length": 16, "engine": "reference"}
    api.quantize(tiny_llama, tmp_path / "O3", recipe="O3", attention="int8", **given)
    return tmp_path / "O3"


def run(planish, tmp_path, model, *flags):
    """Logits of a prompt."""
    out = tmp_path / "logits.npy"
    result = planish("logits", "--model", model, "--tokens", "1,2,3,4,5,6,7", "--out", out, *flags)
    assert result.code == 0, result.err
    return np.load(out)


@pytest.mark.matrix(4)
@pytest.mark.parametrize(
    "flags",
    [
        (),
        ("--attention", "float"),
        ("--attention", "int8", "--kv_cache", "int8"),
        ("--attention", "float", "--kv_cache", "int8_static"),
    ],
)
def test_both_engines_compute_each_attention(planish, tmp_path, static, flags):
    fast = run(planish, tmp_path, static, "--kernels", "xla", *flags)
    defined = run(planish, tmp_path, static, "--engine", "reference", *flags)
    assert np.abs(fast - defined).max() < 1e-3 * np.ptp(defined)


def test_every_attention_is_another(planish, tmp_path, static):
    flags = [(), ("--attention", "float"), ("--kv_cache", "int8")]
    found = [run(planish, tmp_path, static, "--engine", "reference", *one) for one in flags]
    assert not any(np.array_equal(found[i], found[i - 1]) for i in range(3))


def test_o3_is_static_and_o1_is_dynamic(tiny_llama, tmp_path, static, text):
    given = {"calibration": text, "samples": 2, "sequence_length": 16, "engine": "reference"}
    api.quantize(tiny_llama, tmp_path / "O1", recipe="O1-int8_attention", **given)
    for name, cache in (("O3", "int8_static"), ("O1", "int8")):
        values = json.loads((tmp_path / name / "config.json").read_text())["quantization_config"]
        assert (values["attention"], values["kv_cache"]) == ("int8", cache)


def test_float_attention_is_not_said(tiny_llama, tmp_path):
    api.quantize(tiny_llama, tmp_path / "out", recipe="W8A16")
    values = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert "attention" not in values and "kv_cache" not in values


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (("--attention", "int8", "--kv_cache", "float32"), "kv_cache: contradicts INT8 attention"),
        (("--attention", "int8", "--kv_cache", "int8_static"), "no calibrated scales"),
        (("--kv_cache", "int8_static"), "no calibrated scales"),
    ],
)
def test_a_cache_that_cannot_be_is_refused(planish, tiny_llama, flags, problem):
    given = ("generate", "--model", tiny_llama, "--prompt", "x", "--engine", "reference")
    assert planish(*given, *flags).refused(problem)


def test_a_float_cache_contradicts_a_model_of_int8_attention(planish, static):
    given = ("generate", "--model", static, "--prompt", "x", "--engine", "reference")
    assert planish(*given, "--kv_cache", "float32").refused("contradicts INT8 attention")


@pytest.mark.parametrize(
    ("recipe", "flags", "problem"),
    [
        ("O3", ("--attention", "int8", "--kv_cache", "float32"), "contradicts INT8 attention"),
        ("float", ("--attention", "int8"), "attention: is not stored with a float model"),
        ("float", ("--kv_cache", "int8"), "kv_cache: is not stored with a float model"),
        ("O1-int8_attention", ("--attention", "float"), "attention: is given twice"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused(planish, tiny_llama, tmp_path, recipe, flags, problem):
    given = ("quantize", "--model", tiny_llama, "--out", tmp_path / "out", "--recipe", recipe)
    assert planish(*given, *flags).refused(problem)
    assert not (tmp_path / "out").exists()
