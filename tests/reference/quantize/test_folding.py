"""What is folded, on every architecture's goldens: float logits stay what they were (SPEC 3)."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from planish.reference.errors import RecipeError
from planish.reference.files.load import load_weights, open_checkpoint
from planish.reference.model.transformer import forward
from planish.reference.model.weights import block_norms
from planish.reference.quantize.observe import calibrate
from planish.reference.quantize.recipe import recipe
from planish.reference.quantize.smooth import apply_smoothing, require_folds

GOLDEN = Path(__file__).parents[2] / "golden"
DIRECTORIES = sorted(path.parent for path in GOLDEN.glob("*/golden.npz"))
BEFORE = {"attention_norm", "mlp_norm"}  # the norms that linears read, where they come first


@pytest.fixture(params=DIRECTORIES, ids=lambda path: path.name)
def golden(request):
    checkpoint = open_checkpoint(request.param)
    with np.load(request.param / "golden.npz") as stored:
        return checkpoint, load_weights(checkpoint), stored["tokens_long"][:60]


def smooth_model(checkpoint, weights, tokens, alpha, outputs):
    config = checkpoint.config
    chosen, observed = recipe("W8A8", smooth_outputs=outputs), calibrate(config, weights, [tokens])
    blocks = [
        apply_smoothing(config, block, absmax, chosen, alpha)
        for block, absmax in zip(weights.blocks, observed, strict=True)
    ]
    return replace(weights, blocks=blocks)


@pytest.mark.matrix(18)
@pytest.mark.parametrize("outputs", [False, True], ids=["norms", "outputs"])
@pytest.mark.parametrize("alpha", [0.5, 0.85])
def test_folding_leaves_float_logits_unchanged(golden, alpha, outputs):
    checkpoint, weights, tokens = golden
    smooth = smooth_model(checkpoint, weights, tokens, alpha, outputs)
    expected = forward(checkpoint.config, weights, tokens)
    found = forward(checkpoint.config, smooth, tokens)
    assert np.abs(found - expected).max() < 2e-5 * np.ptp(expected)


@pytest.mark.matrix(4)
def test_every_norm_that_only_linears_read_is_folded_and_no_other(golden):
    checkpoint, weights, tokens = golden
    config = checkpoint.config
    after = block_norms(smooth_model(checkpoint, weights, tokens, 0.5, False).blocks[0])
    before = block_norms(weights.blocks[0])
    changed = {name for name, norm in after.items() if differs(norm, before[name])}
    assert changed == (BEFORE & set(before) if config.norms_before else set())
    if not config.norms_before:  # the residual stream reads them too
        with pytest.raises(RecipeError, match="cannot smooth"):
            require_folds(config)


def differs(norm, other):
    return norm is not other and not np.array_equal(norm.weight, other.weight)
