"""Calibration text: plain or .jsonl, drawn with a seed, and what is wrong with it."""

from __future__ import annotations

import json

import pytest

from planish.calibration import calibration_samples, read_calibration
from planish.reference.errors import PromptError
from planish.reference.files.load import open_checkpoint


@pytest.fixture
def jsonl(tmp_path):
    """Write bytes or lines into text.jsonl."""

    def write(*lines: str | bytes):
        file = tmp_path / "text.jsonl"
        encoded = [line if isinstance(line, bytes) else line.encode() for line in lines]
        file.write_bytes(b"\n".join(encoded))
        return file

    return write


def test_the_texts_of_jsonl_are_joined_by_blank_lines(jsonl):
    file = jsonl('{"text": "one"}', "", "  ", '{"text": "two\\n"}')
    assert read_calibration(file) == "one\n\ntwo\n"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"content": "x"}', r'line 2: text: is missing; expected {"text": "text"}, found content'),
        ('{"text": ', "line 2: is not JSON"),
        ('{"text": 3}', "line 2: text: bad value; expected text, found 3"),
        ('{"text": ""}', "line 2: text: bad value"),
        (b'{"text": "\xff"}', "is not text; expected UTF-8, found byte"),
    ],
)
def test_a_bad_line_is_named(jsonl, line, message):
    file = jsonl('{"text": "fine"}', line)
    with pytest.raises(PromptError, match=message) as raised:
        read_calibration(file)
    assert str(file) in str(raised.value)


def test_a_file_of_empty_lines_has_no_tokens(jsonl, tiny_llama):
    with pytest.raises(PromptError, match="text.jsonl: contains no text"):
        calibration_samples(open_checkpoint(tiny_llama), jsonl("", " "))


def test_a_seed_chooses_other_samples_and_says_so_in_the_fingerprint(planish, tiny_llama, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("".join(chr(33 + i % 90) for i in range(997)))
    hashes = []
    for number, seed in enumerate([(), ("--seed", 1), ("--seed", 1), ("--seed", 2)]):
        out = tmp_path / f"q{number}"
        words = ("--calibration", text, "--samples", 4, "--sequence_length", 16, *seed)
        engine = ("--engine", "reference")
        where = ("--model", tiny_llama, "--out", out, "--recipe", "W8A8")
        assert planish("quantize", *where, *words, *engine).code == 0
        said = json.loads((out / "config.json").read_text())["quantization_config"]
        hashes.append(said["calibration"]["sha256"])
    assert hashes[1] == hashes[2] and len(set(hashes)) == 3


def test_a_seed_without_a_calibration_has_no_effect_and_is_refused(planish, tiny_llama, tmp_path):
    where = ("--model", tiny_llama, "--out", tmp_path / "q", "--recipe", "W4A16")
    assert planish("quantize", *where, "--seed", 1).refused("seed", "no effect")


@pytest.mark.parametrize("recipe", ["W8A8", "O3"])
def test_one_token_repeated_is_no_error(planish, tiny_llama, tmp_path, recipe):
    text = tmp_path / "text.txt"
    text.write_text("a" * 200)
    where = ("--model", tiny_llama, "--out", tmp_path / "q", "--recipe", recipe)
    short = ("--calibration", text, "--sequence_length", 32, "--engine", "reference")
    assert planish("quantize", *where, *short).code == 0
