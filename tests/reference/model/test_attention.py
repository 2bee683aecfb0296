"""INT8 attention by literal small numbers, and against float attention."""

import math

import numpy as np
import pytest

from planish.reference.errors import QuantizationError
from planish.reference.model.attention import (
    AttentionScales,
    HeadCodes,
    append_heads,
    dequantize_heads,
    int8_attention,
    quantize_heads,
    scale_weights,
)
from planish.reference.model.config import Alibi
from planish.reference.model.layers import attention, causal_mask

F32 = np.float32


def head(*rows):
    """Rows of one head, [S, 1, Hd]."""
    return np.array(rows, F32)[:, None]


def one(value):
    return np.array([value], F32)


def draw(tokens=5, slots=40, heads=6, kv_heads=2, width=24):
    rng = np.random.default_rng(3)
    shapes = (tokens, heads, width), (slots, kv_heads, width), (slots, kv_heads, width)
    return [rng.standard_normal(shape).astype(F32) for shape in shapes]


def mask_of(q, k, window=None):
    return causal_mask(np.arange(len(k) - len(q), len(k)), len(k), window)


def static_scales(q, k, v):
    q, k, v = (one(np.abs(x).max() / F32(127)) for x in (q, k, v))
    return AttentionScales(q=q, k=k, v=v)


def run(q, k, v, scales=None, mask=None, **rest):
    """Both products on codes of floats q, k and v."""
    each = (None,) * 3 if scales is None else (scales.q, scales.k, scales.v)
    codes = (quantize_heads(x, scale) for x, scale in zip((q, k, v), each, strict=True))
    mask = mask_of(q, k) if mask is None else mask
    return int8_attention(*codes, mask, math.sqrt(q.shape[-1]), **rest)


def test_heads_have_a_scale_for_each_token_and_head():
    x = np.array([[[127, -63.5], [0, 0]], [[2.54, 1.28], [-254, 1]]], F32)  # [S 2, K 2, Hd 2]
    found = quantize_heads(x)
    assert found.codes.tolist() == [[[127, -64], [0, 0]], [[127, 64], [-127, 0]]]  # half to even
    expected = np.maximum([[127, 1e-5], [2.54, 254]], 1e-5) / 127
    assert found.scale[..., 0] == pytest.approx(expected, rel=1e-6)


def test_a_static_scale_clips_what_it_does_not_reach():
    found = quantize_heads(head([3, -1, 0.4], [1, 1, 1]), one(1 / 127))
    assert found.codes.tolist() == [[[127, -127, 51]], [[127, 127, 127]]]
    assert found.static and found.scale.shape == (1, 1, 1)


def test_a_static_scale_does_not_hide_nan():
    with pytest.raises(QuantizationError, match="finite"):
        quantize_heads(head([1, np.nan]), one(0.1))


def test_weights_carry_the_scales_of_their_values():
    e = np.array([[[[1, 0.5, 0.25]]]], F32)  # [K, H/K, T, S]
    v = HeadCodes(np.zeros((3, 1, 1), np.int8), head([0.01], [0.04], [0.02]))
    w, p_scale = scale_weights(e, v)
    assert w == pytest.approx(np.array([[[[0.01, 0.02, 0.005]]]]), rel=1e-6)
    assert p_scale.item() == pytest.approx(0.02 / 127, rel=1e-6)


def one_query(scores, v):
    """Attention of one query whose scores with the keys, in codes, are these: [S]."""
    k = HeadCodes(np.array(scores, np.int8)[:, None, None], np.ones((1, 1, 1), F32), static=True)
    q = HeadCodes(np.ones((1, 1, 1), np.int8), np.ones((1, 1, 1), F32), static=True)
    return int8_attention(q, k, v, np.ones((1, len(scores)), bool), 1.0).item()


def test_the_context_is_a_sum_of_integers():
    """Scores 0, -1, -2: e = 1, .3679, .1353 and total 1.5032."""
    codes = np.array([[[10]], [[20]], [[-127]]], np.int8)
    dynamic = HeadCodes(codes, head([0.01], [0.04], [0.02]))
    # w = .01, .01472, .00271, of which the largest is 127: p8 = rint 86.3, 127, rint 23.4
    expected = (86 * 10 + 127 * 20 - 23 * 127) * 0.0147152 / 127 / 1.5032147
    assert one_query([0, -1, -2], dynamic) == pytest.approx(expected, rel=1e-5)
    static = HeadCodes(codes, head([0.01]), static=True)
    expected = (127 * 10 + 47 * 20 - 17 * 127) / 127 * 0.01 / 1.5032147  # rint 46.7, 17.2
    assert one_query([0, -1, -2], static) == pytest.approx(expected, rel=1e-5)


def test_equal_scores_do_not_vanish():
    """SmoothQuant's kernels round 127 / 300 to 0; before the division every weight is 127."""
    q, k, v = np.zeros((1, 1, 4), F32), np.zeros((300, 1, 4), F32), np.ones((300, 1, 4), F32)
    for scales in (None, AttentionScales(q=one(1), k=one(1), v=one(1 / 127))):
        assert run(q, k, v, scales)[0] == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize(
    "rest",
    [
        {},
        {"cap": 3.0},
        {"alibi": Alibi(slopes=(0.5, 0.25, 0.125, 0.06, 0.03, 0.015))},
        {"alibi": Alibi(slopes=(0.5,) * 6, divided=True, bfloat16=True)},
    ],
)
@pytest.mark.parametrize("window", [None, 7])
def test_close_to_attention_over_the_dequantized_heads(static, rest, window):
    q, k, v = draw()
    scales, mask = static_scales(q, k, v) if static else None, mask_of(q, k, window)
    each = (scales.q, scales.k, scales.v) if static else (None,) * 3
    floats = [dequantize_heads(quantize_heads(x, s)) for x, s in zip((q, k, v), each, strict=True)]
    expected = attention(*floats, mask, math.sqrt(24), **rest)
    found = run(q, k, v, scales, mask, **rest)
    # what is left is the rounding of the weights: 40 errors of at most 1/254 of the largest weight
    assert 1e-4 < np.abs(found - expected).max() < 0.03


@pytest.mark.parametrize("static", [False, True])
def test_codes_do_not_depend_on_other_tokens(static):
    """The last of five tokens, alone or with the four before it."""
    q, k, v = draw()
    scales = static_scales(q, k, v) if static else None
    assert np.array_equal(run(q, k, v, scales)[-1:], run(q[-1:], k, v, scales))


def test_what_a_token_may_not_read_changes_nothing():
    q, k, v = draw()
    mask = mask_of(q, k, 7)
    unread = ~mask.any(axis=0)
    assert unread.sum() == 40 - 11
    k[unread], v[unread] = 1e4, -1e4
    assert np.array_equal(run(q, k, v, mask=mask), run(*draw(), mask=mask))


def test_a_past_and_new_heads_are_of_one_form():
    x = draw()[1]
    first, second = quantize_heads(x[:3]), quantize_heads(x[3:])
    both = append_heads(first, second)
    assert np.array_equal(dequantize_heads(both), dequantize_heads(quantize_heads(x)))
    assert append_heads(np.zeros((0, 2, 24), F32), first) is first
    with pytest.raises(TypeError, match="both be codes"):
        append_heads(x, first)
