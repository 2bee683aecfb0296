"""Rotary positions by literal small numbers."""

import math

import numpy as np
import pytest

from planish.reference.model.rope import Rope, rotate, rotations

F32 = np.float32


def test_rotations_are_position_times_frequency():
    rope = Rope(theta=100.0, dim=4)  # frequencies 1 and 1/10
    cos, sin = rotations(rope, np.arange(3), 3)
    assert cos == pytest.approx(np.cos([[0, 0], [1, 0.1], [2, 0.2]]), rel=1e-6)
    assert sin == pytest.approx(np.sin([[0, 0], [1, 0.1], [2, 0.2]]), rel=1e-6)


@pytest.mark.parametrize(
    ("interleaved", "x", "expected"),
    [
        (False, [1, 0, 0, 1], [math.cos(2), -math.sin(0.2), math.sin(2), math.cos(0.2)]),
        (True, [1, 0, 0, 1], [math.cos(2), math.sin(2), -math.sin(0.2), math.cos(0.2)]),
    ],
)
def test_pairs_are_half_a_head_or_one_channel_distant(interleaved, x, expected):
    rope = Rope(theta=100.0, dim=4, interleaved=interleaved)
    cos, sin = rotations(rope, np.array([2]), 3)
    rotated = rotate(np.array([*x, 7], F32).reshape(1, 1, 5), cos, sin, rope).reshape(-1)
    assert rotated == pytest.approx([*expected, 7])  # what is beyond dim is not rotated


def test_rope_keeps_lengths_and_depends_only_on_distance():
    rope = Rope(theta=10000.0, dim=8)
    q, k = np.random.default_rng(0).standard_normal((2, 1, 1, 8)).astype(F32)

    def rotated(x, position):
        return rotate(x, *rotations(rope, np.array([position]), 40), rope)

    def product(i, j):
        return float(np.sum(rotated(q, i) * rotated(k, j)))

    assert product(5, 2) == pytest.approx(product(33, 30), abs=1e-5)
    assert abs(product(5, 2) - product(5, 3)) > 1e-3
