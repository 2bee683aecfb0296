"""Write a model directory: whole, or not at all.

Everything is written to a hidden directory next to the target, each file is flushed to the disk,
config.json last, and one rename puts it in place (placing.py). A kill at any moment leaves the old
state or the new one. It may also leave the hidden directory, which has a config.json only if all
its other files are complete and on the disk. With a Partial (partial.py) finished pieces, such as
blocks, are on the disk as soon as they are finished, and a later run can go on after them.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np

from planish.reference.errors import OutOfMemoryError, OutputError, PlanishError
from planish.reference.files.partial import Partial, sync
from planish.reference.files.placing import check_directory, hidden_beside, put_directory
from planish.reference.files.safetensors import write_tensors

SHARD_BYTES = 2 * 2**30
COPIED = (  # copied with the tensors; open_checkpoint refuses those that link out
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)
MORE_TEMPLATES = "additional_chat_templates"  # a directory of NAME.jinja, copied, too


class Sink(Protocol):
    """What takes the tensors of a block."""

    def add(self, name: str, tensor: np.ndarray) -> None:
        """Take one tensor."""


@dataclass(frozen=True)
class Tensors:
    """A sink that keeps the tensors, in their order, for a writer."""

    tensors: dict[str, np.ndarray] = field(default_factory=dict)

    def add(self, name: str, tensor: np.ndarray) -> None:
        self.tensors[name] = tensor


class CheckpointWriter:
    """Collects tensors and writes a directory like any Hugging Face model.

        with CheckpointWriter(target, source) as writer:
            writer.add(name, tensor)
            writer.finish(config_values)

    The tokenizer's files are copied from `source`, the model that was read; a random model has no
    source and adds its own with `add_text`. Leaving the block without `finish`, because of an error
    or Ctrl-C, removes what was written.
    """

    def __init__(
        self,
        target: str | Path,
        source: str | Path | None = None,
        overwrite: bool = False,
        partial: Partial | None = None,
        padded: bool = True,
    ):
        """partial: where finished pieces are kept until the directory is complete.

        padded: whether files may have padding (safetensors.py), which only planish skips.
        """
        self.target, self.source = Path(target), None if source is None else Path(source)
        self.overwrite, self.partial, self.finished = overwrite, partial, False
        self.padded = padded
        self.piece: dict[str, np.ndarray] = {}  # tensors of a piece that is not finished
        self._check()
        if partial is not None:
            partial.check()
        self.hidden = hidden_beside(self.target)
        self.pending: dict[str, np.ndarray] = {}
        self.shards: list[list[str]] = []
        self.total_bytes = 0

    def _check(self) -> None:
        """Raise OutputError for a target that must not be replaced, before anything is computed."""
        if self.source is not None:
            target, source = self.target.resolve(), self.source.resolve()
            inside, around = source in target.parents, target in source.parents
            if target == source or inside or around:
                place = "is inside" if inside else "holds" if around else "is"
                problem, expected = f"{place} the model being read", "another directory"
                raise OutputError(problem, path=self.target, expected=expected)
        if self.target.name in ("", ".."):
            raise OutputError("is not the name of a new directory", path=self.target)
        if not self.target.parent.is_dir():
            raise OutputError("no such directory", path=self.target.parent)
        check_directory(self.target, self.overwrite)

    def __enter__(self) -> CheckpointWriter:
        try:
            self.hidden.mkdir()
        except OSError as problem:
            raise OutputError(f"cannot be written: {problem.strerror}", path=self.target) from None
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        remove_directory(self.hidden)
        if self.partial is not None and (value is not None or not self.finished):
            self.partial.leave(worth=is_worth_resuming(value))
        elif self.partial is not None:
            self.partial.remove()
        if isinstance(value, OSError):
            raise OutputError(
                f"cannot be written: {value.strerror or value}", path=self.target
            ) from None

    def add(self, name: str, tensor: np.ndarray) -> None:
        """Add one tensor; full shards are written at once, so memory stays bounded."""
        if self.partial is None:
            self._queue(name, tensor)
        else:
            self.piece[name] = tensor

    def has_piece(self, name: str) -> bool:
        """Whether an earlier run has finished a piece."""
        return self.partial is not None and self.partial.has(name)

    def end_piece(self, name: str, facts: Mapping[str, Any]) -> None:
        """What was added since the last piece is finished: keep it for a later run."""
        if self.partial is not None:
            self.partial.save(name, self.piece, facts)
            self.piece = {}
            self.add_piece(name)

    def add_piece(self, name: str) -> dict[str, Any]:
        """Add the tensors of a finished piece, from the disk; its facts."""
        if self.partial is None:
            raise KeyError(name)
        for tensor, entry in self.partial.tensors(name).items():
            self._queue(tensor, entry.map())
        return self.partial.facts(name)

    def _queue(self, name: str, tensor: np.ndarray) -> None:
        waiting = sum(other.nbytes for other in self.pending.values())
        if self.pending and waiting + tensor.nbytes > SHARD_BYTES:
            self._flush()
        self.pending[name] = tensor
        self.total_bytes += tensor.nbytes

    def add_text(self, name: str, text: str) -> None:
        """Add a text file, such as tokenizer.json."""
        (self.hidden / name).parent.mkdir(exist_ok=True)
        (self.hidden / name).write_text(text, encoding="utf-8")

    def _flush(self) -> None:
        write_tensors(self.hidden / f"shard-{len(self.shards)}", self.pending, self.padded)
        self.shards.append(list(self.pending))
        self.pending = {}

    def finish(self, values: dict[str, Any]) -> None:
        """Write index and config.json, flush everything to the disk, and rename into place."""
        for name, tensor in self.piece.items():
            self._queue(name, tensor)
        self._flush()
        self._name_shards()
        if self.source is not None:
            self._copy_companions(self.source)
        for path in self.hidden.rglob("*"):
            sync(path)
        self._write_json("config.json", values)
        sync(self.hidden / "config.json")
        sync(self.hidden)
        put_directory(self.hidden, self.target, self.overwrite)
        self.finished = True
        sync(self.target.parent)

    def _copy_companions(self, source: Path) -> None:
        for name in companions(source):
            if (source / name).is_file():
                (self.hidden / name).parent.mkdir(exist_ok=True)
                shutil.copyfile(source / name, self.hidden / name)

    def _name_shards(self) -> None:
        count = len(self.shards)
        if count == 1:
            (self.hidden / "shard-0").rename(self.hidden / "model.safetensors")
            return
        weight_map: dict[str, str] = {}
        for index, names in enumerate(self.shards):
            file = f"model-{index + 1:05d}-of-{count:05d}.safetensors"
            (self.hidden / f"shard-{index}").rename(self.hidden / file)
            weight_map |= dict.fromkeys(names, file)
        index_values = {"metadata": {"total_size": self.total_bytes}, "weight_map": weight_map}
        self._write_json("model.safetensors.index.json", index_values)

    def _write_json(self, name: str, values: dict[str, Any]) -> None:
        self.add_text(name, json.dumps(values, indent=2, allow_nan=False) + "\n")


def companions(source: Path) -> list[str]:
    """The files beside the weights that are copied if they are there, relative to the directory."""
    templates = sorted((source / MORE_TEMPLATES).glob("*.jinja"))
    return [*COPIED, *(f"{MORE_TEMPLATES}/{file.name}" for file in templates)]


def is_worth_resuming(problem: BaseException | None) -> bool:
    """Whether going on may succeed: not after an error of the model, the recipe or the samples."""
    return not isinstance(problem, PlanishError) or isinstance(
        problem, OutputError | OutOfMemoryError
    )


def remove_directory(path: Path) -> None:
    """Remove a directory, config.json first, so that half of it does not look like a model."""
    with contextlib.suppress(OSError):
        (path / "config.json").unlink()
    shutil.rmtree(path, ignore_errors=True)
