"""TEQ's learned scales are folded: the block computes the same function."""

from pathlib import Path

import numpy as np
import pytest

from planish.reference.files.load import load_weights, open_checkpoint
from planish.reference.model.folds import block_folds
from planish.reference.model.weights import block_linears
from planish.reference.quantize.methods.teq import FLOOR, scale_block
from planish.reference.quantize.observe import embed_samples
from planish.reference.quantize.runner import NUMPY_RUNNER

F32 = np.float32
GOLDEN = Path(__file__).parents[3] / "golden"
FORMS = ("llama-biases-float16", "mixtral-two-of-four", "falcon-7b-form-biases", "opt-350m-form")


def widths(config, block, folds):
    """The channels of each fold's source."""
    linears = block_linears(block)
    sources = [linears.get(fold.source) for fold in folds]
    return [config.hidden_size if s is None else len(s.weight) for s in sources]


@pytest.mark.parametrize("form", FORMS)
def test_a_scaled_block_computes_the_same_function(form):
    checkpoint = open_checkpoint(GOLDEN / form)
    config, weights = checkpoint.config, load_weights(checkpoint)
    block, rng = weights.blocks[0], np.random.default_rng(0)
    folds = block_folds(config, block)
    scales = [rng.uniform(0.5, 2, n).astype(F32) for n in widths(config, block, folds)]
    hidden = embed_samples(config, weights, [np.arange(12), np.arange(20, 32)])
    scaled = scale_block(config, block, scales)
    found = NUMPY_RUNNER.run(config, scaled, hidden)
    for y, right in zip(found, NUMPY_RUNNER.run(config, block, hidden), strict=True):
        assert np.abs(y - right).max() <= 1e-5 * np.abs(right).max()
    first = folds[0].linears[0] if folds else "q"
    same = np.array_equal(block_linears(scaled)[first].weight, block_linears(block)[first].weight)
    assert same == (not folds)


def test_a_scale_is_at_least_the_floor(loaded):
    checkpoint, weights = loaded["llama"]
    config, block = checkpoint.config, weights.blocks[0]
    sizes = widths(config, block, block_folds(config, block))
    scaled = scale_block(config, block, [np.full(n, -1, F32) for n in sizes])
    assert np.array_equal(scaled.attention_norm.weight, block.attention_norm.weight / FLOOR)
