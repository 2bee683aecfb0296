"""Two models' predictions on one text from their last hidden states, jitted.

The logits of a vocabulary of 50,000 are most of a validation's numbers: XLA reduces them to four
figures a token, a few hundred rows at a time. In float32, where the reference has float64: -log p
and KL differ by about 1e-6.

R rows of hidden states, D model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from planish.fast.model.transformer import unembed
from planish.fast.model.weights import place_block
from planish.fast.placement import on_cpu, put
from planish.fast.xla import backend as xla_backend
from planish.reference.model.config import ModelConfig
from planish.reference.model.weights import Weights
from planish.reference.text.evaluate import LOGITS, Comparison

ROWS = 256  # at most


@on_cpu
def compare_heads(
    config: ModelConfig,
    weights: Weights,
    other: Weights,
    states: tuple[np.ndarray, np.ndarray],
    tokens: Sequence[int],
) -> Comparison:
    """As the reference's."""
    heads = tuple(put(place_block(replace(one, blocks=()))) for one in (weights, other))
    count, rows = len(tokens) - 1, min(ROWS, max(1, LOGITS // config.vocab_size))
    targets = np.asarray(tokens[1:], np.int32)
    parts = []
    for start in range(0, count, rows):
        stop = min(start + rows, count)
        index = np.minimum(np.arange(start, start + rows), stop - 1)  # a short end is repeated
        given = (put(np.asarray(states[0])[index]), put(np.asarray(states[1])[index]))
        found = compare_batch(config, *heads, *given, put(targets[index]))
        parts.append([np.asarray(one)[: stop - start] for one in found])
    float_nll, nll, kl, same = (np.concatenate(one) for one in zip(*parts, strict=True))
    wide = {"float_nll": float_nll, "nll": nll, "kl": kl}
    return Comparison(same=same, **{name: value.astype(np.float64) for name, value in wide.items()})


@partial(jax.jit, static_argnames=("config",))
def compare_batch(
    config: ModelConfig,
    weights: Weights,
    other: Weights,
    x: jax.Array,
    y: jax.Array,
    targets: jax.Array,
) -> tuple[jax.Array, ...]:
    """-log p of targets [R] in both models, KL, and whether the likeliest is the same, [R] each."""
    expected = unembed(config, weights, x[None], xla_backend)[0]  # [R, V]
    found = unembed(config, other, y[None], xla_backend)[0]
    p, q = jax.nn.log_softmax(expected), jax.nn.log_softmax(found)
    kl = (jnp.exp(p) * (p - q)).sum(axis=-1)
    same = expected.argmax(axis=-1) == found.argmax(axis=-1)
    return -take(p, targets), -take(q, targets), kl, same


def take(rows: jax.Array, index: Any) -> jax.Array:
    """rows [R, V] at index [R] -> [R]."""
    return jnp.take_along_axis(rows, index[:, None], axis=-1)[:, 0]
