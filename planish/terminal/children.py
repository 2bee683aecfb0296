"""Processes that are launched, watched and ended as one.

The first prints the results. What the others print on stderr is kept, and shown if one of them is
the first to fail. A child dies with its parent, even if that is killed.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO

from planish.joining import BAD_INPUT, FOLLOWED
from planish.reference.errors import one_line
from planish.terminal.interrupts import TERMINATED

DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG
FOLLOW_SECONDS = 8.0  # until the others have noticed that one has ended
STOP_SECONDS = 3.0  # from SIGTERM to SIGKILL


@dataclass
class Child:
    """One process. errors: its stderr; None: the terminal's. code: once it has ended by itself."""

    index: int
    process: subprocess.Popen[bytes]
    errors: IO[bytes] | None
    code: int | None = field(default=None)

    def last_line(self) -> str:
        """The last line that it printed on stderr."""
        if self.errors is None:
            return ""
        self.errors.seek(0)
        lines = self.errors.read().decode(errors="replace").split("\n")
        return next((line for line in reversed(lines) if line.strip()), "")


class Children:
    """All processes of a launch."""

    def __init__(self) -> None:
        self.all: list[Child] = []
        self._told_to_end = False
        self._ended: queue.Queue[tuple[int, int]] = queue.Queue()

    def start(
        self, words: Sequence[str], environ: Mapping[str, str], processors: Sequence[int]
    ) -> None:
        """Start the next process, on these processors."""
        index = len(self.all)
        errors = tempfile.TemporaryFile() if index else None  # noqa: SIM115  (to the end)
        process = subprocess.Popen(
            words,
            env=dict(environ),
            stdin=subprocess.DEVNULL if index or sys.stdin.isatty() else None,
            stdout=subprocess.DEVNULL if index else None,
            stderr=errors,
            process_group=0,  # Ctrl-C comes from here, once
            preexec_fn=prepare_child(processors),
        )
        self.all.append(Child(index, process, errors))
        threading.Thread(target=self._wait, args=(index, process), daemon=True).start()

    def wait(self) -> int:
        """Wait until all have ended; if one fails, end the others. Returns the exit code."""
        while len(self._running()) > 0:
            self._note(None)
            if any(child.code not in (None, 0) for child in self.all):
                self._let_follow()
                break
        self.stop()
        return report(self.all, self._told_to_end)

    def terminate(self) -> None:
        """Pass SIGTERM on, which each may answer in its way."""
        self._told_to_end = True
        self.send(signal.SIGTERM)

    def interrupt(self) -> None:
        """Pass Ctrl-C on and let all end."""
        self.send(signal.SIGINT)
        self._let_follow()

    def stop(self) -> None:
        """End all that still run."""
        self.send(signal.SIGTERM)
        self._let_follow(STOP_SECONDS, note=False)
        self.send(signal.SIGKILL)
        for child in self.all:
            child.process.wait()

    def _wait(self, index: int, process: subprocess.Popen[bytes]) -> None:
        self._ended.put((index, process.wait()))

    def _running(self) -> list[Child]:
        return [child for child in self.all if child.code is None]

    def _note(self, seconds: float | None) -> None:
        """Wait for one end and note its code."""
        index, code = self._ended.get(timeout=seconds)
        self.all[index].code = code

    def _let_follow(self, seconds: float = FOLLOW_SECONDS, note: bool = True) -> None:
        """Give the others time to end by themselves. note: their codes count."""
        deadline = time.monotonic() + seconds
        with contextlib.suppress(queue.Empty, subprocess.TimeoutExpired):
            while note and self._running():
                self._note(max(deadline - time.monotonic(), 0.001))
            for child in self.all:
                child.process.wait(max(deadline - time.monotonic(), 0.001))

    def send(self, number: int) -> None:
        """Send a signal to all that run."""
        for child in self.all:
            if child.process.poll() is None:
                child.process.send_signal(number)


def report(children: Sequence[Child], told_to_end: bool = False) -> int:
    """Print which process ended the run, unless the first one has; the exit code.

    told_to_end: SIGTERM was passed on to them, so none is to blame for ending by it.
    """
    failed = [child for child in children if child.code]
    ended = [child for child in failed if child.code != FOLLOWED]
    if told_to_end and failed and all(map(was_terminated, ended)):
        return TERMINATED
    if not ended:
        return complain("the processes have lost each other") if failed else 0
    culprit = min(ended, key=suspicion)
    code, name = culprit.code or 0, f"process {culprit.index} of {len(children)}"
    code = -signal.SIGTERM if code == TERMINATED else code
    if code < 0:
        complain(f"{name} was ended by {signal.Signals(-code).name}")
        return 128 - code
    if culprit.index > 0:
        line = culprit.last_line().removeprefix("error: ")
        complain(f"{name}: {line or f'ended with exit code {code}'}")
    return code


def suspicion(child: Child) -> tuple[bool, bool]:
    """The smaller, the likelier it ended first. SIGTERM may be what it sent itself when another had
    ended (fast/parallel/group.py); of errors the first process prints its own."""
    return was_terminated(child), (child.code or 0) > 0 and child.index > 0


def was_terminated(child: Child) -> bool:
    return child.code in (TERMINATED, -signal.SIGTERM)


def complain(line: str) -> int:
    print(f"error: {one_line(line)}", file=sys.stderr, flush=True)
    return BAD_INPUT


def prepare_child(processors: Sequence[int]) -> Callable[[], None]:
    """What a child does before it runs: keep to its processors, and die with its parent."""
    library, parent = ctypes.CDLL(None), os.getpid()

    def prepare() -> None:
        os.sched_setaffinity(0, processors)
        library.prctl(DIE_WITH_PARENT, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(BAD_INPUT)

    return prepare
