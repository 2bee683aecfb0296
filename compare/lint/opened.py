"""Open a checkpoint for lint: config and tensors as they are stored, with few checks.

What planish refuses to load, because of a scale of 0 or a tensor that it does not know, is opened;
what cannot be parsed (JSON, the safetensors header, GGUF) is a typed error, as everywhere.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors

from planish.reference.architectures import architecture_of, model_config
from planish.reference.errors import LOGGER, CheckpointError, ConfigError
from planish.reference.files.checkpoint import Checkpoint
from planish.reference.files.entries import Declared
from planish.reference.files.foreign import reader_of, with_old_config
from planish.reference.files.formats import find_format
from planish.reference.files.formats.stored import Source
from planish.reference.files.names import plain_names, rename_entries
from planish.reference.files.opening import check_companions
from planish.reference.files.safetensors import PADDING, TensorEntry
from planish.reference.files.shards import check_link, find_entries
from planish.reference.gguf import GgufFile, find_gguf, read_gguf
from planish.reference.json import read_json

OWN, FLOAT, GGUF = "planish", "float", "gguf"


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A checkpoint as it is stored.

    format: a name of READERS, or one of the three above. model: where planish knows the
    architecture, to name its tensors; else problem says why not. absent: tensors that only the
    index names, with their shards. padding: names that safetensors.py skips.
    """

    path: Path
    format: str
    values: Mapping[str, Any] = field(default_factory=dict)
    entries: Mapping[str, TensorEntry] = field(default_factory=dict)
    absent: Mapping[str, str] = field(default_factory=dict)
    padding: tuple[str, ...] = ()
    declared: Declared | None = None  # of planish's own
    model: Checkpoint | None = None
    problem: str = ""
    gguf: GgufFile | None = None

    @property
    def source(self) -> Source:
        """What a reader of READERS sees."""
        found = self.values.get("quantization_config") or {}
        return Source(path=self.path, values=found, entries=self.entries, declared=self.declared)


@contextlib.contextmanager
def without_notices() -> Iterator[None]:
    """Keep readers from saying on stderr, linear by linear, what lint says in its table."""
    before, LOGGER.disabled = LOGGER.disabled, True
    try:
        yield
    finally:
        LOGGER.disabled = before


def open_raw(path: str | Path, allow_links: bool = False) -> Opened:
    """Open a directory or a GGUF file; ConfigError or CheckpointError for what cannot be parsed."""
    path = Path(path)
    if (file := find_gguf(path)) is not None:
        check_link(file, allow_links)
        return Opened(path=path, format=GGUF, gguf=read_gguf(file))
    if not path.is_dir():
        raise CheckpointError("is not a directory with a model, nor a GGUF file", path=path)
    check_companions(path, allow_links)
    values = with_old_config(read_json(path / "config.json"), path, allow_links)
    name, declared = _format_of(values, path / "config.json")
    entries, absent = find_entries(path, allow_links)
    model, problem = _model_of(values, path, {**entries})
    return Opened(
        path=path,
        format=name,
        values=values,
        entries=entries if model is None else model.entries,
        absent=absent,
        padding=_padding_of(entries),
        declared=declared,
        model=model,
        problem=problem,
    )


def _format_of(values: dict[str, Any], file: Path) -> tuple[str, Declared | None]:
    """The format's name, and what planish's own declares; ConfigError if nobody reads it."""
    found = values.get("quantization_config")
    if found is None:
        return FLOAT, None
    if not isinstance(found, dict):
        name, kind = "quantization_config", type(found).__name__
        raise ConfigError("wrong form", path=file, name=name, expected="an object", found=kind)
    reader = reader_of(values)
    return (OWN, find_format(found, file).parse(found, file)) if reader is None else (reader, None)


def _model_of(
    values: dict[str, Any], path: Path, entries: dict[str, TensorEntry]
) -> tuple[Checkpoint | None, str]:
    """The checkpoint with the architecture's names, or why there is none."""
    try:
        config = model_config(values, path / "config.json")
    except ConfigError as problem:
        return None, _short(problem)
    architecture = architecture_of(values, path)
    entries = rename_entries(path, entries, plain_names(entries, architecture))
    return Checkpoint(path, values, config, architecture, entries), ""


def _short(problem: ConfigError) -> str:
    """What is wrong, without path and remedy."""
    found = "" if problem.found is None else f" ({problem.found})"
    return f"{problem.name} {problem.problem}{found}"


def _padding_of(entries: Mapping[str, TensorEntry]) -> tuple[str, ...]:
    """The names of padding tensors in the files, which read_entries skips."""
    found: list[str] = []
    for file in sorted({entry.file for entry in entries.values()}):
        with safetensors.safe_open(file, framework="numpy") as opened:
            found += [name for name in opened.keys() if name.startswith(PADDING)]  # noqa: SIM118
    return tuple(found)
