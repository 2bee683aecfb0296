"""Answers on the disk, each as soon as it is complete, so that a run can go on after a crash.

    OUT.partial/request.json      what is answered; another file or model may not go on with it
    OUT.partial/answers.jsonl     the answers so far

Each line is flushed to the disk. A line that a crash cut off is dropped, and its request answered
again. OUT appears when all are answered, and replaces nothing.
"""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path
from typing import Any, BinaryIO

from planish.reference.errors import OutputError
from planish.reference.files.partial import REQUEST, Partial, sync
from planish.reference.files.placing import check_file, place_file
from planish.reference.json import read_json

ANSWERS = "answers.jsonl"


class AnswerFile(Partial):
    """The answers for OUT; their names are the custom_ids."""

    noun = "answer"
    file: BinaryIO | None = None

    @property
    def answers(self) -> Path:
        return self.path / ANSWERS

    def check(self) -> None:
        """Raise OutputError for an output that exists or cannot be written, and for answers of an
        earlier run without `resume`."""
        check_file(self.target)
        if os.path.lexists(self.target):
            more = ", so nothing is left to resume" if self.resume else ""
            raise OutputError(f"exists{more}", path=self.target, expected="a free name")
        super().check()

    def names(self) -> list[str]:
        """The custom_ids of the answers."""
        if not self.answers.exists():
            return []
        return [json.loads(line)["custom_id"] for line in self._whole_lines()]

    def _whole_lines(self) -> list[bytes]:
        """The lines that were written to their ends."""
        return self.answers.read_bytes().split(b"\n")[:-1]

    def seed(self) -> int:
        """The seed of the run that this one goes on with, or a random one."""
        if self.resume and self.names():
            stored = read_json(self.path / REQUEST, OutputError).get("seed")
            if isinstance(stored, int):
                return stored
        return secrets.randbits(64)

    def open(self) -> None:
        """Begin to add answers, after the last whole one."""
        lines = self._whole_lines() if self.answers.exists() else []
        self.file = self.answers.open("ab")
        self.file.truncate(sum(len(line) + 1 for line in lines))
        sync(self.path)

    def add(self, answer: dict[str, Any]) -> None:
        """Write an answer to the disk."""
        assert self.file is not None
        self.file.write(json.dumps(answer, ensure_ascii=False).encode() + b"\n")
        self.file.flush()
        os.fsync(self.file.fileno())

    def finish(self) -> None:
        """All answers are there: give them their name."""
        assert self.file is not None
        self.file.close()
        place_file(self.answers, self.target)
        sync(self.target.parent)
        self.remove()
