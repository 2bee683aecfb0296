"""planish serve in a process of its own, as a user starts it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

PATIENCE = 120.0


class Started:
    """A server in a process of its own, and what it has printed."""

    def __init__(self, *words: object, launch: Sequence[str] = (), **environment: str):
        """launch: the words before `serve`."""
        command = [sys.executable, "-m", "planish", *launch, "serve", *map(str, words)]
        given = {**os.environ, **environment}
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=given)
        assert self.process.stderr is not None
        self.stderr, self.lines = self.process.stderr, list[str]()
        self.url = self.read_until("; loading").partition(" at ")[2].partition(";")[0]

    def read_until(self, word: str) -> str:
        """The next line that holds a word."""
        while word not in (line := self.stderr.readline()):
            assert line, self.lines
            self.lines.append(line)
        self.lines.append(line)
        return line

    def end(self, number: int) -> tuple[int, float]:
        """The exit code after a signal, and the seconds that it took."""
        start = time.perf_counter()
        self.process.send_signal(number)
        code = self.process.wait(PATIENCE)
        return code, time.perf_counter() - start


@contextmanager
def started(*words: object, launch: Sequence[str] = (), **environment: str) -> Iterator[Started]:
    server = Started(*words, launch=launch, **environment)
    try:
        yield server
    finally:
        server.process.kill()
        server.process.wait()
        server.stderr.close()
