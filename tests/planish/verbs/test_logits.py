"""logits: an array in a file, and where it may go."""

from __future__ import annotations

import io
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from planish.reference.engine import Engine
from planish.reference.files.load import open_checkpoint


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


def test_logits_go_to_a_pipe_by_the_name_of_its_descriptor(tiny_llama):
    command = [sys.executable, "-m", "planish", "logits", "--model", tiny_llama]
    command += ["--tokens", "1,2", "--engine", "reference", "--out", "/dev/stdout"]
    done = subprocess.run(command, capture_output=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"/dev/stdout: float32 [2, 300]\n")
    assert np.load(io.BytesIO(done.stdout)).shape == (2, 300)


@pytest.mark.parametrize(("value", "good"), [(np.nan, False), (np.inf, False), (-np.inf, True)])
def test_logits_that_are_no_numbers_are_refused(
    planish, tiny_llama, tmp_path, monkeypatch, value, good
):
    class Broken:
        def forward(self, tokens):
            return np.array([[0, 1, 2], [0, 1, value]], np.float32)

    monkeypatch.setattr("planish.verbs.logits.open_engine", lambda *_: Broken())
    out = tmp_path / "x.npy"
    out.write_text("old")
    result = planish("logits", "--model", tiny_llama, "--tokens", "1,2", "--out", out)
    if good:
        assert result.code == 0 and np.load(out)[1, 2] == value
    else:
        assert result.refused("logits", f"found {value} at position 1, token 2")
        assert out.read_text() == "old" and list(tmp_path.iterdir()) == [out]


@pytest.mark.matrix(4)
@pytest.mark.parametrize("kernels", ["xla", "auto"])
@pytest.mark.parametrize("cache", ["float32", "int8"])
def test_both_engines_agree_whatever_the_cache(planish, tiny_llama, tmp_path, kernels, cache):
    words = ("logits", "--model", tiny_llama, "--tokens", "1,2,3,4,5,6,7", "--kv_cache", cache)
    planish(*words, "--out", tmp_path / "fast.npy", "--kernels", kernels)
    planish(*words, "--out", tmp_path / "reference.npy", "--engine", "reference")
    found, expected = np.load(tmp_path / "fast.npy"), np.load(tmp_path / "reference.npy")
    assert np.abs(found - expected).max() < 1e-3 * np.ptp(expected)
    planish("logits", *words[1:5], "--out", tmp_path / "other.npy", "--kv_cache", "float32")
    same = bool((np.load(tmp_path / "other.npy") == found).all())
    assert same == (cache == "float32" and kernels == "auto")


@pytest.mark.matrix(2)
@pytest.mark.parametrize("engine", ["reference", "fast"])
def test_a_model_that_overflows_is_one_line_without_warnings(make_llama, shell, tmp_path, engine):
    model = make_llama()
    tensors = load_file(model / "model.safetensors")
    tensors["model.layers.0.self_attn.q_proj.weight"][0] = 3e38
    save_file(tensors, model / "model.safetensors")
    words = ("logits", "--model", model, "--tokens", "1,5", "--out", tmp_path / "l.npy")
    quiet = ("--kernels", "xla") if engine == "fast" else ()  # kernels may have to be compiled
    assert shell(*words, "--engine", engine, *quiet).refused("logits", "found nan")
