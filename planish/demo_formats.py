"""The demo's last scene: one model in other programs' formats and back, with the same logits."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from planish.exporting import PROGRAM
from planish.fast.session.engine import Engine
from planish.reference.files.export.convert import convert
from planish.reference.files.export.protocol import Request
from planish.reference.files.load import Checkpoint, open_checkpoint

HEADER = """\
| format | bytes | converted in | logits |
| --- | ---: | ---: | --- |"""


@dataclass(frozen=True, kw_only=True)
class Format:
    """A format, and where its model goes; `back` to planish's format."""

    name: str
    path: str


FORMATS = (
    Format(name="gguf", path="model.gguf"),
    Format(name="compressed-tensors", path="compressed-tensors"),
)


def convert_there_and_back(
    source: Checkpoint, directory: Path, tokens: Sequence[int], native: bool
) -> Iterator[str]:
    """The rows of a table: planish -> each format -> planish, and whether its logits are equal."""
    directory.mkdir(exist_ok=True)
    expected = Engine(source, native).forward(tokens)
    yield row_of("planish", source.path, None, "")
    for form in FORMATS:
        made, steps = source, (form, Format(name="planish", path=f"from-{form.name}"))
        for step in steps:
            path = directory / step.path
            start = time.perf_counter()
            convert(made, path, Request(format=step.name, overwrite=True, program=PROGRAM))
            seconds = time.perf_counter() - start
            made = open_checkpoint(path)
            words = compare_logits(expected, Engine(made, native).forward(tokens))
            name = step.name if step is form else f"planish, from {form.name}"
            yield row_of(name, path, seconds, words)


def compare_logits(expected: np.ndarray, found: np.ndarray) -> str:
    """Whether logits are equal to the bit, or by how much they differ."""
    if np.array_equal(expected, found):
        return "the same to the bit"
    return f"DIFFERENT, by up to {np.abs(expected - found).max():.2e}"


def row_of(name: str, path: Path, seconds: float | None, words: str) -> str:
    """A row of the table."""
    taken = "" if seconds is None else f"{seconds:.2f} s"
    return f"| {name} | {size_of(path):,} | {taken} | {words} |"


def size_of(path: Path) -> int:
    """The bytes of the weights of a model."""
    files = [path] if path.is_file() else path.glob("*.safetensors")
    return sum(file.stat().st_size for file in files)
