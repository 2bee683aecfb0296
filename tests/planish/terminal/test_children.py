"""Which process of a launch is named when it fails."""

from __future__ import annotations

import signal
from typing import Any

import pytest

from planish.joining import FOLLOWED
from planish.terminal.children import Child, report
from planish.terminal.interrupts import TERMINATED


@pytest.mark.parametrize(
    ("codes", "code", "line"),
    [
        ((0, 0), 0, ""),
        ((FOLLOWED, -11), 139, "process 1 of 2 was ended by SIGSEGV"),
        ((TERMINATED, -11), 139, "process 1 of 2 was ended by SIGSEGV"),
        ((-signal.SIGTERM, -11), 139, "process 1 of 2 was ended by SIGSEGV"),
        ((-9, FOLLOWED), 137, "process 0 of 2 was ended by SIGKILL"),
        ((-9, TERMINATED), 137, "process 0 of 2 was ended by SIGKILL"),
        ((FOLLOWED, TERMINATED), 143, "process 1 of 2 was ended by SIGTERM"),
        ((TERMINATED, 2), 2, "process 1 of 2: ended with exit code 2"),
        ((2, TERMINATED), 2, ""),  # it has printed why
        ((FOLLOWED, FOLLOWED), 2, "the processes have lost each other"),
    ],
)
def test_what_ended_first_is_named(capsys, codes, code, line):
    """A process that another one's end ends has followed, or sent itself SIGTERM to unwind."""
    assert report(ended(codes)) == code
    assert capsys.readouterr().err == (f"error: {line}\n" if line else "")


@pytest.mark.parametrize(
    ("codes", "code", "line"),
    [
        ((TERMINATED, TERMINATED), 143, ""),
        ((TERMINATED, 0), 143, ""),
        ((TERMINATED, None), 143, ""),
        ((FOLLOWED, -signal.SIGTERM), 143, ""),
        ((FOLLOWED, FOLLOWED), 143, ""),
        ((0, 0), 0, ""),
        ((TERMINATED, -9), 137, "process 1 of 2 was ended by SIGKILL"),
    ],
)
def test_who_was_told_to_end_is_not_blamed(capsys, codes, code, line):
    assert report(ended(codes), told_to_end=True) == code
    assert capsys.readouterr().err == (f"error: {line}\n" if line else "")


def ended(codes):
    nothing: Any = None
    return [Child(i, nothing, None, number) for i, number in enumerate(codes)]
