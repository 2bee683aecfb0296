"""GPTQ beside IST-DASLab/gptq, its authors' program: the same codes from the same inputs.

`absmax` puts a group's lowest weight at -7.5, a tie, so where scales come from updated weights the
last bit of an update chooses code 0 or 1 and the columns after it follow: 0.6 % of the codes. In
every other setting all codes are equal.
"""

import json

import numpy as np
import pytest

from planish.reference.packing import unpack_nibbles
from planish.reference.quantize.methods.gptq import (
    COLUMNS,
    ColumnGrids,
    factor_hessian,
    gptq_codes,
)
from planish.reference.quantize.recipe import recipe
from planish.reference.quantized import from_codes
from planish.reference.scheme import int4
from tests import originals

LAYERS = {name: originals.stored(f"gptq-{name}") for name in ("many_tokens", "few_tokens")}
SETTINGS = json.loads(str(LAYERS["many_tokens"]["settings"]))
DAMPING = SETTINGS.pop("percdamp")
TIED = 0.992  # of the codes, where ties decide


def solved(golden, given, damping=DAMPING):
    """planish's weight [N, K] of a golden's linear under one of the program's settings."""
    layer, group = originals.layer_of(golden), given["groupsize"]
    hessian = layer.x.T @ layer.x * np.float32(2 / len(layer.x))
    factor = factor_hessian(hessian, damping, given.get("actorder", False))
    scheme = int4(group, symmetric=given["sym"], scale_dtype="float32")
    codes, scale, zero = gptq_codes(layer.w, factor, scheme, "absmax")
    return from_codes(codes, scale, zero, scheme)


@pytest.mark.matrix(2)
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("setting", [name for name in SETTINGS if not name.endswith("stale")])
def test_codes_scales_and_error_are_the_programs(layer, setting):
    golden, given = LAYERS[layer], SETTINGS[setting]
    weight = solved(golden, given)
    expected, error = originals.codes_of(golden, setting), golden[f"{setting}/error"]
    share = originals.same_share(weight, expected)
    moved = np.abs(weight.scale / golden[f"{setting}/scale"] - 1) > 1e-5
    if setting == "sym_g32":
        assert share > TIED and moved.mean() < 0.03
        assert originals.layer_of(golden).error(weight) < 1.05 * error
    else:
        assert share == 1 and not moved.any()
        assert originals.layer_of(golden).error(weight) == pytest.approx(error, rel=1e-4)
    if weight.zero_point is not None:
        np.testing.assert_array_equal(weight.zero_point, golden[f"{setting}/zero"])


@pytest.mark.parametrize("setting", ["sym_g32", "asym_g32"])
def test_scales_come_from_the_updated_weights_and_not_from_those_of_the_block(setting):
    """The program's default, blocks of 128 columns: other codes, an error within 8 %."""
    for golden in LAYERS.values():
        weight, stale = solved(golden, SETTINGS[setting]), f"{setting}_stale"
        assert originals.same_share(weight, originals.codes_of(golden, stale)) < 0.9
        ratio = originals.layer_of(golden).error(weight) / golden[f"{stale}/error"]
        assert 0.9 < ratio < 1.08


def test_another_damping_gives_other_codes():
    """So equal codes above say something about the Hessian."""
    golden = LAYERS["few_tokens"]
    weight = solved(golden, SETTINGS["asym_g128"], damping=10 * DAMPING)
    assert originals.same_share(weight, originals.codes_of(golden, "asym_g128")) < 0.97


def test_the_stored_codes_explain_the_stored_error():
    golden = LAYERS["many_tokens"]
    layer, packed = originals.layer_of(golden), golden["asym_g32/codes"]
    codes = unpack_nibbles(packed, layer.w.shape[1])
    scheme = int4(32, symmetric=False, scale_dtype="float32")
    weight = from_codes(codes, golden["asym_g32/scale"], golden["asym_g32/zero"], scheme)
    assert layer.error(weight) == pytest.approx(float(golden["asym_g32/error"]), rel=1e-6)


@pytest.fixture
def stale_scales(monkeypatch):
    """Groups that take their scales from the weights at the start of their block of columns."""
    seen = {}

    def at(self, i, w):
        if i % COLUMNS == 0:
            seen["block"] = w.copy()
        if i % self.moving == 0:
            self.add_group(seen["block"][:, i : i + self.moving])
        return self.scale[-1], self.zero[-1]

    monkeypatch.setattr(ColumnGrids, "at", at)


@pytest.mark.matrix(2)
@pytest.mark.usefixtures("stale_scales")
@pytest.mark.parametrize(("name", "rule"), [("sym", "absmax"), ("asym", "minmax")])
def test_a_whole_model_is_gptqmodels_but_for_its_stale_scales(name, rule, tmp_path):
    """Stages, blocks fed by quantized blocks, Hessians, damping: with its scales, all its codes."""
    golden = originals.stored(f"gptqmodel-{name}")
    given = {"rule": rule, "group_size": 32, "scale_dtype": "float32", "act_order": False}
    found = originals.quantized(tmp_path / "q", golden, recipe("W4A16", method="gptq", **given))
    assert min(originals.same_shares(found, golden).values()) > 0.999
    errors = originals.errors_of(found, golden)
    np.testing.assert_allclose(errors.block, golden["block_error"], rtol=2e-3)
    assert errors.kl == pytest.approx(float(golden["kl"]), rel=5e-3)
