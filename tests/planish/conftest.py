"""Running the command: in this process for speed, or as a user's shell would."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from planish.command import main


@dataclass(frozen=True)
class Result:
    """What a command left: exit code, stdout, stderr."""

    code: int
    out: str
    err: str

    def refused(self, *words: str) -> bool:
        """Exit code 2 and one line of error that holds these words; nothing on stdout."""
        lines = self.err.splitlines()
        assert self.code == 2, self
        assert self.out == "", self
        assert len(lines) == 1 and lines[0].startswith("error: "), self
        missing = [word for word in words if word not in lines[0]]
        assert not missing, (missing, lines[0])
        return True

    def only_json(self) -> dict[str, Any]:
        """Stdout is one line with one JSON object, every number in it finite."""
        assert self.code in (0, 3), self
        assert self.out.count("\n") == 1, self
        return json.loads(self.out, parse_constant=lambda word: pytest.fail(word))


Command = Callable[..., Result]


@pytest.fixture
def planish(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """planish("generate", "--model", path, ...) -> Result, in this process, whose malloc stays."""
    monkeypatch.setattr("planish.process.keep_freed_memory", lambda: None)

    def call(*words: object) -> Result:
        handler = signal.getsignal(signal.SIGTERM)
        capfd.readouterr()
        try:
            with pytest.raises(SystemExit) as ended:
                main(["planish", *map(str, words)])
        finally:
            signal.signal(signal.SIGTERM, handler)
        code = ended.value.code
        return Result(code if isinstance(code, int) else int(code is not None), *capfd.readouterr())

    return call


@pytest.fixture
def shell() -> Command:
    """The same in a process of its own, `python -m planish`."""

    def call(*words: object) -> Result:
        command = [sys.executable, "-m", "planish", *map(str, words)]
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120
        )
        return Result(done.returncode, done.stdout, done.stderr)

    return call
