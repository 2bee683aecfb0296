"""Scales that methods moved are found again, also behind AWQ's clipping."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from planish import pocket
from planish.compare.quality.rescaling import find_rescalings, rescale_block
from planish.reference.files.load import load_weights, open_checkpoint
from planish.reference.linear import float_weight
from planish.reference.model.folds import block_folds
from planish.reference.model.weights import block_linears, block_norms, replace_modules
from planish.reference.quantize.fold import apply_fold
from planish.reference.quantize.observe import run_block

GOLDEN = Path(__file__).parents[2] / "golden"
MODELS = {
    "pocket": pocket.MODEL,  # grouped-query attention, gated MLP
    "mixtral": GOLDEN / "mixtral-two-of-four",
    "gemma2": GOLDEN / "gemma2-caps",  # norms before and after
    "falcon": GOLDEN / "falcon-7b-form-biases",  # parallel, layer norms with biases
}


def rescaled(name, clip=1.0):
    """A block, and the same with every fold scaled by random numbers and large weights clipped."""
    checkpoint = open_checkpoint(MODELS[name])
    before = load_weights(checkpoint).blocks[0]
    after, rng = before, np.random.default_rng(0)
    for fold in block_folds(checkpoint.config, before):
        width = len(
            fold.by_source(np.ones(float_weight(block_linears(before)[fold.linears[0]]).shape[1]))
        )
        after = apply_fold(after, fold, np.exp(rng.normal(size=width)).astype(np.float32))
    clipped = {}
    for part, layer in block_linears(after).items():
        weight = float_weight(layer)
        most = clip * np.abs(weight).max(axis=1, keepdims=True)
        clipped[part] = replace(layer, weight=np.clip(weight, -most, most))
    return checkpoint.config, before, after, replace_modules(after, clipped)


@pytest.mark.parametrize("name", MODELS)
def test_the_unclipped_weights_are_found_behind_clipping(name):
    config, before, after, clipped = rescaled(name, clip=0.6)
    found = rescale_block(before, block_norms(clipped), find_rescalings(config, before, clipped))
    for part, layer in block_linears(found).items():
        expected = block_linears(after)[part]
        np.testing.assert_allclose(layer.weight, expected.weight, rtol=3e-5, atol=1e-12)
        if expected.bias is not None:
            np.testing.assert_allclose(layer.bias, expected.bias, rtol=3e-5, atol=1e-12)


def test_the_found_block_computes_the_same_function():
    config, before, _, clipped = rescaled("pocket", clip=0.6)
    found = rescale_block(before, block_norms(clipped), find_rescalings(config, before, clipped))
    x = np.random.default_rng(1).normal(size=(9, config.hidden_size)).astype(np.float32)
    expected = run_block(config, before, x)
    np.testing.assert_allclose(run_block(config, found, x), expected, rtol=2e-3, atol=2e-4)
    wrong = np.abs(run_block(config, clipped, x) - expected).max()
    assert wrong > 100 * np.abs(run_block(config, found, x) - expected).max()


def test_a_block_that_nothing_changed_has_no_scales():
    checkpoint = open_checkpoint(pocket.MODEL)
    block = load_weights(checkpoint).blocks[0]
    for one in find_rescalings(checkpoint.config, block, block).values():
        assert one.inputs is None or np.all(one.inputs == 1)
        assert one.outputs is None or np.all(one.outputs == 1)


def test_a_row_of_zeros_is_not_scaled():
    config, before, after, _ = rescaled("pocket")
    weight = before.v.weight.copy()
    weight[3] = 0
    zeroed = replace_modules(before, {"v": replace(before.v, weight=weight)})
    weight = after.v.weight.copy()
    weight[3] = 0
    scaled = replace_modules(after, {"v": replace(after.v, weight=weight)})
    assert find_rescalings(config, zeroed, scaled)["v"].outputs[3] == 1
