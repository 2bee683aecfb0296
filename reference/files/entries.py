"""Find a directory's tensors by name; errors name the file and the tensor."""

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
    """What config.json declares about quantized weights, as their format parsed it.

    targets: schemes by the prefix of a linear, or by its prefix with {i} in place of every number.
    rest, head: the schemes of linears that are quantized without being named (version 1).
    attention, kv_cache: as in ModelConfig; a static cache has scales beside the linears.
    """

    layout: str
    targets: Mapping[str, Scheme] = field(default_factory=dict)
    rest: Scheme | None = None
    head: Scheme | None = None
    attention: str = "float"
    kv_cache: str = "float32"


def general_name(prefix: str) -> str:
    """model.layers.3.mlp -> model.layers.{i}.mlp"""
    return re.sub(r"(?<![^.])[0-9]+(?![^.])", "{i}", prefix)


class Directory(Protocol):
    """What a file format needs of a directory: its tensors, and what config.json declares."""

    @property
    def path(self) -> Path: ...
    @property
    def entries(self) -> Mapping[str, TensorEntry]: ...
    @property
    def declared(self) -> Declared | None: ...


def bad_value(directory: Directory, name: str, expected: object, found: object) -> CheckpointError:
    """The error for a tensor that contains a bad value."""
    path = directory.path
    return CheckpointError("bad value", path=path, name=name, expected=expected, found=found)


def find_entry(directory: Directory, name: str) -> TensorEntry:
    """A tensor's entry; raises CheckpointError if it is missing."""
    if name not in directory.entries:
        raise CheckpointError("is missing", path=directory.path, name=name)
    return directory.entries[name]


def require_entry(
    directory: Directory, name: str, dtypes: tuple[str, ...], shape: tuple[int, ...]
) -> TensorEntry:
    """A tensor's entry; raises CheckpointError unless its type and shape are as expected."""
    entry, types = find_entry(directory, name), " or ".join(dtypes)
    pairs = {
        "wrong type": (types, entry.dtype, entry.dtype in dtypes),
        "wrong shape": (list(shape), list(entry.shape), entry.shape == tuple(shape)),
    }
    for problem, (expected, found, good) in pairs.items():
        if not good:
            file = entry.file
            raise CheckpointError(problem, path=file, name=name, expected=expected, found=found)
    return entry
