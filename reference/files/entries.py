"""The tensors of a directory by name: found, or an error that names directory and tensor."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from planish.reference.errors import CheckpointError
from planish.reference.files.safetensors import TensorEntry
from planish.reference.scheme import Scheme


@dataclass(frozen=True, kw_only=True)
class Declared:
    """What config.json says of quantized weights, as their format has parsed it.

    targets: the scheme of each linear that is named, by its prefix, or by its prefix with {i} for
    every number. rest, head: those of linears that are quantized without being named.
    """

    layout: str
    targets: Mapping[str, Scheme] = field(default_factory=dict)
    rest: Scheme | None = None
    head: Scheme | None = None


def general_name(prefix: str) -> str:
    """model.layers.3.mlp -> model.layers.{i}.mlp"""
    return re.sub(r"(?<![^.])[0-9]+(?![^.])", "{i}", prefix)


class Directory(Protocol):
    """What a file format is given: where tensors are, and what config.json says of their codes."""

    @property
    def path(self) -> Path: ...
    @property
    def entries(self) -> Mapping[str, TensorEntry]: ...
    @property
    def declared(self) -> Declared | None: ...


def bad_value(directory: Directory, name: str, expected: object, found: object) -> CheckpointError:
    path = directory.path
    return CheckpointError("bad value", path=path, name=name, expected=expected, found=found)


def named_entry(directory: Directory, name: str) -> TensorEntry:
    if name not in directory.entries:
        raise CheckpointError("is missing", path=directory.path, name=name)
    return directory.entries[name]


def checked_entry(
    directory: Directory, name: str, dtypes: tuple[str, ...], shape: tuple[int, ...]
) -> TensorEntry:
    """A tensor's place, after its type and shape were found to be right."""
    entry, types = named_entry(directory, name), " or ".join(dtypes)
    pairs = {
        "wrong type": (types, entry.dtype, entry.dtype in dtypes),
        "wrong shape": (list(shape), list(entry.shape), entry.shape == tuple(shape)),
    }
    for problem, (expected, found, good) in pairs.items():
        if not good:
            file = entry.file
            raise CheckpointError(problem, path=file, name=name, expected=expected, found=found)
    return entry
