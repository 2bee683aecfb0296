"""The linears that are timed with and without an order, and the shape of the times."""

import jax
import numpy as np

from planish.compare.bench import orders


def test_linears_differ_in_their_order_only():
    plain, ordered = (orders.draw_linears(16, 128, False, flag) for flag in (False, True))
    assert len(plain) == len(ordered) == orders.LINEARS
    for first, second in zip(plain, ordered, strict=True):
        assert first.weight.permutation is None
        assert sorted(second.weight.permutation.tolist()) == list(range(128))
        np.testing.assert_array_equal(first.weight.codes, second.weight.codes)
    assert len({layer.weight.permutation.tobytes() for layer in map(jax.device_get, ordered)}) > 1


def test_the_kernels_get_tiles():
    assert {layer.weight.layout for layer in orders.draw_linears(16, 128, True, True)} == {"tiles"}


def test_times_are_of_rounds_and_forms(monkeypatch):
    monkeypatch.setattr(orders, "SECONDS", 0)
    times = orders.measure(16, 128, 1, False, (False, True))
    assert times.shape == (orders.ROUNDS, 2) and (times > 0).all()
