"""--threads: XLA's pool and NumPy's have as many, bad counts are one line."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from planish.terminal import threads

PROGRAM = """
import os, sys
from pathlib import Path
from planish.command import main
try: main(["planish", *sys.argv[1:]])
except SystemExit as end: assert not end.code
names = [Path(f"/proc/self/task/{task}/comm").read_text() for task in os.listdir("/proc/self/task")]
print(sum("XLAEigen" in name for name in names), len(names))
"""


def run(tiny_llama, count, engine):
    """How many threads XLA's pool has after a verb, and the process in all."""
    words = ("generate", "--model", tiny_llama, "--max_new_tokens", 2, "--engine", engine)
    words += () if count is None else ("--threads", count)
    command = [sys.executable, "-c", PROGRAM, *map(str, words)]
    environment = {key: value for key, value in os.environ.items() if "NUM_THREADS" not in key}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return tuple(map(int, done.stdout.split()[-2:]))


LINUX = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
SEVERAL = pytest.mark.skipif(threads.processors() < 2, reason="needs two processors")


@pytest.mark.whole
@LINUX
@SEVERAL
@pytest.mark.parametrize("count", [1, 2])
def test_xla_and_the_kernels_have_so_many(tiny_llama, count):
    assert run(tiny_llama, count, "fast")[0] == count


@LINUX
@SEVERAL
def test_the_reference_has_so_many(tiny_llama):
    assert run(tiny_llama, 1, "reference") == (0, 1)
    assert run(tiny_llama, None, "reference")[1] > 1


@pytest.mark.parametrize(
    "verb", ["generate", "perplexity", "evaluate", "logits", "compare", "bench"]
)
@pytest.mark.parametrize("count", ["0", "-1", "two", "", "1e3", "99999999999999999999"])
def test_a_bad_count_is_refused(planish, verb, count):
    result = planish(verb, "--model", "m", "--threads", count)
    assert result.refused("--threads", f"1..{threads.processors()}", repr(count))


def test_inspect_computes_nothing(planish):
    assert planish("inspect", "--model", "m", "--threads", "1").refused("unknown flag --threads")


@pytest.mark.parametrize(
    ("words", "value"),
    [
        (["--threads", "1"], "1"),
        (["--model", "m", "--threads=1"], "1"),
        (["--threads", "x", "--threads=1"], "1"),
        (["--threads=1", "--threads", "x"], None),
        (["--threads", "x", "--seed", "1"], None),
        (["--threads"], None),
        (["--threads", str(10**9)], None),
        ([], None),
    ],
)
def test_what_numpy_and_xla_read_is_set_before_they_are_imported(monkeypatch, words, value):
    monkeypatch.setattr("os.environ", {})
    threads.prepare_threads(words)
    counts = {} if value is None else dict.fromkeys(threads.VARIABLES, value)
    assert os.environ == {**counts, "OPENBLAS_THREAD_TIMEOUT": "4"}


def test_a_choice_of_the_environment_stays(monkeypatch):
    monkeypatch.setattr("os.environ", {"OPENBLAS_THREAD_TIMEOUT": "20"})
    threads.prepare_threads([])
    assert os.environ == {"OPENBLAS_THREAD_TIMEOUT": "20"}


@pytest.mark.parametrize("text", ["1" * 5000, "\u0661", "\u00b2"])
def test_a_count_in_other_digits_or_too_many_is_refused(text, monkeypatch):
    monkeypatch.setattr("os.environ", {})
    threads.prepare_threads(["--threads", text])
    with pytest.raises(threads.argparse.ArgumentTypeError, match="bad value"):
        threads.thread_count(text)
