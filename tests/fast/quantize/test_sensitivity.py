"""Sensitivities against finite differences of the reference's loss, and their bookkeeping."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from planish.fast.quantize.sensitivity import measure_sensitivity
from planish.reference.files.load import load_weights, open_checkpoint
from planish.reference.model.weights import block_linears, replace_modules, split_expert
from planish.reference.quantize.job import BlockJob
from planish.reference.quantize.methods.rtn import quantize_block
from planish.reference.quantize.observe import ABSMAX, observe_block
from planish.reference.quantized import dequantize
from planish.reference.scheme import int4, int8
from planish.reference.text.evaluate import token_losses
from tests.reference.quantize.conftest import same_schemes

GOLDEN = Path(__file__).parents[2] / "golden"
MODELS = {name: GOLDEN / name for name in ("mixtral-two-of-four", "falcon-7b-form-biases")}
LAYER, STEP = 1, 0.1


@pytest.fixture(params=["tiny", *MODELS])
def model(request, tiny_llama):
    checkpoint = open_checkpoint(MODELS.get(request.param, tiny_llama))
    return checkpoint.config, load_weights(checkpoint)


def quantized(config, block, scheme):
    job = BlockJob(config=config, schemes=same_schemes(block, scheme))
    return block_linears(quantize_block(job, block))


@pytest.mark.whole
def test_one_token_is_felt_as_finite_differences_say(model):
    """Of samples with one prediction each: 1/2 (dL along a row of W' - W)^2, summed over rows.

    For experts along all of W' - W at once.
    """
    config, weights = model
    rng = np.random.default_rng(0)
    samples = [rng.integers(0, config.vocab_size, 2) for _ in range(2)]
    levels = [quantized(config, each, int4(32)) for each in weights.blocks]
    found = measure_sensitivity(config, weights, lambda layer: [levels[layer]], samples)[LAYER]
    for part in ("v", "down") if "v" in found and "down" in found else ("v", "experts.down"):
        cost = expected_cost(model, part, levels[LAYER], samples)
        np.testing.assert_allclose(found[part].cost, [cost], rtol=0.03, atol=1e-8)


def expected_cost(model, part, level, samples):
    """Half the squares of the loss's central differences, per predicted token."""
    config, weights = model
    block = weights.blocks[LAYER]
    linears = {p: x for p, x in block_linears(block).items() if split_expert(p)[0] == part}
    whole = {p: dequantize(level[p].weight) - x.weight for p, x in linears.items()}
    directions = [whole]
    if part in whole:  # not experts
        rows = np.eye(len(whole[part]), dtype=np.float32)
        directions = [{part: whole[part] * row[:, None]} for row in rows]
    squares = 0.0
    for direction in directions:
        for sample in samples:
            sides = []
            for step in (STEP, -STEP):
                moved = {
                    p: replace(x, weight=x.weight + np.float32(step) * direction[p])
                    for p, x in linears.items()
                }
                blocks = list(weights.blocks)
                blocks[LAYER] = replace_modules(block, moved)
                sides.append(token_losses(config, replace(weights, blocks=blocks), sample).sum())
            squares += ((sides[0] - sides[1]) / (2 * STEP)) ** 2
    return squares / 2 / len(samples)


@pytest.mark.whole
def test_the_relative_error_is_that_of_the_outputs(tiny_llama):
    checkpoint = open_checkpoint(tiny_llama)
    config, weights = checkpoint.config, load_weights(checkpoint)
    samples = [np.arange(20, 36), np.arange(60, 76)]
    block = weights.blocks[0]
    level = quantized(config, block, int4(32))
    keep = replace(ABSMAX, measure=lambda x: x, merge=lambda a, b: np.concatenate([a, b]))
    seen, _ = observe_block(config, block, [weights.embed[s] for s in samples], None, keep)
    others = [level, quantized(config, weights.blocks[1], int4(32))]
    found = measure_sensitivity(config, weights, lambda layer: [others[layer]], samples)[0]
    for part, x in seen.items():
        right = x @ block_linears(block)[part].weight.T
        wrong = x @ dequantize(level[part].weight).T - right
        expected = np.square(wrong).sum() / np.square(right).sum()
        assert found[part].error == pytest.approx(expected, rel=1e-3)


@pytest.mark.whole
def test_rounded_activations_count(tiny_llama):
    checkpoint = open_checkpoint(tiny_llama)
    config, weights = checkpoint.config, load_weights(checkpoint)
    samples = [np.arange(20, 36)]
    schemes = int8(), int8(activation="per_token")

    def alternatives(layer):
        return [quantized(config, weights.blocks[layer], scheme) for scheme in schemes]

    for parts in measure_sensitivity(config, weights, alternatives, samples):
        for one in parts.values():
            assert one.error[1] > one.error[0] > 0
