"""perplexity, logits, inspect, compare and bench: what they print, as text and as JSON."""

from __future__ import annotations

import io
import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from planish.compare.bench import sizes as shapes
from planish.compare.bench.sizes import Shape
from planish.reference.files.load import open_checkpoint
from planish.reference.text.engine import Engine


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
    result = planish("perplexity", "--model", tiny_llama, "--text", short, "--window", 128)
    assert result.refused("too short", "128", "127")


def test_without_a_window_a_short_text_is_one(planish, tiny_llama, tmp_path):
    short = tmp_path / "short.txt"
    short.write_text("x" * 127)
    words = ("perplexity", "--model", tiny_llama, "--text", short, "--engine", "reference")
    result = planish(*words)
    assert "1 windows of 127" in result.out
    assert result.err == "window: 127 tokens instead of 128, as the text has no more\n"
    short.write_text("x")
    assert planish(*words).refused("text", "too short", "at least 128", "found 1")


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


@pytest.mark.parametrize(
    ("words", "said", "unsaid"),
    [
        ("W4A16", ["rule", "group_size"], ["granularity"]),
        ("W4A16 --lm_head int8", ["rule", "granularity"], []),
        ("W8A16", ["granularity"], ["rule", "group_size", "scale_dtype"]),
        ("W8A16 --lm_head int4", ["granularity", "rule"], []),
    ],
)
def test_inspect_says_only_what_holds_for_the_codes(
    planish, tiny_llama, tmp_path, words, said, unsaid
):
    more = ("--out", tmp_path / "q", "--recipe", *words.split())
    assert planish("quantize", "--model", tiny_llama, *more).code == 0
    values = only_json(planish("inspect", "--model", tmp_path / "q", "--json"))["quantization"]
    line = planish("inspect", "--model", tmp_path / "q").out.splitlines()[2]
    assert all(name in values and f"{name} " in line for name in said)
    assert not any(name in values or f"{name} " in line for name in unsaid)


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


def test_inspect_of_a_directory_whose_name_is_no_utf8(planish, make_llama, tmp_path):
    path = make_llama().rename(tmp_path / os.fsdecode(b"mod\xe8le"))
    assert r"mod\xe8le: llama" in planish("inspect", "--model", path).out
    values = only_json(planish("inspect", "--model", path, "--json"))
    assert os.fsencode(values["model"]).endswith(b"mod\xe8le")


def test_compare_agrees_on_a_float_model(planish, tiny_llama):
    result = planish("compare", "--model", tiny_llama, "--json")
    assert result.code == 0
    assert only_json(result)["agree"] is True


def test_compare_exits_with_3_where_engines_differ(planish, tiny_llama, monkeypatch):
    class Report:
        agree = False

        def table(self) -> str:
            return "DIFFER"

    monkeypatch.setattr(
        "planish.compare.conformance.report.run", lambda *arguments, **options: Report()
    )
    result = planish("compare", "--model", tiny_llama)
    assert (result.code, result.out) == (3, "DIFFER\n")


def test_compare_refuses_a_bad_prompt_file(planish, tiny_llama, tmp_path):
    bad = tmp_path / "bad.txt"
    bad.write_bytes(b"\xff")
    result = planish("compare", "--model", tiny_llama, "--prompt_file", bad)
    assert result.refused("bad.txt", "UTF-8")


@pytest.fixture
def quick_limits(monkeypatch):
    monkeypatch.setattr("planish.compare.bench.roofline.READ_BYTES", 2**21)
    monkeypatch.setattr("planish.compare.bench.roofline.ROUNDS", 100)


@pytest.mark.parametrize("kernels", ["xla", "auto"])
def test_bench_measures_beside_limits(planish, tiny_llama, quick_limits, kernels):
    words = ("bench", "--model", tiny_llama, "--runs", 2, "--kernels", kernels)
    values = only_json(planish(*words, "--tests", "pp512,tg128,tg4x3", "--json"))
    assert set(values) == {"rows", "limits", "machine", "engines", "missing"}
    assert [row["test"] for row in values["rows"]] == ["pp128", "tg127", "tg4x3"]
    for row in values["rows"]:
        assert row["runs"] == 2 and 0 < row["low"] <= row["median"] <= row["high"]
        assert row["percent_of_limit"] == pytest.approx(100 * row["median"] / row["limit"])
    assert values["limits"]["memory_read_bytes_per_second"] > 0
    assert values["machine"]["cores"] >= 1


