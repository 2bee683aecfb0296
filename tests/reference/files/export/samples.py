"""Checkpoints of other programs (tests/foreign) through planish's format and back into theirs."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from planish.reference.files.export.convert import convert
from planish.reference.files.export.protocol import Request
from planish.reference.files.load import open_checkpoint
from planish.reference.files.safetensors import read_entries

Tensors = dict[str, tuple[str, np.ndarray]]


def convert_to(source: Path, target: Path, name: str) -> Path:
    """A directory in another format."""
    convert(open_checkpoint(source), target, Request(format=name))
    return target


def raw(path: Path) -> Tensors:
    """The tensors of a directory as they are stored, with their types."""
    entries = read_entries(path / "model.safetensors")
    return {name: (entry.dtype, entry.map()) for name, entry in entries.items()}


def assert_equal(found: Tensors, expected: Tensors) -> None:
    """The same names, types and bits."""
    assert found.keys() == expected.keys()
    for name, (dtype, tensor) in expected.items():
        assert found[name][0] == dtype, name
        np.testing.assert_array_equal(found[name][1], tensor, err_msg=name)
