"""Layouts of which no program's sample exists here: the weights that their owners mean."""

import ml_dtypes
import numpy as np
import pytest

from planish.fast.session.engine import Engine
from planish.reference.files.load import load_weights, open_checkpoint
from planish.reference.linear import float_weight
from planish.reference.model.transformer import forward
from planish.reference.model.weights import block_linears
from planish.reference.quantized import QuantizedWeight, dequantize
from tests import foreign_files
from tests.foreign_files import LINEARS

TOKENS = [1, 5, 9, 20, 7, 31, 3]
LAYOUTS = {
    "awq-gemv-g64": (foreign_files.write_awq_gemv, {}, "int4 g=64 asymmetric"),
    "awq-gemv-g32": (foreign_files.write_awq_gemv, {"group_size": 32}, "int4 g=32 asymmetric"),
    "inc": (foreign_files.write_incs_export, {}, "int4 g=32 asymmetric"),
    "bitsandbytes": (foreign_files.write_bitsandbytes, {}, "int8 per_channel full range"),
    "deepseek": (foreign_files.write_deepseek, {}, "None"),
    "deepseek-bf16": (foreign_files.write_deepseek, {"dtype": ml_dtypes.bfloat16}, "None"),
}
PARTS = dict(zip(("q", "k", "v", "o", "gate", "up", "down"), LINEARS, strict=True))


@pytest.fixture(params=LAYOUTS)
def made(request, tmp_path):
    """A checkpoint, the weights that it means, and the scheme of its linears."""
    write, options, scheme = LAYOUTS[request.param]
    weights = write(tmp_path / "model", **options)
    return open_checkpoint(tmp_path / "model"), weights, scheme


@pytest.mark.matrix(6)
def test_weights_are_what_the_owner_means_to_the_bit(made):
    checkpoint, expected, scheme = made
    linears = block_linears(load_weights(checkpoint).blocks[0])
    assert {str(linear.scheme) for linear in linears.values()} == {scheme}
    for part, linear in linears.items():
        quantized = isinstance(linear.weight, QuantizedWeight)
        found = dequantize(linear.weight) if quantized else float_weight(linear)
        wanted = expected[f"model.layers.0.{PARTS[part]}"]
        np.testing.assert_array_equal(found, wanted, err_msg=part)


@pytest.mark.whole
def test_both_engines_compute_the_same(made):
    checkpoint, _, _ = made
    expected = forward(checkpoint.config, load_weights(checkpoint), TOKENS)
    found = Engine(checkpoint).forward(TOKENS)
    assert np.abs(found - expected).max() < 1e-5 * np.ptp(expected)


def test_the_last_rounding_of_bitsandbytes_is_all_that_differs(tmp_path):
    """Its CUDA kernel multiplies by SCB and then by 1 / 127: two roundings, as here."""
    foreign_files.write_bitsandbytes(tmp_path / "model")
    checkpoint = open_checkpoint(tmp_path / "model")
    weight = load_weights(checkpoint).blocks[0].q.weight
    exact = weight.codes * (np.float64(weight.scale * np.float32(127)))
    assert np.abs(dequantize(weight) * 127.0 - exact).max() <= np.abs(exact).max() * 2**-22
