"""Greedy sampling by XLA.

With a temperature, float64 exponentials and sums decide (docs/spec.md, section 7). XLA's
exponential differs from NumPy's in the last bit, and its sort of a vocabulary takes longer, so the
host draws then: exactly the reference's tokens, with one dispatch per token.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from planish.reference.text.sampling import Sampling


def can_sample(sampling: Sampling) -> bool:
    """Only greedy sampling of logits as they are is done on the device."""
    return sampling.temperature == 0 and not sampling.adjusts


def sample(
    logits: jax.Array,
    sampling: jax.Array,  # noqa: ARG001  (a backend's signature)
    uniform: jax.Array,  # noqa: ARG001
) -> jax.Array:
    """The likeliest token of each row of logits [B, V] -> int32 [B], the lowest id among equals;
    -1 if the largest logit is not finite. sampling and uniform are not used."""
    best = jnp.argmax(logits, axis=-1)  # the first NaN, where there is one
    largest = jnp.take_along_axis(logits, best[:, None], axis=-1)[:, 0]
    return jnp.where(jnp.isfinite(largest), best.astype(jnp.int32), -1)
