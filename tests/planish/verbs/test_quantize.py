"""planish quantize: every recipe from the command line, and everything it refuses."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from planish.command import parse, run
from planish.reference.engine import Engine
from planish.reference.files.load import open_checkpoint
from planish.reference.quantize.runtime import NUMPY
from planish.verbs import quantize as verb

SHORT = ("--samples", 2, "--sample_length", 32, "--kernels", "xla")  # enough here


@pytest.fixture
def text(tmp_path):
    file = tmp_path / "text.txt"
    file.write_text("Words to calibrate on, a few. " * 10, encoding="utf-8")
    return file


@pytest.fixture
def quantize(planish, tiny_llama, tmp_path, text):
    """quantize("--recipe", ...) of the tiny model into tmp_path / "q"."""

    def call(*words, model=tiny_llama, out=tmp_path / "q"):
        calibrates = {"W8A8", "O1", "O2", "O3"}.intersection(words)
        more = SHORT if calibrates and "--samples" not in words else ()
        given = not calibrates or "--calibration" in words
        calibration = () if given else ("--calibration", text)
        where = ("--model", model, "--out", out)
        return planish("quantize", *where, *calibration, *more, *words)

    return call


def logits(path: Path) -> np.ndarray:
    return Engine(open_checkpoint(path)).forward(list(b"Words to judge by."))


@pytest.mark.matrix(18)
@pytest.mark.parametrize(
    ("words", "tolerance"),
    [
        ("--recipe float", 0),
        ("--recipe float --lm_head int8", 0.02),
        ("--recipe W8A8", 0.05),
        ("--recipe W8A8 --alpha 0.8 --smooth_outputs", 0.05),
        ("--recipe W8A8 --alpha search", 0.05),
        ("--recipe W8A8 --alpha search_per_block", 0.05),
        ("--recipe O1", 0.05),
        ("--recipe O2", 0.08),
        ("--recipe O3", 0.08),
        ("--recipe naive", 0.05),
        ("--recipe naive --scheme O3", 0.08),
        ("--recipe W8A16 --ignore *.down_proj", 0.05),
        ("--recipe W4A16 --group_size 32 --rule minmax --method rtn", 0.3),
        ("--recipe W4A16 --group_size 32 --scale_dtype float32 --lm_head int4", 0.3),
        ("--recipe W4A8 --group_size 32", 0.3),
        ("--recipe W4A8 --group_size 32 --layout canonical", 0.3),
        ("--recipe W4A16 --scheme *.down_proj=W8A16,q_proj=W4A8-g32,v_proj=O3", 0.3),
        ("--recipe W4A8 --group_size -1 --activation per_token", 0.5),
    ],
)
def test_every_recipe_gives_a_model_near_the_float_one(
    quantize, tiny_llama, tmp_path, words, tolerance
):
    result = quantize(*words.split())
    assert (result.code, result.out) == (0, ""), result
    expected, found = logits(tiny_llama), logits(tmp_path / "q")
    assert np.abs(found - expected).max() <= tolerance * np.ptp(expected)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["q", "text.txt"]


def test_the_directory_says_what_was_done(quantize, tmp_path):
    quantize("--recipe", "W8A8", "--alpha", 0.7, "--ignore", "*.o_proj", "--ignore", "*.k_proj")
    said = json.loads((tmp_path / "q" / "config.json").read_text())["quantization_config"]
    assert (said["quant_method"], said["recipe"]) == ("planish", "W8A8")
    assert said["smoothing"]["alpha"] == 0.7
    left = [f"model.layers.{{i}}.self_attn.{part}_proj" for part in "ko"]
    assert said["ignore"] == [*left, "lm_head"]
    assert said["calibration"]["samples"] == 2 and said["calibration"]["length"] == 32


def test_without_calibration_the_embedded_text_is_used_with_a_word_about_it(
    planish, tiny_llama, tmp_path
):
    words = ("--out", tmp_path / "q", "--recipe", "W8A8", *SHORT)
    result = planish("quantize", "--model", tiny_llama, *words)
    assert result.code == 0 and "embedded text" in result.err


def test_a_text_that_a_recipe_does_not_need_must_be_there_nevertheless(quantize, text, tmp_path):
    words = ("--recipe", "W8A16", "--calibration")
    assert quantize(*words, "/no/such/text").refused("/no/such/text", "cannot be read")
    assert not (tmp_path / "q").exists()
    result = quantize(*words, text)
    assert result.code == 0 and "--calibration: no effect with --recipe W8A16" in result.err


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            "W4A16 --samples 512 --sample_length 8",
            "--samples, --sample_length: no effect with --recipe W4A16, which needs no calibration",
        ),
        (
            "float --ignore down_proj --layout tiles",
            (
                "--ignore: no effect with --recipe float; "
                "--layout: no effect without quantized weights"
            ),
        ),
        (
            "float --lm_head int8 --method rtn --samples 4",
            "--samples: no effect with --recipe float, which needs no calibration",
        ),
        ("W8A16 --ignore up_proj --ignore down_proj --lm_head float", ""),
    ],
)
def test_flags_without_effect_are_said_in_one_line(quantize, words, line):
    result = quantize("--recipe", *words.split())
    assert (result.code, result.err.splitlines()[:-1]) == (0, [line] if line else [])


@pytest.mark.matrix(3)
@pytest.mark.parametrize(
    ("words", "lines"),
    [
        ((), ["calibrating on 1 sample of 40 tokens: the text has no more"]),
        (
            ("--samples", 3, "--sample_length", 16),
            ["calibrating on 2 samples of 16 tokens: the text has no more"],
        ),
        (
            ("--samples", 1, "--sample_length", 129),
            [
                "sequence_length: 128, as the model has no more positions",
                "error: calibration: is too short",
            ],
        ),
    ],
)
def test_a_short_text_gives_fewer_samples_with_a_notice(
    planish, tiny_llama, tmp_path, text, words, lines
):
    text.write_text("x" * 40)
    where = ("--model", tiny_llama, "--out", tmp_path / "q", "--calibration", text)
    result = planish("quantize", *where, "--recipe", "W8A8", *words)
    found = result.err.splitlines()[: len(lines)]
    assert all(line.startswith(start) for line, start in zip(found, lines, strict=True))
    assert (tmp_path / "q").exists() == (result.code == 0) == ("error" not in result.err)


@pytest.mark.matrix(2)
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--recipe W8A9", ["recipe", "did you mean W8A8?", "'W8A9'"]),
        ("--recipe w4a16", ["did you mean W4A16?"]),
        ("--recipe zzz", ["recipe", "W8A8"]),
        ("--recipe naive --scheme 04", ["scheme", "O1"]),
        ("--recipe W8A16 --scheme down_proj", ["scheme", "PATTERN=SCHEME"]),
        ("--recipe W8A16 --scheme down_proj=W8A9", ["scheme", "did you mean W8A8?"]),
        ("--recipe W8A16 --scheme down_prj=W8A8", ["scheme", "as down_proj", "down_prj"]),
        ("--recipe W8A16 --scheme lm_head=O2", ["scheme", "lm_head", "per_token"]),
        ("--recipe W8A16 --scheme /no/such.json", ["/no/such.json", "no such file"]),
        ("--recipe W8A8 --scheme O1", ["scheme", "naive"]),
        ("--recipe W4A16 --group_size 0", ["group_size", "32", "0"]),
        ("--recipe W4A16 --group_size 48", ["group_size", "48"]),
        ("--recipe W8A8 --group_size 32", ["group_size", "no effect"]),
        ("--recipe W4A16 --rule minmaks", ["rule", "did you mean minmax?"]),
        ("--recipe W4A16 --method rnt", ["method", "did you mean rtn?"]),
        ("--recipe W4A16 --scale_dtype float8", ["scale_dtype", "float16"]),
        ("--recipe W4A8 --activation per_tokn", ["activation", "per_token"]),
        ("--recipe W8A8 --activation per_token", ["activation", "W4A8"]),
        ("--recipe W8A8 --alpha 1.5", ["alpha", "0..1", "1.5"]),
        ("--recipe W8A8 --alpha nan", ["alpha", "nan"]),
        ("--recipe W8A8 --alpha serch", ["alpha", "did you mean search?"]),
        ("--recipe naive --alpha 0.5", ["alpha", "naive"]),
        ("--recipe float --alpha search", ["alpha", "no error to minimise"]),
        ("--recipe W8A8 --ignore down_prj", ["ignore", "as down_proj", "down_prj"]),
        ("--recipe W8A16 --ignore re:(", ["ignore", "not a regular expression", "re:("]),
        ("--recipe W8A16 --lm_head int8 --ignore lm_head", ["ignore", "contradicts lm_head int8"]),
        ("--recipe W8A8 --lm_head int9", ["lm_head", "did you mean int8?"]),
        ("--recipe W4A16 --layout tile", ["layout", "tiles, canonical", "'tile'"]),
        ("--recipe W8A8 --samples 0", ["calibration", "at least 1"]),
        ("--recipe W8A8 --sample_length 0 --samples 2", ["calibration", "at least 1"]),
        ("--recipe W8A8 --samples -3", ["calibration", "-3"]),
        ("--recipe W8A8 --calibration /no/such/text", ["/no/such/text"]),
    ],
)
def test_bad_choices_are_refused_and_nothing_is_written(quantize, tmp_path, words, expected):
    assert quantize(*words.split()).refused(*expected)
    assert [path.name for path in tmp_path.iterdir()] == ["text.txt"]


def test_calibration_text_too_short_is_refused(quantize, text, tmp_path):
    text.write_text("x" * 31)
    assert quantize("--recipe", "W8A8").refused("calibration", "too short", "32", "31")
    text.write_bytes(b"\xff" * 100)
    assert quantize("--recipe", "W8A8").refused("text.txt", "UTF-8")
    assert not (tmp_path / "q").exists()


def test_a_quantized_model_is_not_quantized_again(quantize, tmp_path):
    quantize("--recipe", "W8A16")
    again = quantize("--recipe", "W4A16", model=tmp_path / "q", out=tmp_path / "twice")
    assert again.refused("already quantized", "W8A16")
    assert not (tmp_path / "twice").exists()


def test_weights_that_are_no_numbers_are_refused(quantize, make_llama, tmp_path):
    from safetensors.numpy import load_file, save_file

    path = make_llama(name="broken")
    tensors = load_file(path / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = np.nan
    save_file(tensors, path / "model.safetensors")
    result = quantize("--recipe", "W8A16", model=path)
    assert result.refused("model.layers.1.mlp.up_proj.weight", "nan at (3, 5)")
    assert not (tmp_path / "q").exists()


def snapshot(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


def test_an_existing_target_is_kept_unless_overwrite(quantize, tmp_path):
    quantize("--recipe", "W8A16")
    before = snapshot(tmp_path / "q")
    assert quantize("--recipe", "W4A16").refused("q", "--overwrite")
    assert snapshot(tmp_path / "q") == before
    assert quantize("--recipe", "W4A16", "--overwrite").code == 0
    assert open_checkpoint(tmp_path / "q").quantization["recipe"] == "W4A16"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["q", "text.txt"]


def test_a_directory_that_holds_no_model_is_never_overwritten(quantize, tmp_path):
    (tmp_path / "q").mkdir()
    (tmp_path / "q" / "thesis.tex").write_text("years of work")
    assert quantize("--recipe", "W8A16", "--overwrite").refused("contains no model")
    assert (tmp_path / "q" / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize("where", [".", "inside", "../tiny", "..", "link"])
def test_the_model_being_read_is_never_the_target(quantize, make_llama, tmp_path, where):
    path = make_llama()
    before = snapshot(path)
    (tmp_path / "link").symlink_to(path)
    out = tmp_path / "link" if where == "link" else path / where
    assert quantize("--recipe", "W8A16", "--overwrite", model=path, out=out).refused("being read")
    assert snapshot(path) == before


def test_targets_that_cannot_be_written_are_refused(quantize, tmp_path):
    (tmp_path / "file").write_text("kept")
    quant = ("--recipe", "W8A16", "--overwrite")
    assert quantize(*quant, out=tmp_path / "file").refused("not a directory")
    assert quantize(*quant, out=tmp_path / "file" / "q").refused("no such directory")
    assert quantize(*quant, out=tmp_path / "no" / "q").refused("no such directory")
    assert quantize(*quant, out="/proc/q").refused("/proc/q", "cannot be written")
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_directory_without_permission_is_refused(quantize, tmp_path):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    assert quantize("--recipe", "W8A16", out=closed / "q").refused("cannot be written")


def test_tokenizer_files_come_along(quantize, make_llama, tmp_path):
    path = make_llama()
    (path / "generation_config.json").write_text('{"eos_token_id": [257, 5]}')
    quantize("--recipe", "W8A16", model=path)
    shutil.rmtree(path)
    checkpoint = open_checkpoint(tmp_path / "q")
    assert checkpoint.config.eos_token_ids == (257, 5)
    assert (tmp_path / "q" / "tokenizer.json").exists()


def test_a_pattern_that_leaves_nothing_to_quantize_is_said(planish, tiny_llama, tmp_path):
    words = ("--model", tiny_llama, "--out", tmp_path / "q", "--recipe", "W8A16", "--ignore", "*")
    result = planish("quantize", *words)
    assert result.code == 0 and "nothing is quantized" in result.err


def test_the_runner_is_imported_before_anything_is_begun(tiny_llama, tmp_path, monkeypatch):
    def look(*_):
        seen.append(sorted(path.name for path in tmp_path.iterdir()))
        return NUMPY

    seen = []
    monkeypatch.setattr(verb, "runtime_of", look)
    model, out = str(tiny_llama), str(tmp_path / "out")
    words = ["--model", model, "--out", out, "--recipe", "W8A16"]
    assert run(parse(["planish", "quantize", *words])) == 0
    assert seen == [[]]
