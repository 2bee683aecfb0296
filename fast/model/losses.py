"""What is computed of a token's logits and the token that follows: -log p, and whether it is best.

B sequences, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from planish.reference.text.evaluate import LOGITS

Judge = Callable[[jax.Array, jax.Array], jax.Array]  # logits [B, T, V], targets [B, T] -> [B, T..]


def rows_at_a_time(tokens: int, vocab_size: int) -> int:
    """How many of a sequence's tokens have logits at a time: at most LOGITS logits."""
    chunks = -(-tokens * vocab_size // LOGITS)
    return -(-tokens // chunks)


def target_losses(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """log(sum of exp(logits)) - logit of the target: [B, T, V] and [B, T] -> [B, T]."""
    best = jnp.max(logits, axis=-1, keepdims=True)
    total = jnp.sum(jnp.exp(logits - best), axis=-1)
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)
    return jnp.log(total) + (best - chosen)[..., 0]  # the difference first, as it is nearly exact


def target_scores(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """target_losses, and 1 if the target is the likeliest token, else 0: [B, T, 2]."""
    likeliest = jnp.argmax(logits, axis=-1) == targets
    return jnp.stack([target_losses(logits, targets), likeliest.astype(jnp.float32)], axis=-1)
