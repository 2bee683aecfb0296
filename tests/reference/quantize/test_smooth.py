"""SmoothQuant: the formula, and that folding leaves the float model as it was."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planish.reference.errors import QuantizationError, RecipeError
from planish.reference.linear import Linear, linear
from planish.reference.model.folds import output_folds
from planish.reference.model.layers import Norm
from planish.reference.model.transformer import forward
from planish.reference.model.weights import block_linears, replace_modules
from planish.reference.quantize.fold import scale_inputs, scale_norm, scale_outputs
from planish.reference.quantize.observe import calibrate
from planish.reference.quantize.recipe import recipe
from planish.reference.quantize.smooth import (
    apply_smoothing,
    require_folds,
    require_smoothed,
    smooth_block,
    smooth_folds,
    smoothing_scale,
)

F32 = np.float32


def array(*values):
    return np.array(values, F32)


def test_scale_is_xmax_to_alpha_over_wmax_to_the_rest():
    two = [array([4, -1], [2, 0.25]), array([-16, 0.5])]
    found = smoothing_scale(array(64, 9), two, 0.5)
    assert found.tolist() == [2, 3]  # sqrt(64 / 16), sqrt(9 / 1)
    assert smoothing_scale(array(64, 9), two[:1], 1.0).tolist() == [64, 9]
    assert smoothing_scale(array(64, 9), two[:1], 0.0).tolist() == [0.25, 1]
    assert found.dtype == F32


def test_a_dead_channel_keeps_its_scale():
    assert smoothing_scale(array(0, 4), [array([5, 1])], 0.5).tolist() == [1, 2]
    assert smoothing_scale(array(0, 4), [array([5, 1])], 0.0)[0] == 1


def test_scale_and_weights_have_a_floor_of_1e_5():
    assert smoothing_scale(array(1e-20), [np.ones((1, 1), F32)], 0.5)[0] == F32(1e-5)
    assert smoothing_scale(array(1), [np.zeros((1, 1), F32)], 0.0)[0] == pytest.approx(
        1e5, rel=1e-6
    )


@given(st.integers(0, 10**6), st.floats(0, 1))
def test_smoothing_leaves_the_product_as_it_was(seed, alpha):
    rng = np.random.default_rng(seed)
    x, w = rng.standard_normal((5, 12)).astype(F32), rng.standard_normal((3, 12)).astype(F32)
    x[:, 4] *= 50
    s = smoothing_scale(np.abs(x).max(axis=0), [w], alpha)
    y = linear(x, Linear(w))
    assert np.abs(linear(x / s, scale_inputs(Linear(w), s)) - y).max() <= 1e-5 * np.abs(y).max()


def test_powers_of_two_leave_it_exactly():
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((5, 12)).astype(F32), rng.standard_normal((3, 12)).astype(F32)
    s = (2.0 ** rng.integers(-4, 5, 12)).astype(F32)
    assert np.array_equal((x / s) @ scale_inputs(Linear(w), s).weight.T, x @ w.T)


def test_a_norm_without_weight_gets_one():
    kind = {"kind": "layer_norm", "eps": 1e-5}
    found = scale_norm(Norm(weight=None, **kind), array(2, 4))
    assert found.weight.tolist() == [0.5, 0.25] and found.bias is None
    found = scale_norm(Norm(weight=array(2, 2), bias=array(8, 8), **kind), array(2, 4))
    assert (found.kind, found.eps) == ("layer_norm", 1e-5)
    assert (found.weight.tolist(), found.bias.tolist()) == ([1, 0.5], [4, 2])


def test_outputs_are_scaled_with_their_bias():
    found = scale_outputs(Linear(array([2, 4], [8, 8]), array(2, 8)), array(2, 4))
    assert (found.weight.tolist(), found.bias.tolist()) == ([[1, 2], [2, 2]], [1, 2])


def smooth_model(checkpoint, weights, samples, chosen, alpha):
    config = checkpoint.config
    observed = calibrate(config, weights, samples)
    pairs = zip(weights.blocks, observed, strict=True)
    blocks = [apply_smoothing(config, b, o, chosen, alpha) for b, o in pairs]
    return replace(weights, blocks=blocks), observed


@pytest.mark.matrix(2)
@pytest.mark.parametrize("name", ["llama", "llama-tied", "opt", "opt-gelu"])
@pytest.mark.parametrize("alpha", [0.5, 0.85])
@pytest.mark.parametrize("outputs", [False, True])
def test_folding_leaves_float_logits_unchanged(loaded, samples, name, alpha, outputs):
    checkpoint, weights = loaded[name]
    chosen = recipe("W8A8", smooth_outputs=outputs)
    smooth, _ = smooth_model(checkpoint, weights, samples, chosen, alpha)
    tokens = samples[0]
    expected = forward(checkpoint.config, weights, tokens)
    found = forward(checkpoint.config, smooth, tokens)
    assert np.abs(found - expected).max() < 1e-5 * np.ptp(expected)
    changed = {"o", "down"} if outputs and name != "opt-gelu" else {"o"} if outputs else set()
    for part in ("o", "down"):
        before, after = (block_linears(w.blocks[0])[part].weight for w in (weights, smooth))
        assert np.array_equal(before, after) == (part not in changed)


@pytest.mark.parametrize("name", ["llama", "opt"])
def test_smoothing_at_one_half_evens_activations_and_weights_out(loaded, samples, name):
    checkpoint, weights = loaded[name]
    smooth, before = smooth_model(checkpoint, weights, samples, recipe("W8A8"), 0.5)
    after = calibrate(checkpoint.config, smooth, samples)
    for part, readers in (("q", "qkv"), ("up", ["gate", "up"] if name == "llama" else ["up"])):
        linears = block_linears(smooth.blocks[0])
        wmax = np.max([np.abs(linears[r].weight).max(axis=0) for r in readers], axis=0)
        assert np.allclose(after[0][part], wmax, rtol=1e-4)  # sqrt(xmax wmax), both
        assert not np.allclose(before[0][part], wmax, rtol=0.1)


def test_all_readers_of_a_norm_share_one_scale(loaded, samples):
    checkpoint, weights = loaded["llama"]
    block, config = weights.blocks[0], checkpoint.config
    observed = calibrate(config, weights, samples)[0]
    smooth = smooth_block(config, block, observed, 0.5)
    ratios = [getattr(smooth, p).weight / getattr(block, p).weight for p in "qkv"]
    s = block.attention_norm.weight / smooth.attention_norm.weight
    assert all(np.allclose(r, s[None], rtol=1e-5) for r in ratios)
    assert smooth.o is block.o and smooth.mlp.down is block.mlp.down


def test_query_heads_of_a_group_share_the_scale_of_their_value_channel(loaded, samples):
    checkpoint, weights = loaded["llama"]
    block, config = weights.blocks[0], checkpoint.config
    observed = calibrate(config, weights, samples)[0]
    smooth = smooth_folds(block, output_folds(config), observed, 0.5)
    per_head = (smooth.o.weight / block.o.weight)[0].reshape(2, 2, 8)  # kv head, group, channel
    assert np.allclose(per_head[:, 0], per_head[:, 1], rtol=1e-5)
    xmax = observed["o"].reshape(2, 2, 8).max(axis=1).reshape(-1)
    wmax = np.abs(block.o.weight).max(axis=0).reshape(2, 2, 8).max(axis=1).reshape(-1)
    assert np.allclose(per_head[:, 0].reshape(-1), np.sqrt(xmax / wmax), rtol=1e-5)
    of_values = (block.v.weight / smooth.v.weight)[:, 0]
    assert np.allclose(per_head[:, 0].reshape(-1), of_values, rtol=1e-5)


def test_a_post_norm_model_cannot_be_smoothed(loaded):
    checkpoint, _ = loaded["opt-350m-form"]
    with pytest.raises(RecipeError, match="cannot smooth.*residual.*naive"):
        require_folds(checkpoint.config)
    require_folds(loaded["opt"][0].config)


def test_a_weight_that_smoothing_makes_overflow_is_named(loaded):
    _, weights = loaded["llama"]
    before, names = weights.blocks[0], {"q": "self_attn.q_proj"}
    with np.errstate(over="ignore"):
        parts = {"q": scale_inputs(before.q, np.full(32, 3e38, F32) * F32(1e3))}
    with pytest.raises(
        QuantizationError, match=r"^self_attn\.q_proj: overflows float32 when it is"
    ):
        require_smoothed(before, replace_modules(before, parts), names)
    require_smoothed(before, before, names)
