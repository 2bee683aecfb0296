"""Level 2: every part of every block, fed with the reference's inputs.

The parts: the norms; attention up to the input of `o`; the MLP up to the input of `down`; the
whole block. Float parts may be off by 1e-5 of their largest magnitude: exponentials, rotations
and reductions differ by ulps from library to library. Where a part's output is quantized next,
its codes may differ by one, and only where x / scale lies within 1e-4 of a tie; never by two.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

import fast.layers
import fast.model
import fast.weights
import reference.layers
import reference.model
from compare.check import Check, check
from compare.ops import activation_scales, fast_codes, reference_codes
from reference.config import ModelConfig
from reference.layers import Norm, rope_tables
from reference.linear import Linear
from reference.model import Block

FLOAT_TOLERANCE = 1e-5  # of the largest magnitude
BLOCK_TOLERANCE = 0.05  # of it, where codes may flip inside the block
TIE = 1e-4


def inputs_of_block(config: ModelConfig, block: Block, x: np.ndarray) -> dict[str, np.ndarray]:
    """What each linear of a block reads for hidden states x [T, D], and the block's `out`."""
    seen: dict[str, np.ndarray] = {}
    nothing = np.zeros((0, config.num_kv_heads, config.head_dim), np.float32)

    def tap(name: str, value: np.ndarray) -> None:
        seen.setdefault(name, value)

    positions = np.arange(len(x))
    past = (nothing, nothing)
    seen["out"], _ = reference.model.block_forward(config, block, x, positions, past, tap)
    return seen


def check_block(
    config: ModelConfig, layer: int, block: Block, x: np.ndarray, seen: dict[str, np.ndarray]
) -> Iterator[Check]:
    """All parts of one block, each fed with what the reference feeds it."""
    placed = jax.tree.map(jnp.asarray, fast.weights.place_block(block))
    found = {
        "o": attention_part(config, placed, seen["q"]),
        "down": mlp_part(config, placed, seen["up"]),
    }
    yield from check_norms(config, layer, block, x, seen)
    for part, name in (("o", "attention"), ("down", "mlp")):
        yield check(2, layer, name, seen[part], found[part], limit(seen[part]))
        yield from check_flips(layer, name, getattr(block, part), seen[part], found[part])
    whole = whole_block(config, placed, x)
    exact = block.q.activation == "float"
    allowed = limit(seen["out"]) * (4 if exact else BLOCK_TOLERANCE / FLOAT_TOLERANCE)
    yield check(2, layer, "block", seen["out"], whole, allowed)


def limit(x: np.ndarray) -> float:
    return FLOAT_TOLERANCE * float(np.abs(x).max()) + 1e-30


def identity(size: int) -> Linear:
    """A linear that hands its input on, exactly: what stands before it can then be read."""
    return Linear(jnp.eye(size, dtype=jnp.float32))  # type: ignore[arg-type]


def attention_part(config: ModelConfig, block: Block, x: np.ndarray) -> np.ndarray:
    """The engine's input of `o` for x [T, D]: projections, rotary, cache, mask, softmax."""
    tokens, heads = len(x), config.num_heads * config.head_dim
    empty = jnp.zeros((1, config.num_kv_heads, tokens, config.head_dim), jnp.float32)
    attend = jax.jit(fast.model.attend, static_argnums=0)
    block, positions = replace(block, o=identity(heads)), jnp.arange(tokens)[None]
    y, _ = attend(
        config, block, jnp.asarray(x)[None], positions, (empty, empty), tables(config, tokens)
    )
    return np.asarray(y)[0]


def mlp_part(config: ModelConfig, block: Block, x: np.ndarray) -> np.ndarray:
    """The engine's input of `down` for x [T, D]."""
    block = replace(block, down=identity(config.intermediate_size))
    mlp = jax.jit(fast.model.mlp, static_argnums=0)
    return np.asarray(mlp(config, block, jnp.asarray(x)[None]))[0]


def whole_block(config: ModelConfig, block: Block, x: np.ndarray) -> np.ndarray:
    run = fast.model.run_block
    return np.asarray(run(config, block, jnp.asarray(x)[None], tables(config, len(x))))[0]


def tables(config: ModelConfig, length: int) -> fast.model.Tables:
    if config.rope is None:
        return None
    cos, sin = rope_tables(config, length)
    return jnp.asarray(cos), jnp.asarray(sin)


def check_norms(
    config: ModelConfig, layer: int, block: Block, x: np.ndarray, seen: dict[str, np.ndarray]
) -> Iterator[Check]:
    """Both norms of a block, on what the reference gives them."""
    attended = reference.linear.linear(seen["o"], block.o)
    mixed = reference.linear.linear(seen["down"], block.down)
    if config.norm_first:
        pairs = {"attention_norm": (x, seen["q"]), "mlp_norm": (x + attended, seen["up"])}
    else:
        pairs = {
            "attention_norm": (x + attended, seen["up"]),
            "mlp_norm": (seen["up"] + mixed, seen["out"]),
        }
    for part, (given, expected) in pairs.items():
        found = normalize(config, getattr(block, part), given)
        yield check(2, layer, part, expected, found, limit(expected))


def normalize(config: ModelConfig, norm: Norm, x: np.ndarray) -> np.ndarray:
    run = jax.jit(fast.layers.normalize, static_argnums=2)
    return np.asarray(run(jnp.asarray(x)[None], jax.tree.map(jnp.asarray, norm), config))[0]


def check_flips(
    layer: int, part: str, linear: Linear, expected: np.ndarray, found: np.ndarray
) -> Iterator[Check]:
    """Codes of a part's output as each side computes it: equal, or one off at a tie."""
    if linear.activation == "float" or not np.isfinite(found).all():
        return
    ratio = expected / activation_scales(expected, linear)
    near_tie = np.abs(ratio - np.floor(ratio) - 0.5) < TIE
    codes = reference_codes(expected, linear)[0]
    others = fast_codes(found, linear)[0]
    off = int(np.sum(codes != others))
    allowed = np.where(near_tie, 1.0, 0.5)
    yield check(2, layer, f"{part} codes", codes, others, allowed, off)
