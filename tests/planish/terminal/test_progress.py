"""Progress where there is no terminal: few whole lines, none for what is quick."""

from __future__ import annotations

import sys
import threading

import pytest

from planish.terminal import progress


@pytest.fixture
def lines(monkeypatch):
    """What is said."""
    said: list[str] = []
    monkeypatch.setattr(progress, "notice", said.append)
    return said


def iterate(items, seconds):
    """Iterate with a clock that goes on by so many seconds with each item."""
    now = iter(range(0, 10**6, seconds))
    return list(progress.log_progress(items, "calibrate", lambda: next(now)))


def test_what_is_quick_says_nothing(lines):
    assert iterate([1, 2, 3], 2) == [1, 2, 3]
    assert lines == []


def test_a_stage_says_how_long_it_took(lines):
    iterate([1, 2, 3], 5)
    assert lines == ["calibrate: done in 20 s"]


def test_a_long_stage_says_now_and_then_how_far_it_is(lines):
    iterate(range(10), 20)
    assert lines == [
        "calibrate: 1 of 10 after 40 s",
        "calibrate: 7 of 10 after 2 min 40 s",
        "calibrate: done in 3 min 40 s",
    ]


def test_of_a_stream_the_number_is_not_known(lines):
    iterate(iter(range(2)), 30)
    assert lines[0] == "calibrate: 0 after 30 s"


def test_a_pipe_gets_no_bar(monkeypatch, capsys):
    assert list(progress.progress([1, 2])) == [1, 2]
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert progress.progress([1]).__class__.__name__ == "tqdm"
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (59.6, "1 min 0 s"), (125, "2 min 5 s"), (7800, "2 h 10 min")]
)
def test_durations(seconds, text):
    assert progress.duration(seconds) == text


def test_what_is_slow_is_said_before_it_ends(monkeypatch):
    said = threading.Event()
    monkeypatch.setattr(progress, "notice", lambda line: said.set())
    with progress.notice_when_slow("compiling", delay=0.0):
        assert said.wait(timeout=60)


def test_what_is_quick_is_not_said_and_leaves_no_thread(lines):
    before = threading.active_count()
    with progress.notice_when_slow("compiling", delay=3600):
        timers = [one for one in threading.enumerate() if isinstance(one, threading.Timer)]
        assert threading.active_count() == before + 1
    timers[-1].join(timeout=60)
    assert threading.active_count() == before and lines == []
