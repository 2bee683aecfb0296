"""INT8 attention judged: engines agree, and each plausible mistake is named at level 2."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from planish.compare.conformance.int8_attention import attend_codes, show_codes
from planish.reference.model.attention import HeadCodes, quantize_heads
from planish.reference.model.layers import causal_mask
from tests.compare.mutations import Mutation, attend_codes_as

SUBJECTS = [
    ("llama", "float", "int8"),
    ("llama", "O1", "int8"),
    ("llama", "O3-static", "int8_static"),
    ("opt", "W8A8", "int8"),
    ("opt", "O3-static", "int8_static"),
    ("gemma2-small-caps", "float", "int8"),  # caps, windows, four norms
    ("bloom-hub-spelling-six-heads", "float", "int8"),  # ALiBi
    ("falcon-7b-form", "float", "int8"),  # one key-value head
    ("mpt-clipped-scaled-six-heads", "W8A8", "int8"),
    ("gemma3_text-two-bases", "O3-static", "int8_static"),  # norms of queries and keys, windows
]


@pytest.mark.whole(5)
@pytest.mark.parametrize(("family", "recipe", "cache"), SUBJECTS)
def test_the_engine_agrees(judge, native, family, recipe, cache):
    given = {"native": native, "kv_cache": cache, "attention": "int8"}
    found = judge(family, recipe, [2, 3], **given)
    assert found.agree, found.first_mismatch


@pytest.mark.whole
@pytest.mark.parametrize("cache", ["int8", "int8_static"])
def test_the_judge_agrees_with_the_definition(judge, cache):
    recipe = "O3-static" if cache == "int8_static" else "W8A8"
    given = {"kv_cache": cache, "attention": "int8", "mutation": attend_codes_as()}
    assert judge("llama", recipe, [2], **given).agree


def roll_heads(q: HeadCodes) -> HeadCodes:
    """Each head gets the codes of the next one, and the right scale."""
    return replace(q, codes=np.roll(q.codes, 1, axis=1))


def larger(x: HeadCodes) -> HeadCodes:
    """A scale of absmax / 126."""
    return replace(x, scale=x.scale * np.float32(127 / 126))


def without_cap(config):
    return replace(config, score_cap=None)


MISTAKES: dict[str, tuple[str, str, Mutation]] = {
    "queries by 126": ("llama", "W8A8", attend_codes_as(queries=larger)),
    "keys by 126": ("llama", "W8A8", attend_codes_as(keys=larger)),
    "queries by 126, static": ("llama", "O3-static", attend_codes_as(queries=larger)),
    "heads exchanged": ("llama", "W8A8", attend_codes_as(queries=roll_heads)),
    "cap left out": ("gemma2-small-caps", "float", attend_codes_as(config=without_cap)),
    "weights cut off, not rounded": ("llama", "W8A8", attend_codes_as(rounding=np.trunc)),
    "weights cut off, static": ("llama", "O3-static", attend_codes_as(rounding=np.trunc)),
    "probabilities rounded": ("llama", "W8A8", attend_codes_as(normalized=True)),
    "weights not rounded": ("llama", "W8A8", attend_codes_as(rounding=lambda w: w)),
}


@pytest.mark.matrix(9, 3)
@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_named(judge, name):
    family, recipe, mutation = MISTAKES[name]
    cache = "int8_static" if recipe.endswith("static") else "int8"
    first = judge(family, recipe, [2], kv_cache=cache, attention="int8", mutation=mutation)
    assert first.first_mismatch is not None
    assert (first.first_mismatch.level, first.first_mismatch.part) == (2, "attention")


def test_one_hot_values_show_the_codes_of_the_weights():
    rng = np.random.default_rng(5)
    q, k = (rng.standard_normal((20, heads, 32)).astype(np.float32) for heads in (4, 2))
    v = np.repeat(np.eye(20, 32, dtype=np.float32)[:, None], 2, axis=1)
    keys, values = quantize_heads(k), quantize_heads(v)
    mask = causal_mask(np.arange(20), 20)
    found = attend_codes(q, keys, values, mask, (5.0, None, None))
    shown = show_codes(found.expected.reshape(20, 4, 32), 2, 20)
    assert np.array_equal(shown, found.weights) and shown.max(axis=-1).min() == 127
    assert (found.ties > 0).mean() < 0.05


def test_few_outputs_have_a_wide_tolerance():
    """One code of one weight is found in nine rows of ten; a row near a tie is not judged wrong."""
    rng = np.random.default_rng(6)
    q, k, v = (rng.standard_normal((64, heads, 32)).astype(np.float32) for heads in (4, 2, 2))
    keys, values = quantize_heads(k), quantize_heads(v)
    found = attend_codes(q, keys, values, causal_mask(np.arange(64), 64), (5.7, None, None))
    one_code = np.abs(values.codes.astype(np.float32)).mean() * values.scale.mean() / 127 / 20
    assert (found.allowed < one_code).mean() > 0.5
    assert found.allowed.max() < np.abs(found.expected).max()
