"""The KV cache is written in place."""

import jax.numpy as jnp
import numpy as np

from planish.fast.xla.cache import write


def test_write_puts_each_row_at_its_own_position():
    slots = jnp.zeros((2, 1, 4, 2))
    new = jnp.arange(1, 5, dtype=jnp.float32).reshape(2, 1, 1, 2)
    written = np.asarray(write(slots, new, jnp.array([[3], [0]])))
    np.testing.assert_array_equal(written[0, 0], [[0, 0], [0, 0], [0, 0], [1, 2]])
    np.testing.assert_array_equal(written[1, 0], [[3, 4], [0, 0], [0, 0], [0, 0]])


def test_write_puts_a_chunk_into_consecutive_slots():
    new = jnp.arange(6, dtype=jnp.float32).reshape(1, 3, 1, 2)
    written = write(jnp.zeros((1, 1, 5, 2)), new, jnp.array([[1, 2, 3]]))
    np.testing.assert_array_equal(
        np.asarray(written)[0, 0], [[0, 0], [0, 1], [2, 3], [4, 5], [0, 0]]
    )
