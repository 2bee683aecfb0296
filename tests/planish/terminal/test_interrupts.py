"""Ctrl-C ends the command, also where Python would drop it or a compiled module would crash."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
DROPPED = """
import os, signal, time
from planish.terminal.interrupts import interrupts_raised

class Callback:
    def __del__(self):
        signal.raise_signal(signal.{0})  # what is raised in a __del__ is printed and dropped

signal.signal(signal.SIGINT, signal.default_int_handler)
try:
    with interrupts_raised():
        Callback()
        time.sleep(20)
except KeyboardInterrupt:
    print("interrupted")
"""
IMPORTING = """
import signal
from planish.terminal.interrupts import interrupts_kill, interrupts_raised

signal.signal(signal.SIGINT, signal.default_int_handler)
with interrupts_raised(), interrupts_kill():
    signal.raise_signal(signal.SIGINT)
"""
IGNORED = """
import signal
signal.signal(signal.SIGINT, signal.SIG_IGN)
import planish.__main__
from planish.terminal.interrupts import interrupts_kill, interrupts_raised

for context in (interrupts_raised, interrupts_kill):
    with context():
        signal.raise_signal(signal.SIGINT)
print("went on")
"""


def run(program: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", program]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("name", "code", "out"), [("SIGINT", 0, "interrupted\n"), ("SIGTERM", 143, "")]
)
def test_what_a_callback_drops_comes_again(name, code, out):
    done = run(DROPPED.format(name))
    assert (done.returncode, done.stdout, done.stderr) == (code, out, "")


def test_an_import_dies_of_the_signal_itself():
    done = run(IMPORTING)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


def test_until_a_verb_runs_ctrl_c_says_nothing():
    early = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    done = run(early + "import planish.__main__; signal.raise_signal(signal.SIGINT)")
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


def test_a_job_that_ignores_ctrl_c_goes_on():
    done = run(IGNORED)
    assert (done.returncode, done.stdout, done.stderr) == (0, "went on\n", "")
