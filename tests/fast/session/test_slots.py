"""Rows and slots: how many, filled one by one, thinned out."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from planish.fast.model.cache import KVCache
from planish.fast.session.slots import insert, rows_to_keep, slot_count, take_rows
from planish.fast.xla.cache import Slots


def test_insert_fills_one_row_and_leaves_the_others():
    empty = Slots(keys=jnp.zeros((3, 1, 2, 1)), values=jnp.zeros((3, 1, 2, 1)))
    single = Slots(keys=jnp.ones((1, 1, 2, 1)), values=jnp.full((1, 1, 2, 1), 2.0))
    filled = jax.jit(insert)(KVCache((empty,)), KVCache((single,)), jnp.int32(1))
    np.testing.assert_array_equal(np.asarray(filled.layers[0].keys)[:, 0, 0, 0], [0, 1, 0])
    np.testing.assert_array_equal(np.asarray(filled.layers[0].values)[:, 0, 0, 0], [0, 2, 0])


def test_taken_rows_are_the_rows():
    keys = jnp.arange(4, dtype=jnp.float32).reshape(4, 1, 1, 1)
    found = take_rows(Slots(keys=keys, values=-keys), jnp.array([1, 3], jnp.int32))
    assert np.asarray(found.keys).ravel().tolist() == [1, 3]
    assert np.asarray(found.values).ravel().tolist() == [-1, -3]
    assert found.key_scale is None


def test_slots_are_a_power_of_two_up_to_512_then_a_multiple():
    assert [slot_count(n) for n in (1, 16, 17, 500, 512, 513, 1025)] == [
        *(16, 16, 32, 512, 512, 1024, 1536)
    ]


@pytest.mark.parametrize(
    ("ended", "remaining", "kept"),
    [
        ("....", 1000, None),
        (".x..", 1000, None),  # three rows need four
        (".xx.", 1000, [0, 3]),
        (".xx.", 31, None),  # too few tokens to come
        ("xx.xx", 1000, [2]),
        ("..xxx", 1000, [0, 1]),
        ("xx..x.xx", 1000, [0, 2, 3, 5]),  # an ended row fills the power of two up
        ("xxxx", 1000, None),  # nothing is left to compute
        ("x.", 32, [1]),
        (".", 1000, None),
    ],
)
def test_a_batch_is_thinned_out_when_half_of_its_rows_have_ended(ended, remaining, kept):
    assert rows_to_keep([row == "x" for row in ended], remaining) == kept
