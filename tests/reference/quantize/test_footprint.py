"""The memory of a method's own work: literal sizes."""

from __future__ import annotations

import numpy as np
import pytest

from planish.reference.quantize.footprint import (
    awq_bytes,
    gptq_bytes,
    sizes_of,
    state_bytes,
    training_bytes,
    work_bytes,
)
from planish.reference.quantize.recipe import recipe

SIZES = {"q": (8, 4), "o": (4, 8), "up": (16, 4), "gate": (16, 4), "down": (4, 16)}
BLOCK = 4 * (32 + 32 + 64 + 64 + 64)
GPTQ = recipe("W4A16", method="gptq")


def test_gptq_has_the_hessians_of_a_stage_and_inverts_one_in_float64():
    down = 3 * 4 * 16**2 + 5 * 8 * 16**2 + 4 * 4 * 64
    assert gptq_bytes(SIZES, GPTQ) == down
    together = recipe("W4A16", method="gptq", true_sequential=False)
    assert gptq_bytes(SIZES, together) == down + 3 * 4 * (4**2 + 8**2 + 4**2)


def test_all_experts_of_a_stage_have_a_hessian():
    experts = {f"experts.{i}.{part}": SIZES[part] for i in range(3) for part in ("up", "down")}
    assert gptq_bytes(experts, GPTQ) == 3 * 3 * 4 * 16**2 + 5 * 8 * 16**2 + 4 * 4 * 64


def test_searches_and_training_have_several_blocks():
    assert awq_bytes(SIZES, GPTQ) == 6 * BLOCK + 3 * 4 * 16**2
    assert training_bytes(SIZES, GPTQ) == 6 * BLOCK + 4 * 4 * 1024 * (12 + 12 + 20 + 20 + 20)


def test_of_a_chain_the_largest_counts_and_rounding_needs_nothing(loaded):
    checkpoint, _ = loaded["llama"]
    sizes = sizes_of(checkpoint, GPTQ, 0)
    assert sizes["down"] == (32, 40) and len(sizes) == 7
    gptq, awq = gptq_bytes(sizes, GPTQ), awq_bytes(sizes, GPTQ)
    assert work_bytes(checkpoint, GPTQ) == gptq
    assert work_bytes(checkpoint, recipe("W4A16", method="awq+gptq")) == max(gptq, awq)
    assert work_bytes(checkpoint, recipe("W4A16")) == 0
    ignored = recipe("W4A16", method="gptq", ignore=("*",))
    assert work_bytes(checkpoint, ignored) == 0


@pytest.mark.parametrize(
    ("method", "budget", "expected"),
    [
        ("rtn", None, 2 * 9 * 32 * 4),
        ("gptq", None, 3 * 9 * 32 * 4),
        ("awq+gptq", None, 5 * 9 * 32 * 4),
        ("gptq", 1000, 1000),
    ],
)
def test_states_are_those_of_the_models_that_a_method_reads(loaded, method, budget, expected):
    checkpoint, _ = loaded["llama"]
    chosen, samples = recipe("W4A16", method=method), [np.arange(4), np.arange(5)]
    assert state_bytes(checkpoint, chosen, samples, budget) == expected
    assert state_bytes(checkpoint, chosen, None, budget) == 0
