"""Samples of other programs with a mutation, and what lint finds in them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from planish.compare.lint.linear import StoredLinear
from planish.compare.lint.rules import Finding
from planish.compare.lint.run import lint
from planish.reference.files.safetensors import read_entries
from planish.reference.scheme import Scheme

FOREIGN = Path(__file__).parents[2] / "foreign"
LAYER = "model.layers.0"
UP = f"{LAYER}.mlp.up_proj"
Tensors = dict[str, np.ndarray]
Edit = Callable[[Tensors, dict[str, Any]], object]


@pytest.fixture
def edited(tmp_path) -> Callable[[str, Edit], Path]:
    """edited(sample, change) -> a copy whose tensors and config `change` has mutated."""

    def make(name: str, change: Edit) -> Path:
        path = Path(shutil.copytree(FOREIGN / name, tmp_path / name))
        entries = read_entries(path / "model.safetensors")
        tensors = {one: entry.map().copy() for one, entry in entries.items()}
        config = json.loads((path / "config.json").read_text())
        change(tensors, config)
        (path / "config.json").write_text(json.dumps(config))
        save_file(tensors, path / "model.safetensors", {"format": "pt"})
        return path

    return make


def found(path: Path, rule: str) -> list[Finding]:
    """The findings of one rule."""
    return [one for one in lint(path).findings if one.rule == rule]


def linear(codes=None, scale=((1.0,),), **fields: Any) -> StoredLinear:
    """A linear of literal arrays: INT4 asymmetric in groups of 4 unless the fields say more."""
    scale = np.asarray(scale, fields.pop("scale_dtype", np.float32))
    given = None if codes is None else np.asarray(codes, fields.pop("dtype", np.uint8))
    shape = (1, 4) if given is None else given.shape
    defaults = {"format": "pack-quantized", "bits": 4, "low": 0, "high": 15, "group_size": 4}
    values = {"prefix": "p", "shape": shape, "scale_type": "F32", **defaults, **fields}
    return StoredLinear(
        **values, scale=lambda: scale, codes=None if given is None else lambda: given
    )


def activations(kind: str, **fields: Any) -> Scheme:
    """A scheme with INT8 inputs."""
    defaults = {"bits": 4, "granularity": "per_group", "group_size": 32}
    return Scheme(**{**defaults, **fields}, activation=kind)
