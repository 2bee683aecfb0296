"""Directories that are no good model, as a user meets them: one line that says what is wrong.

The whole catalogue is tested where the files are read (tests/reference); here, that whatever is
wrong with a directory comes out of the command as exit code 2 and one line.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

WEIGHTS, CONFIG, INDEX = "model.safetensors", "config.json", "model.safetensors.index.json"
Change = Callable[[Path], object]


def weights(data: bytes) -> Change:
    """The weights file holds these bytes."""
    return lambda model: (model / WEIGHTS).write_bytes(data)


def truncated(model: Path) -> None:
    data = (model / WEIGHTS).read_bytes()
    (model / WEIGHTS).write_bytes(data[:-100])


def pickled(model: Path) -> None:
    (model / WEIGHTS).rename(model / "pytorch_model.bin")


def indexed(shard: str) -> Change:
    """An index that says where the final norm lies."""
    values = {"weight_map": {"model.norm.weight": shard}}
    return lambda model: (model / INDEX).write_text(json.dumps(values))


def shards_only(shard: str) -> Change:
    """The same without the one file that would go before the index."""
    return lambda model: (indexed(shard)(model), (model / WEIGHTS).unlink())


def config(**changes: object) -> Change:
    """config.json with other values."""

    def change(model: Path) -> None:
        values = json.loads((model / CONFIG).read_text()) | changes
        (model / CONFIG).write_text(json.dumps(values))

    return change


def tensor(name: str, new: np.ndarray | None) -> Change:
    """One tensor replaced, added, or left out."""

    def change(model: Path) -> None:
        tensors = load_file(model / WEIGHTS) | ({} if new is None else {name: new})
        tensors = {key: t for key, t in tensors.items() if new is not None or key != name}
        save_file(tensors, model / WEIGHTS)

    return change


def tokenizer(text: str | None) -> Change:
    """tokenizer.json with this text, or none."""
    if text is None:
        return lambda model: (model / "tokenizer.json").unlink()
    return lambda model: (model / "tokenizer.json").write_text(text)


UP, NORM = "model.layers.1.mlp.up_proj.weight", "model.norm.weight"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
CASES: dict[str, tuple[Change, tuple[str, ...]]] = {
    "empty weights": (weights(b""), (WEIGHTS, "truncated")),
    "truncated weights": (truncated, (WEIGHTS, "damaged")),
    "header that is too long": (weights(b"\xff" * 7 + b"\x7f" + b"{}"), (WEIGHTS,)),
    "header that is no JSON": (weights(b"\x04" + bytes(7) + b"nope"), (WEIGHTS, "not JSON")),
    "Git-LFS pointer": (weights(POINTER), (WEIGHTS, "git lfs pull")),
    "web page": (weights(b"<!DOCTYPE html><html>not found</html>"), (WEIGHTS,)),
    "only pickles": (pickled, ("pytorch_model.bin", "pickled")),
    "index that climbs out": (indexed("../x.safetensors"), (INDEX, "../x.safetensors")),
    "index with an absolute path": (indexed("/etc/passwd"), (INDEX, "/etc/passwd")),
    "index with a missing shard": (shards_only("a.safetensors"), ("a.safetensors", "missing")),
    "config that is no JSON": (lambda m: (m / CONFIG).write_text("{,"), (CONFIG, "not JSON")),
    "unknown architecture": (
        config(model_type="lama"),
        ("model_type", "'lama'", "did you mean llama", "how to add one"),
    ),
    "unknown activation": (config(hidden_act="mish"), ("hidden_act", "'mish'")),
    "unknown rope type": (config(rope_scaling={"rope_type": "warp"}), ("rope_type", "'warp'")),
    "heads that do not divide": (config(num_attention_heads=6), ("hidden_size", "64")),
    "negative size": (config(intermediate_size=-96), ("intermediate_size", "-96")),
    "absurd size": (config(vocab_size=10**12), ("vocab_size",)),
    "another's quantization": (
        config(quantization_config={"quant_method": "gptq"}),
        ("quant_method", "'gptq'"),
    ),
    "missing tensor": (tensor(UP, None), (UP, "missing")),
    "extra tensor": (tensor("model.extra.weight", np.zeros(3)), ("model.extra.weight",)),
    "transposed tensor": (tensor(UP, np.zeros((64, 96), np.float32)), (UP, "[96, 64]")),
    "wrong type of tensor": (tensor(NORM, np.zeros(64, np.int64)), (NORM, "I64")),
    "weights that are not finite": (tensor(NORM, np.full(64, np.inf, np.float32)), (NORM, "inf")),
    "no tokenizer": (tokenizer(None), ("tokenizer.json", "no such file")),
    "damaged tokenizer": (tokenizer("{}"), ("tokenizer.json", "damaged")),
}


@pytest.mark.matrix(2)
@pytest.mark.parametrize("case", CASES)
def test_a_bad_model_is_refused_in_one_line(planish, make_llama, case):
    change, expected = CASES[case]
    model = make_llama()
    change(model)
    words = ("--model", model, "--prompt", "a", "--max_new_tokens", 1, "--engine", "reference")
    assert planish("generate", *words).refused(str(model), *expected)


@pytest.mark.parametrize("case", ["truncated weights", "transposed tensor", "missing tensor"])
def test_a_bad_model_is_not_quantized_and_nothing_is_written(planish, make_llama, tmp_path, case):
    change, expected = CASES[case]
    model = make_llama()
    change(model)
    words = ("--model", model, "--out", tmp_path / "q", "--recipe", "W4A16", "--group_size", 32)
    assert planish("quantize", *words).refused(*expected)
    assert list(tmp_path.iterdir()) == [model]


def test_a_tokenizer_larger_than_the_embedding_is_refused(planish, make_llama):
    model = make_llama(vocab_size=200, bos_token_id=1, eos_token_id=2)
    result = planish("generate", "--model", model, "--prompt", "a")
    assert result.refused("tokenizer.json", "200", "257")


@pytest.mark.parametrize(
    "words",
    [
        ("generate", "--prompt_file"),
        ("perplexity", "--text"),
        ("quantize", "--recipe", "W8A8", "--out", "q", "--calibration"),
    ],
    ids=lambda words: words[0],
)
def test_only_a_text_with_the_token_beyond_the_embedding_is_refused(
    planish, make_llama, tmp_path, monkeypatch, words
):
    monkeypatch.chdir(tmp_path)
    model = make_llama(vocab_size=257, eos_token_id=1)
    (tmp_path / "text").write_text("some text and </s>")
    result = planish(words[0], "--model", model, *words[1:], tmp_path / "text")
    notice, error = result.err.splitlines()
    assert "the first '</s>' (id 257, rows 257)" in notice
    assert (result.code, result.out) == (2, "")
    assert error.startswith("error: ") and "token '</s>': has no row" in error
    assert sorted(tmp_path.iterdir()) == [tmp_path / "text", model]
