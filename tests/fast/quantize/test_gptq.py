"""The jitted column loop against the reference's, given the same factor."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from planish.fast.quantize.gptq import gptq_codes
from planish.fast.quantize.observe import Runner
from planish.fast.quantize.runtime import STEPS
from planish.reference.files.load import load_weights, open_checkpoint
from planish.reference.grids import GROUP_SIZES, INT4_RULES
from planish.reference.model.weights import block_linears
from planish.reference.quantize.job import BlockJob
from planish.reference.quantize.methods import METHODS
from planish.reference.quantize.methods.gptq import factor_hessian
from planish.reference.quantize.methods.gptq import gptq_codes as reference_codes
from planish.reference.quantize.runtime import NUMPY
from planish.reference.quantized import dequantize, from_codes
from planish.reference.scheme import int4, int8
from tests.reference.quantize.conftest import same_schemes
from tests.reference.quantize.methods.test_gptq import case, hessian_of, output_error

GOLDEN = Path(__file__).parents[2] / "golden"
DIFFERENT = 0.002  # of the codes: rounding in the products moves a weight over a tie
SCHEMES = {
    **{
        f"{rule}-g{size}": (int4(size, symmetric=rule != "minmax"), rule)
        for rule in INT4_RULES
        for size in GROUP_SIZES
    },
    "int8": (int8(), "signed"),
    "int8 per_tensor": (int8("per_tensor"), "signed"),
    "float32 scales": (int4(32, scale_dtype="float32"), "signed"),
}


@pytest.mark.optimized(4)
@pytest.mark.matrix(32)
@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("name", SCHEMES)
def test_codes_given_the_same_factor_are_the_references(name, act_order):
    w, x = case(k=300)  # a partial block, and a partial last group
    scheme, rule = SCHEMES[name]
    factor = factor_hessian(hessian_of(x), act_order=act_order)
    expected = reference_codes(w, factor, scheme, rule)
    found = gptq_codes(w, factor, scheme, rule)
    assert found[1].dtype == expected[1].dtype and found[1].shape == expected[1].shape
    assert (found[2] is None) == (expected[2] is None)
    assert (found[0] != expected[0]).mean() <= DIFFERENT
    errors = [output_error(x, w, from_codes(*codes, scheme)) for codes in (expected, found)]
    assert errors[1] == pytest.approx(errors[0], rel=0.01)


def test_in_one_block_without_a_product_most_codes_are_equal_to_the_bit():
    w, x = case(k=96, n=200)
    factor = factor_hessian(hessian_of(x))
    expected, found = (
        codes(w, factor, int4(32), "signed") for codes in (reference_codes, gptq_codes)
    )
    assert (found[0] != expected[0]).mean() <= 2e-4
    assert np.array_equal(found[1][:, 0], expected[1][:, 0])


NAMES = ["llama-tied-grouped", "gpt_neox-parallel", "mixtral-two-of-four"]


@pytest.mark.whole
@pytest.mark.parametrize("name", NAMES)
def test_a_block_is_quantized_as_the_reference_does(kernels, name):
    checkpoint = open_checkpoint(GOLDEN / name)
    config, block = checkpoint.config, load_weights(checkpoint).blocks[0]
    rng = np.random.default_rng(0)
    samples = [rng.integers(0, config.vocab_size, 48) for _ in range(4)]
    hidden = NUMPY.runner.embed(config, load_weights(checkpoint), samples)
    schemes, notes = same_schemes(block, int4(32)), []
    job = BlockJob(
        config=config, schemes=schemes, inputs=hidden, float_inputs=hidden, note=notes.append
    )
    expected = METHODS["gptq"].step(job, block)
    found = STEPS["gptq"](replace(job, runner=Runner(native=True)), block)
    assert len(notes) % 2 == 0 and notes[: len(notes) // 2] == notes[len(notes) // 2 :]
    linears = block_linears(expected)
    for part, layer in block_linears(found).items():
        if part != "router":
            before, after = dequantize(linears[part].weight), dequantize(layer.weight)
            assert (before != after).mean() <= 0.02, part
