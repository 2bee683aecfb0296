"""A scheme for each linear: q, k and v, or an MLP's and experts' gate and up, of different ones.

The kernels compute linears that read one norm in one call where their schemes let them, and
otherwise one by one; a mixture's tiles of rows must suit the strictest of its schemes. XLA's form
compiles for longest and calls every linear by itself, so there levels 1 and 2 show everything.
"""

from __future__ import annotations

import pytest

from planish.reference.files.load import load_weights
from planish.reference.linear import Linear
from planish.reference.model.weights import block_linears
from planish.reference.quantize.spelling import SCHEMES
from planish.reference.scheme import int4

EXPECTED = {
    "q": SCHEMES["W8A8"],
    "k": int4(32),
    "v": SCHEMES["O3"],
    "o": None,
    "gate": SCHEMES["O2"],
    "up": int4(64, symmetric=False, activation="per_group"),
    "down": SCHEMES["W8A16"],
}


@pytest.mark.whole(3)
@pytest.mark.parametrize("family", ["llama", "qwen3_moe-some-layers"])
def test_a_block_of_seven_schemes_agrees_in_both_engines(judge, family, native):
    result = judge(family, "W4A16-mixed", (1, 2, 3) if native else (1, 2), native)
    assert result.agree, result.table()


@pytest.mark.parametrize("family", ["llama", "qwen3_moe-some-layers"])
def test_each_linear_has_the_scheme_of_its_pattern(subjects, golden, family):
    checkpoint = (subjects if family == "llama" else golden)(family, "W4A16-mixed")
    weights = load_weights(checkpoint)
    assert weights.head.scheme == int4(32, activation="per_group")
    for block in weights.blocks:
        linears: dict[str, Linear] = block_linears(block)
        linears.pop("router", None)
        assert all(x.scheme == EXPECTED[part.split(".")[-1]] for part, x in linears.items())
