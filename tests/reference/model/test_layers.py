"""Norms, activations, rotary positions, softmax and attention by literal small numbers."""

import math

import numpy as np
import pytest

from planish.reference.model.layers import (
    ACTIVATIONS,
    Norm,
    attention,
    causal_mask,
    layer_norm,
    rms_norm,
    softmax,
)

F32 = np.float32


def rms(weight, eps=0.0):
    return Norm(weight=weight, kind="rms_norm", eps=eps)


def test_rms_norm_divides_by_the_root_mean_square():
    x = np.array([[3, 4]], F32)  # mean square 12.5
    assert rms_norm(x, rms(np.array([1, 2], F32))) == pytest.approx(
        np.array([[3, 8]]) / math.sqrt(12.5), rel=1e-6
    )
    assert rms_norm(x, rms(None, eps=12.5))[0] == pytest.approx([0.6, 0.8], rel=1e-6)


def test_layer_norm_centres_scales_and_shifts():
    x = np.array([[1, 3]], F32)  # mean 2, variance 1
    weight, bias = np.array([2, 2], F32), np.array([10, 20], F32)
    norm = Norm(weight=weight, bias=bias, kind="layer_norm", eps=0.0)
    assert layer_norm(x, norm).tolist() == [[8, 22]]
    assert layer_norm(x, Norm(weight=None, kind="layer_norm", eps=3.0)).tolist() == [[-0.5, 0.5]]


@pytest.mark.parametrize(
    ("name", "at_1", "at_minus_2"),
    [
        ("relu", 1, 0),
        ("silu", 0.7310586, -0.2384058),
        ("gelu", 0.8413447, -0.0455003),
        ("gelu_tanh", 0.8411920, -0.0454023),
    ],
)
def test_activation_by_literal_numbers(name, at_1, at_minus_2):
    found = ACTIVATIONS[name](np.array([1, -2, 0], F32))
    assert found == pytest.approx([at_1, at_minus_2, 0], abs=1e-6) and found.dtype == F32


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_do_not_overflow(name):
    with np.errstate(under="ignore"):
        assert ACTIVATIONS[name](np.array([1e4, -1e4], F32)) == pytest.approx([1e4, 0])


def test_softmax_subtracts_the_maximum():
    found = softmax(np.array([[1000, 1000 + math.log(3)], [0, -np.inf]], F32))
    assert found == pytest.approx(np.array([[0.25, 0.75], [1, 0]]), abs=1e-4)


def test_a_token_attends_to_itself_and_to_those_before():
    assert causal_mask(np.array([1, 2]), 4).tolist() == [[1, 1, 0, 0], [1, 1, 1, 0]]


def test_attention_mixes_values_by_scaled_scores():
    q = np.array([[[2.0, 0]]], F32)  # one token, one head of width 2... scores [2, 0] / sqrt 2
    k, v = np.array([[[1, 0]], [[0, 1]]], F32), np.array([[[1, 10]], [[3, 30]]], F32)
    root = math.sqrt(2)
    p = math.exp(root) / (math.exp(root) + 1)
    expected = [p + 3 * (1 - p), 10 * p + 30 * (1 - p)]
    assert attention(q, k, v, np.ones((1, 2), bool), root)[0] == pytest.approx(expected, rel=1e-6)
    assert attention(q, k, v, np.array([[True, False]]), root)[0].tolist() == [1, 10]


def test_query_heads_share_key_value_heads_in_order():
    q = np.zeros((1, 4, 2), F32)
    v = np.array([[[1, 1], [2, 2]]], F32)  # one slot: the output is the value of the head's group
    out = attention(q, np.zeros((1, 2, 2), F32), v, np.ones((1, 1), bool), 1.0)
    assert out.tolist() == [[1, 1, 1, 1, 2, 2, 2, 2]]
