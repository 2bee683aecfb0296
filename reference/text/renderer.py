"""The process that renders chat templates: started once, it forks a child for each.

A template's child has limits on time and memory (template_worker.py); this side waits for it a
while, and starts another process after one that had to be stopped.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

WORKER = Path(__file__).with_name("template_worker.py")
LONGEST_WAIT = 120  # seconds; a busy machine may give a process little time
CHUNK = 2**20  # bytes


class Renderer:
    """One process, asked by one thread after another. A fork of this program starts its own."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.process: subprocess.Popen[bytes] | None = None
        self.owner = 0  # the process that started it

    def ask(self, content: bytes) -> dict[str, Any]:
        """The worker's answer to a request; {"killed": signal} if it used up its limits.

        Raises OSError if no process can be started or one ends by itself, TimeoutError after 120 s.
        """
        with self.lock:
            process = self._running()
            try:
                _send(process, content)
                answer: dict[str, Any] = json.loads(_receive(process))
            except BaseException:  # Ctrl-C, too: its answer must not be taken for the next one's
                self._stop(process)
                raise
            return answer

    def _running(self) -> subprocess.Popen[bytes]:
        if self.process is not None and self.owner == os.getpid():
            if self.process.poll() is None:
                return self.process
            self._stop(self.process)  # it was killed
        self.process, self.owner = _start(), os.getpid()
        return self.process

    def _stop(self, process: subprocess.Popen[bytes]) -> None:
        """End the process and its child."""
        self.process = None
        if process.returncode is None:  # else its number may be another's by now
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()

    def close(self) -> None:
        """End the process, if this program started it."""
        if self.process is not None and self.owner == os.getpid():
            self._stop(self.process)


def _start() -> subprocess.Popen[bytes]:
    """A process group, so that Ctrl-C is for this program, which may go on."""
    command, pipe = [sys.executable, "-P", str(WORKER)], subprocess.PIPE
    try:
        return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, process_group=0)
    except OSError as problem:
        raise OSError(f"no process can be started: {problem}") from None


def _send(process: subprocess.Popen[bytes], content: bytes) -> None:
    assert process.stdin is not None
    with suppress(BrokenPipeError):  # it has ended: whoever reads its answer says why
        process.stdin.write(len(content).to_bytes(8, "big") + content)
        process.stdin.flush()


def _receive(process: subprocess.Popen[bytes]) -> bytes:
    """The worker's next message."""
    until = time.monotonic() + LONGEST_WAIT
    return _read(process, int.from_bytes(_read(process, 8, until), "big"), until)


def _read(process: subprocess.Popen[bytes], size: int, until: float) -> bytes:
    """So many bytes, before a moment of the monotonic clock."""
    assert process.stdout is not None and process.stderr is not None
    number, found = process.stdout.fileno(), bytearray()
    while len(found) < size:
        ready, _, _ = select.select([number], [], [], max(until - time.monotonic(), 0))
        if not ready:
            raise TimeoutError(f"takes more than {LONGEST_WAIT} s")
        piece = os.read(number, min(CHUNK, size - len(found)))
        if not piece:
            last = process.stderr.read().decode(errors="replace").strip().rpartition("\n")[2]
            raise OSError(f"the process that renders it ended: {last}")
        found += piece
    return bytes(found)


RENDERER = Renderer()
atexit.register(RENDERER.close)
