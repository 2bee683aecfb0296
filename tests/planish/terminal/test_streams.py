"""Standard streams that are closed, full, or without a reader."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

COMMAND = [sys.executable, "-m", "planish"]
GENERATE = ["generate", "--engine", "reference", "--max_new_tokens", "3"]
FULL = "error: standard output: No space left on device\n"
needs_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")


@pytest.fixture
def redirect(tiny_llama):
    """redirect("2>&-", ...words) -> exit code, stdout, stderr of a command in a shell."""

    def call(how, *words, buffered="1"):
        words = [*COMMAND, *map(str, words)]
        done = subprocess.run(
            ["sh", "-c", f'exec "$@" {how}', "sh", *words],
            capture_output=True,
            text=True,
            timeout=60,
            env=os.environ | {"PYTHONUNBUFFERED": "" if buffered else "1"},
        )
        return done.returncode, done.stdout, done.stderr

    return call


@pytest.fixture(scope="module")
def text(tiny_llama):
    """What GENERATE writes where nothing is redirected."""
    words = [*COMMAND, *GENERATE, "--model", str(tiny_llama)]
    return subprocess.run(words, capture_output=True, text=True, timeout=60, check=True).stdout


@pytest.mark.matrix(5)
@pytest.mark.parametrize("how", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-", "2>/dev/full"])
def test_text_and_figures_never_change_streams(redirect, tiny_llama, text, how):
    code, out, err = redirect(how, *GENERATE, "--model", tiny_llama)
    assert code == 0 and len(text) > 1
    assert out == ("" if " >&-" in f" {how}" else text)
    assert err.count("\n") == ("2>" not in how) and ("tokens" in err) == ("2>" not in how)


@pytest.mark.matrix(3)
@needs_full
@pytest.mark.parametrize(
    ("verb", "buffered"),
    [("inspect", "1"), ("inspect", ""), ("--help", "1")],  # argparse swallows what it cannot print
)
def test_a_full_stdout_is_one_line(redirect, tiny_llama, verb, buffered):
    words = ("inspect", "--model", tiny_llama) if verb == "inspect" else (verb,)
    assert redirect(">/dev/full", *words, buffered=buffered) == (2, "", FULL)


@pytest.mark.whole
@needs_full
@pytest.mark.parametrize("buffered", ["1", ""])
def test_where_both_streams_are_full_the_exit_code_says_so(redirect, tiny_llama, buffered):
    words = ("inspect", "--model", tiny_llama)
    assert redirect(">/dev/full 2>/dev/full", *words, buffered=buffered) == (2, "", "")


@pytest.mark.matrix(2)
@pytest.mark.parametrize("how", ["2>&-", ">&- 2>&-"])
def test_a_file_gets_nothing_that_was_meant_for_a_closed_stream(
    redirect, tiny_llama, tmp_path, how
):
    out = tmp_path / "x.npy"
    words = ("--tokens", "1,2", "--engine", "reference", "--kernels", "xla", "--out", out)
    assert redirect(how, "logits", "--model", tiny_llama, *words) == (0, "", "")
    assert np.load(out).shape == (2, 300) and out.stat().st_size == 128 + 2 * 300 * 4


def test_text_goes_on_when_the_reader_of_the_figures_goes_away(tiny_llama):
    words = [*COMMAND, *GENERATE, "--model", tiny_llama]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stderr.close()
        assert len(process.stdout.read()) > 1
        assert process.wait(timeout=60) == 0


def test_a_wrong_word_is_refused_without_stderr(redirect):
    assert redirect("2>&-", "generat") == (2, "", "")
