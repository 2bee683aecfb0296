"""Static ranges by least error: literal small numbers, and on a block with one outlier."""

from dataclasses import replace

import numpy as np
import pytest

from planish.reference.errors import RecipeError
from planish.reference.files.load import load_weights, open_checkpoint
from planish.reference.quantize import clip
from planish.reference.quantize.block import observe_absmax, quantize_block
from planish.reference.quantize.job import BlockJob
from planish.reference.quantize.recipe import recipe
from planish.reference.quantize.runtime import NUMPY
from planish.reference.scheme import int8
from tests.reference.quantize.conftest import same_schemes

O3 = int8("per_tensor", "static")


def test_an_error_of_codes_and_of_saturation():
    """Range 127, scale 1: 0.4 rounds to 0, 200 saturates; the second channel counts four times."""
    x = np.array([[0.4, 0.0], [0.0, 200.0]], np.float32)
    found = clip.range_error(x, np.float32(127), np.array([1.0, 4.0]))
    assert found == pytest.approx(0.4**2 + 4 * 73.0**2, rel=1e-6)


def test_values_on_the_grid_keep_their_range():
    x = np.arange(-127, 128, dtype=np.float32).reshape(-1, 5)
    assert clip.best_share(x, np.float32(127), np.ones(5)) == 1


def test_a_lone_outlier_is_cut_where_its_channel_counts_little():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 8)).astype(np.float32)
    x[3, 2] = 1000
    little, much = np.ones(8), np.ones(8)
    little[2] = 1e-6
    assert clip.best_share(x, np.float32(1000), little) < 0.01
    assert clip.best_share(x, np.float32(1000), much) > 0.9


@pytest.fixture
def job(tiny_llama):
    checkpoint = open_checkpoint(tiny_llama)
    weights = load_weights(checkpoint)
    block, rng = weights.blocks[0], np.random.default_rng(0)
    x = rng.normal(size=(3, 20, checkpoint.config.hidden_size)).astype(np.float32)
    schemes = same_schemes(block, O3)
    return BlockJob(config=checkpoint.config, schemes=schemes, float_inputs=list(x)), block


def test_each_linear_has_a_range_of_its_own_and_never_a_wider_one(job):
    job, block = job
    absmax = observe_absmax(job, block)
    cut = clip.clip_absmax(job, block, absmax)
    assert cut.keys() == absmax.keys()
    for part, before in absmax.items():
        assert cut[part].max() <= before.max()
        assert np.all(cut[part] == np.minimum(before, cut[part].max()))


def test_linears_without_static_scales_are_left_alone(job):
    job, block = job
    absmax = observe_absmax(job, block)
    other = replace(job, schemes={**job.schemes, "q": int8(), "down": None})
    cut = clip.clip_absmax(other, block, absmax)
    assert cut["q"] is absmax["q"] and cut["down"] is absmax["down"]


def test_a_block_with_clipped_ranges_is_nearer_to_the_float_one(job):
    job, block = job
    weight = block.mlp.down.weight.copy()
    weight[:, 3] *= 1e-3
    block = replace(block, mlp=replace(block.mlp, down=replace(block.mlp.down, weight=weight)))
    up = block.mlp.up.weight.copy()
    up[3] *= 300  # an outlier at the input of down, where its weights are small
    block = replace(block, mlp=replace(block.mlp, up=replace(block.mlp.up, weight=up)))
    schemes = {part: O3 if part == "down" else None for part in job.schemes}
    job = replace(job, schemes=schemes)
    targets = NUMPY.runner.run(job.config, block, job.float_inputs)
    errors = []
    for clipped in (False, True):
        chosen = recipe("naive", scheme="O3", clip_inputs=clipped)
        quantized, _ = quantize_block(job, block, chosen)
        found = NUMPY.runner.run(job.config, quantized, job.float_inputs)
        errors.append(sum(np.square(y - t).sum() for y, t in zip(found, targets, strict=True)))
    assert errors[1] < errors[0] / 4


def test_clipping_needs_static_scales():
    with pytest.raises(RecipeError, match="clip_inputs: has no effect without static activations"):
        recipe("W8A8", clip_inputs=True)
