"""Only files are read, and only up to a limit: a pipe would block, a device never ends."""

from __future__ import annotations

import os

import pytest

from planish.reference.errors import PromptError, RecipeError
from planish.reference.quantize.spelling import read_schemes
from planish.reference.reading import PIECE, read_file
from planish.reference.text.tokenizer import read_text


@pytest.mark.parametrize("size", [1, PIECE, PIECE + 1])
def test_a_file_is_read_up_to_the_limit(tmp_path, size):
    file = tmp_path / "file"
    file.write_bytes(b"x" * size)
    assert read_file(file, PromptError, most=size) == b"x" * size
    with pytest.raises(PromptError, match=f"file: is too large; expected at most {size - 1} bytes"):
        read_file(file, PromptError, most=size - 1)


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_a_pipe_and_a_device_are_refused_and_not_waited_for(tmp_path, make):
    file = tmp_path / "X.json"
    make(file)
    with pytest.raises(PromptError, match="is not a file; expected a file, found a"):
        read_text(file)
    with pytest.raises(RecipeError, match="is not a file; expected a file, found a"):
        read_schemes(str(file))


def test_every_line_end_becomes_a_newline(tmp_path):
    file = tmp_path / "text"
    file.write_bytes(b"a\r\nb\rc\n\r")
    assert read_text(file) == file.read_text(encoding="utf-8") == "a\nb\nc\n\n"
