"""Every architecture quantized, written, and read again: what is read is what was computed.

A fused, grouped or transposed tensor is cut, and its parts lie by themselves in the directory
that planish writes.
"""

from pathlib import Path

import numpy as np
import pytest

from planish.reference.files.load import load_weights, open_checkpoint
from planish.reference.files.writer import CheckpointWriter
from planish.reference.model.folds import folds
from planish.reference.model.transformer import forward
from planish.reference.quantize.checkpoint import quantize_checkpoint
from planish.reference.quantize.recipe import recipe
from tests.reference.quantize.conftest import in_memory

GOLDEN = Path(__file__).parents[2] / "golden"
DIRECTORIES = sorted(path.parent for path in GOLDEN.glob("*/golden.npz"))
CHOICES = {"W8A8": {"alpha": 0.5}, "W4A8": {"group_size": 32, "head": "int8"}}


@pytest.fixture(params=DIRECTORIES, ids=lambda path: path.name)
def golden(request):
    checkpoint = open_checkpoint(request.param)
    with np.load(request.param / "golden.npz") as stored:
        tokens = stored["tokens_long"]
    return checkpoint, tokens[:40], [tokens[i : i + 40] for i in (100, 200)]


def chosen_for(checkpoint, name):
    """The recipe; unsmoothed where no norm can be folded."""
    if name == "W8A8" and not folds(checkpoint.config):
        return recipe("naive", scheme="W8A8")
    return recipe(name, **CHOICES[name])


def written(path, checkpoint, samples, chosen, layout="tiles"):
    with CheckpointWriter(path, checkpoint.path) as writer:
        quantize_checkpoint(checkpoint, writer, chosen, samples, layout=layout)
    return open_checkpoint(path)


@pytest.mark.matrix(44)
@pytest.mark.parametrize("name", CHOICES)
def test_a_written_model_computes_what_was_quantized_in_either_layout(golden, name, tmp_path):
    checkpoint, tokens, samples = golden
    chosen = chosen_for(checkpoint, name)
    expected = forward(
        checkpoint.config, in_memory(checkpoint, load_weights(checkpoint), chosen, samples), tokens
    )
    for layout in ("tiles", "canonical"):
        opened = written(tmp_path / layout, checkpoint, samples, chosen, layout)
        found = forward(opened.config, load_weights(opened), tokens)
        assert np.array_equal(found, expected)
    whole = forward(checkpoint.config, load_weights(checkpoint), tokens)
    error = np.std(found - whole) / np.std(whole)
    assert 0 < error < (0.1 if name == "W8A8" else 0.8)


@pytest.mark.matrix(19)
@pytest.mark.parametrize("ignored", ["*q*", "*"])
def test_linears_left_in_float_are_cut_from_their_tensors_too(golden, ignored, tmp_path):
    checkpoint, tokens, samples = golden
    chosen = recipe("W8A16", ignore=(ignored,))
    opened = written(tmp_path / "out", checkpoint, samples, chosen)
    found = forward(opened.config, load_weights(opened), tokens)
    whole = forward(checkpoint.config, load_weights(checkpoint), tokens)
    assert np.array_equal(found, whole) == (ignored == "*")


@pytest.mark.matrix(11)
def test_a_smoothed_float_model_is_written_and_read_again(golden, tmp_path):
    checkpoint, tokens, samples = golden
    alpha = 0.5 if folds(checkpoint.config) else None
    chosen = recipe("float", alpha=alpha)
    opened = written(tmp_path / "out", checkpoint, samples, chosen)
    expected = forward(
        checkpoint.config, in_memory(checkpoint, load_weights(checkpoint), chosen, samples), tokens
    )
    assert np.array_equal(forward(opened.config, load_weights(opened), tokens), expected)
