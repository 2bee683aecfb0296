"""Layouts of which no program's sample exists here: the weights that their owners mean."""

import json

import ml_dtypes
import numpy as np
import pytest

from planish.fast.session.engine import Engine
from planish.reference.errors import CheckpointError, ConfigError
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


MIXED = {
    "self_attn.q_proj": {"bits": 8},
    "self_attn.k_proj": {"sym": False},
    "self_attn.v_proj": {"group_size": 64},
    "self_attn.o_proj": {"bits": 8, "group_size": 64, "sym": False},
    "mlp.up_proj": {"bits": 2},
    "mlp.down_proj": {"bits": 16},
}
MIXED_SCHEMES = {
    "q": "int8 g=32",
    "k": "int4 g=32 asymmetric",
    "v": "int4 g=64",
    "o": "int8 g=64 offset",
    "gate": "int4 g=32",
    "up": "int4 g=32",
    "down": "None",
}


def test_extra_config_gives_linears_other_bits_groups_and_zero_points(tmp_path):
    expected = foreign_files.write_autoround_mixed(tmp_path / "model", MIXED)
    checkpoint = open_checkpoint(tmp_path / "model")
    weights = load_weights(checkpoint)
    linears = block_linears(weights.blocks[0])
    assert {part: str(linear.scheme) for part, linear in linears.items()} == MIXED_SCHEMES
    for part, linear in linears.items():
        quantized = isinstance(linear.weight, QuantizedWeight)
        found = dequantize(linear.weight) if quantized else float_weight(linear)
        wanted = expected[f"model.layers.0.{PARTS[part]}"]
        assert np.abs(found - wanted).max() <= np.abs(wanted).max() * 2.0**-22, part
        assert part == "o" or np.array_equal(found, wanted), part  # its offset is rounded
    logits = forward(checkpoint.config, weights, TOKENS)
    assert np.abs(Engine(checkpoint).forward(TOKENS) - logits).max() < 1e-5 * np.ptp(logits)


LIES = [
    ({"bits": 8}, "bits: bad value; expected 4, as model.layers.0.mlp.gate_proj has, found 8"),
    ({"group_size": 64}, "group_size: bad value; expected 32, as model.layers.0.mlp.gate_proj"),
]


@pytest.mark.parametrize(("lie", "message"), LIES, ids=["bits", "group_size"])
def test_an_extra_config_that_lies_about_a_linear_is_refused(tmp_path, lie, message):
    foreign_files.write_autoround_mixed(tmp_path / "model", MIXED)
    change_extra_config(tmp_path / "model", lie)
    with pytest.raises(ConfigError, match=message):
        open_checkpoint(tmp_path / "model")


def test_zero_points_are_refused_where_extra_config_says_sym(tmp_path):
    given = {"mlp.gate_proj": {"sym": False}, "mlp.up_proj": {"sym": False}}
    foreign_files.write_autoround_mixed(tmp_path / "model", given)
    change_extra_config(tmp_path / "model", {"sym": True})
    with pytest.raises(CheckpointError, match=r"gate_proj.qzeros: bad value; .* as sym says"):
        open_checkpoint(tmp_path / "model")


def change_extra_config(path, values):
    """Say something else of gate_proj."""
    file = path / "config.json"
    config = json.loads(file.read_text())
    extra = config["quantization_config"]["extra_config"]
    extra["model.layers.0.mlp.gate_proj"] = values
    file.write_text(json.dumps(config))


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
