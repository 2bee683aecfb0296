"""Jitted AWQ against the reference's: the same grid, the same scales, the same clipping."""

from pathlib import Path

import jax
import numpy as np
import pytest

from planish.fast.quantize.awq import candidate_errors, clip_groups, quantize_block
from planish.fast.quantize.grid import round_weight
from planish.fast.quantize.observe import Runner
from planish.reference.files.load import load_weights, open_checkpoint
from planish.reference.model.folds import block_folds
from planish.reference.model.weights import block_linears, block_norms
from planish.reference.quantize.job import BlockJob
from planish.reference.quantize.methods.awq import (
    ABSOLUTE_SUM,
    candidate_scales,
    inspected,
    on_grid,
)
from planish.reference.quantize.methods.awq import candidate_errors as reference_errors
from planish.reference.quantize.methods.awq import clip_groups as reference_clip
from planish.reference.quantize.methods.awq import quantize_block as reference_block
from planish.reference.quantize.observe import embed_samples, observe_block
from planish.reference.scheme import int4, int8
from tests.reference.quantize.conftest import same_schemes

GOLDEN = Path(__file__).parents[2] / "golden"
NAMES = ("qwen3-norms", "falcon-7b-form-biases", "gemma2-caps", "mixtral-two-of-four")
SCHEMES = (
    *(int4(32), int4(-1), int4(64, scale_dtype="float32"), int4(128, symmetric=False)),
    *(int8(), int8("per_tensor")),
)


def make_job(name, scheme, **changes):
    """A job for the first block of a golden, and the block."""
    checkpoint = open_checkpoint(GOLDEN / name)
    weights, rng = load_weights(checkpoint), np.random.default_rng(3)
    config, block = checkpoint.config, weights.blocks[0]
    tokens = [rng.integers(0, config.vocab_size, n) for n in (24, 24, 40)]
    hidden = embed_samples(config, weights, tokens)
    _, targets = observe_block(config, block, hidden)
    states = {"inputs": hidden, "float_inputs": hidden, "targets": targets}
    schemes = same_schemes(block, scheme)
    return BlockJob(config=config, schemes=schemes, note=print, **states, **changes), block


@pytest.mark.matrix(6)
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("rule", ["signed", "absmax", "absmax7"])
def test_rounding_gives_the_references_values_to_the_bit(scheme, rule):
    rng = np.random.default_rng(0)
    w = rng.standard_normal((40, 200)).astype(np.float32)
    w[3], w[4, :64], w[5] = 0, 1e-9, np.round(w[5] * 4) / 4  # scales of 0, too small, and ties
    w[6, ::2], w[6, 1::2] = 2, -2
    found = jax.jit(round_weight, static_argnums=(1, 2))(w, scheme, rule)
    assert np.array_equal(np.asarray(found), on_grid(w, scheme, rule))


@pytest.mark.matrix(4)
@pytest.mark.parametrize("cols", [64, 80])
@pytest.mark.parametrize("symmetric", [True, False])
def test_clipping_is_the_references(cols, symmetric):
    rng = np.random.default_rng(cols)
    w, x = rng.standard_t(2, (30, cols)), rng.standard_normal((3, 50, 32))
    w, moments = w.astype(np.float32), (x.transpose(0, 2, 1) @ x).astype(np.float32)
    scheme = int4(32, symmetric=symmetric)
    moments = moments[: -(-cols // 32)]
    expected = reference_clip(w, scheme, "signed", moments)
    found = clip_groups(w, scheme, "signed", moments)
    assert np.abs(found - expected).max() <= 1e-6 * np.abs(expected).max()
    assert not np.array_equal(expected, w)


@pytest.mark.whole
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scheme", [int4(32), int4(32, activation="per_group")], ids=str)
def test_errors_of_candidates_are_the_references(name, scheme):
    job, block = make_job(name, scheme)
    sums, _ = observe_block(job.config, block, job.float_inputs, observer=ABSOLUTE_SUM)
    for fold in block_folds(job.config, block):
        seen = [part for part in fold.linears if part in sums]
        if not seen or fold.source.startswith("experts"):  # their weights have errors of their own
            continue
        candidates = candidate_scales(job, block, fold, sums[seen[0]])[::6]
        judged = inspected(job, block, fold)
        expected = reference_errors(*judged, fold, candidates)
        found = candidate_errors(*judged, fold, candidates)
        assert found == pytest.approx(expected, rel=0.02), fold


@pytest.mark.whole(3)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("native", [False, True], ids=["xla", "native"])
def test_a_block_is_scaled_and_clipped_as_by_the_reference(kernels, name, native):
    """Scales and clips are equal; where two candidates are as good, noise may decide."""
    job, block = make_job(name, int4(32))
    expected = reference_block(job, block)
    fast, _ = make_job(name, int4(32), runner=Runner(native))
    found = quantize_block(fast, block)
    for part, norm in block_norms(expected).items():
        if norm.weight is not None:
            assert block_norms(found)[part].weight == pytest.approx(norm.weight, rel=1e-4)
    for part, layer in block_linears(expected).items():
        off = ~np.isclose(block_linears(found)[part].weight, layer.weight, rtol=1e-3, atol=1e-6)
        assert off.mean() <= 0.01, part
