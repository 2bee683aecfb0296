"""What the tests of conversions share: quantized models, and whether two directories are equal."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from planish.reference.files.export.convert import convert
from planish.reference.files.export.protocol import Request
from planish.reference.files.load import Checkpoint, load_weights, open_checkpoint
from planish.reference.files.writer import CheckpointWriter
from planish.reference.model.transformer import forward
from planish.reference.quantize.checkpoint import quantize_checkpoint
from planish.reference.quantize.recipe import recipe

GOLDEN = Path(__file__).parents[3] / "golden"
TOKENS = [1, 5, 9, 20, 7, 11, 3]


@pytest.fixture
def quantized(tmp_path: Path) -> Callable[..., Checkpoint]:
    """quantized(directory, "W4A16", group_size=32): opened, quantized by a recipe."""

    def make(source: Path, name: str, *, layout: str = "tiles", **changes: Any) -> Checkpoint:
        target = tmp_path / "quantized"
        samples = [np.array(TOKENS * 2), np.array(TOKENS[::-1] * 2)]
        checkpoint = open_checkpoint(source)
        with CheckpointWriter(target, source) as writer:
            quantize_checkpoint(checkpoint, writer, recipe(name, **changes), samples, layout)
        return open_checkpoint(target)

    return make


@pytest.fixture
def converted(tmp_path: Path) -> Callable[..., Checkpoint]:
    """converted(checkpoint, "float", dtype="float16"): opened, in another format."""

    def make(checkpoint: Checkpoint, form: str, **options: Any) -> Checkpoint:
        taken = len([*tmp_path.glob("converted-*")])
        target = tmp_path / f"converted-{taken}"
        convert(checkpoint, target, Request(format=form, **options))
        return open_checkpoint(target)

    return make


def differing(one: Checkpoint, other: Checkpoint) -> list[str]:
    """The tensors that are not in both, or not the same to the bit, type and shape included."""
    names = one.entries.keys() | other.entries.keys()
    return [name for name in sorted(names) if _bits(one, name) != _bits(other, name)]


def _bits(checkpoint: Checkpoint, name: str) -> object:
    entry = checkpoint.entries.get(name)
    return entry and (entry.dtype, entry.shape, entry.map().tobytes())


def logits(checkpoint: Checkpoint, tokens: Sequence[int] = TOKENS) -> np.ndarray:
    """By the reference."""
    return forward(checkpoint.config, load_weights(checkpoint), list(tokens))