def test_bench_makes_random_models_and_names_missing_peers(
    planish, tmp_path, quick_limits, monkeypatch
):
    tiny = Shape("110M", 64, 2, 4, 2, 96, 300)
    monkeypatch.setitem(shapes.SHAPES, "110M", tiny)
    monkeypatch.setattr("planish.compare.bench.engines.installed", lambda peer: False)
    words = (
        "bench",
        "--shape",
        "110M",
        "--recipes",
        "W4A8-g32,W8A8",
        "--tests",
        "tg2",
        "--runs",
        1,
    )
    words += ("--runs", 1, "--peers", "llama.cpp,torch", "--directory", tmp_path / "models")
    result = planish(*words)
    assert result.code == 0
    assert "| 110M | planish | W4A8-g32 |" in result.out and "| tg2 |" in result.out
    assert "not measured: llama.cpp: not installed" in result.out
    assert "pip install torch" in result.out
    assert (tmp_path / "models" / "110M-W8A8" / "config.json").exists()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--peers", "lama"], ["peers", "llama.cpp"]),
        (["--tests", "pp"], ["tests", "pp512"]),
        (["--tests", ","], ["tests", "is empty"]),
        (["--tests", "pp512x8"], ["tests", "'pp512x8'"]),
        (["--runs", "0"], ["runs", "1 or more"]),
        (["--shape", "110M"], ["not allowed with"]),
    ],
)
def test_bench_refuses_what_it_cannot_measure(planish, tiny_llama, words, expected):
    assert planish("bench", "--model", tiny_llama, *words).refused(*expected)


def test_bench_refuses_an_unknown_recipe_of_a_shape(planish):
    result = planish("bench", "--shape", "110M", "--recipes", "W4A8-gx")
    assert result.refused("recipes", "'W4A8-gx'")
    assert planish("bench", "--shape", "110M", "--recipes", ",").refused("recipes", "is empty")


def test_inspect_says_which_kernels_are_used_and_why(planish, tiny_llama):
    values = only_json(planish("inspect", "--model", tiny_llama, "--json"))
    assert values["kernels"]["use"].split()[0] in ("native", "xla")
    text = planish("inspect", "--model", tiny_llama, "--kernels", "xla").out
    assert "kernels: xla (--kernels xla)" in text


def test_without_a_compiler_one_line_says_so_and_the_result_is_the_same(
    planish, tiny_llama, monkeypatch
):
    words = ("generate", "--model", tiny_llama, "--prompt", "Ab", "--max_new_tokens", 6)
    expected = planish(*words, "--kernels", "xla").out
    monkeypatch.setattr("planish.fast.native.library._loaded", [])
    monkeypatch.setattr("planish.fast.native.build.shutil.which", lambda name: None)
    result = planish(*words)
    assert (result.code, result.out) == (0, expected)
    assert result.err.count("no C++ compiler was found") == 1
    assert planish(*words, "--kernels", "native").refused("no C++ compiler was found")
    inspected = planish("inspect", "--model", tiny_llama).out
    assert "kernels: xla (no C++ compiler was found" in inspected


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


@pytest.mark.parametrize("engine", ["reference", "fast"])
def test_a_model_that_overflows_is_one_line_without_warnings(make_llama, shell, tmp_path, engine):
    model = make_llama()
    tensors = load_file(model / "model.safetensors")
    tensors["model.layers.0.self_attn.q_proj.weight"][0] = 3e38
    save_file(tensors, model / "model.safetensors")
    words = ("logits", "--model", model, "--tokens", "1,5", "--out", tmp_path / "l.npy")
    assert shell(*words, "--engine", engine).refused("logits", "found nan")
