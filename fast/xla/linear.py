"""One linear by XLA, as reference/linear.py defines it, in the form that XLA runs fastest.

The pitfalls, all measured (compiled HLO read on jaxlib 0.10 and 0.12):
* Only s8 x s8 -> s32 takes the fast path, and not with a single row: one row is padded to two.
* With few rows the weights go on the left, [N, K] x [R, K]: they are then read without repacking.
* A division by a scale becomes a multiplication by the reciprocal: see grids.py.
* a * b + c becomes a fused multiply-add; sums of products may differ by an ulp per operation.

B sequences, T tokens, R = B * T rows, K inputs, N outputs, G groups of g inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from planish.fast.model.backend import Normed
from planish.fast.model.layers import ACTIVATIONS, normalize
from planish.fast.xla.grids import int8_codes, int8_codes_around, int8_scale
from planish.reference.linear import Linear
from planish.reference.quantized import QuantizedWeight

FEW_ROWS = 16  # up to here the weights are the left operand
GROUP_ROWS = 64  # rows of one grouped dot: bounds the intermediate int32 [G, rows, N]
MATVEC_ROWS = 8  # up to here dequantizing is fused into one product per row


def project(x: Normed, layers: Sequence[Linear]) -> tuple[jax.Array, ...]:
    """Every linear of x [B, T, K] -> [B, T, N_i]; the norm is computed once."""
    n = normalize(x.raw, x.norm)
    return tuple(linear(n, layer) for layer in layers)


def gated(x: Normed, gate: Linear, up: Linear, activation: str) -> jax.Array:
    """act(gate x) * up x -> [B, T, F]."""
    gate_output, inner = project(x, (gate, up))
    return ACTIVATIONS[activation](gate_output) * inner


def linear(x: jax.Array, layer: Linear, residual: jax.Array | None = None) -> jax.Array:
    """y = x Wt + b (+ residual) for x [B, T, K] -> [B, T, N] float32."""
    weight: Any = layer.weight
    rows = x.reshape(-1, x.shape[-1])  # [R, K]
    if layer.scheme is None:
        y = float_product(rows, weight)
    elif weight.layout == "centred":
        y = weight_only_linear(rows, weight)
    elif weight.layout == "grouped":
        y = int4_linear(rows, weight, layer.activation)
    else:
        codes, a_scale = quantize_activations(x, layer)
        y = int8_rows(codes.reshape(rows.shape), a_scale, weight, layer.activation_zero_point)
    y = y if layer.bias is None else y + layer.bias[None, :]
    y = y.reshape(*x.shape[:-1], -1)
    return y if residual is None else residual + y


def float_product(x: jax.Array, w: jax.Array) -> jax.Array:
    """x Wt in float32, weights on the left for few rows: [R, N]."""
    if x.shape[0] <= FEW_ROWS:
        return lax.dot_general(w, x, (((1,), (1,)), ((), ()))).T
    return lax.dot_general(x, w, (((1,), (1,)), ((), ())))


def integer_product(x: jax.Array, w: jax.Array) -> jax.Array:
    """sum_k x[r, k] * w[n, k], int8 to int32 [R, N], exact."""
    rows = x.shape[0]
    if rows == 1:
        x = jnp.concatenate([x, x])
    if rows > FEW_ROWS:
        return lax.dot_general(x, w, (((1,), (1,)), ((), ())), preferred_element_type=jnp.int32)
    y = lax.dot_general(w, x, (((1,), (1,)), ((), ())), preferred_element_type=jnp.int32)
    return y.T[:rows]


def quantize_activations(x: jax.Array, layer: Linear) -> tuple[jax.Array, jax.Array]:
    """Codes int8 [B, T, K] and one scale per row, [R, 1].

    per_tensor takes its maximum over one sequence's tokens, as the reference does; rows that
    pad a chunk repeat the last token and so cannot change it.
    """
    if layer.activation == "static":
        scale = jnp.broadcast_to(
            jnp.asarray(layer.activation_scale).reshape(1, 1, 1), (*x.shape[:2], 1)
        )
        if layer.activation_zero_point is not None:
            zero_point = jnp.asarray(layer.activation_zero_point).reshape(1, 1, 1)
            return int8_codes_around(x, scale, zero_point), scale.reshape(-1, 1)
    elif layer.activation == "per_tensor":
        scale = int8_scale(jnp.max(jnp.abs(x), axis=(1, 2), keepdims=True))
        scale = jnp.broadcast_to(scale, (*x.shape[:2], 1))
    else:
        scale = int8_scale(jnp.max(jnp.abs(x), axis=-1, keepdims=True))
    return int8_codes(x, scale), scale.reshape(-1, 1)


def int8_rows(
    codes: jax.Array, a_scale: jax.Array, weight: QuantizedWeight, zero_point: Any = None
) -> jax.Array:
    """y[r,n] = (f32(sum_k xq[r,k] wq[n,k]) * a_scale[r]) * w_scale[n].

    zero_point: int8 [1], of the inputs, or None. It is one more row, whose sums are subtracted:
    sum_k (xq - z) wq = sum_k xq wq - sum_k z wq, exactly.
    """
    w = jnp.asarray(weight.codes)
    if zero_point is None:
        total = integer_product(codes, w)
    else:
        more = jnp.broadcast_to(jnp.asarray(zero_point).reshape(1, 1), (1, codes.shape[1]))
        total = integer_product(jnp.concatenate([codes, more]), w)
        total = total[:-1] - total[-1:]
    return (total.astype(jnp.float32) * a_scale) * weight.scale.T


def split_groups(x: jax.Array, groups: int, size: int) -> jax.Array:
    """[R, K] -> [R, G, g], the last group padded with zeros."""
    padded = jnp.pad(x, ((0, 0), (0, groups * size - x.shape[1])))
    return padded.reshape(x.shape[0], groups, size)


def int4_linear(x: jax.Array, weight: QuantizedWeight, activation: str) -> jax.Array:
    """W4A8: quantize the rows per (row, group) or per row, then the grouped product: [R, N]."""
    groups, _, size = weight.codes.shape
    x = split_groups(x, groups, size)  # [R, G, g]
    codes, scale = quantize_groups(x, activation)
    rows = x.shape[0]
    if rows <= GROUP_ROWS:
        return int4_rows(codes, scale, weight)
    tiles = -(-rows // GROUP_ROWS)
    padding = ((0, tiles * GROUP_ROWS - rows), (0, 0), (0, 0))
    codes, scale = (
        jnp.pad(a, padding).reshape(tiles, GROUP_ROWS, *a.shape[1:]) for a in (codes, scale)
    )
    y = lax.map(lambda tile: int4_rows(tile[0], tile[1], weight), (codes, scale))  # [tiles, 64, N]
    return y.reshape(tiles * GROUP_ROWS, -1)[:rows]


def quantize_groups(x: jax.Array, activation: str) -> tuple[jax.Array, jax.Array]:
    """Codes int8 of x [R, G, g], and scale [R, G, 1] (per_group) or [R, 1, 1] (per_token)."""
    axes = (2,) if activation == "per_group" else (1, 2)
    scale = int8_scale(jnp.max(jnp.abs(x), axis=axes, keepdims=True))
    return int8_codes(x, scale), scale


def int4_rows(codes: jax.Array, a_scale: jax.Array, weight: QuantizedWeight) -> jax.Array:
    """sum over g of (f32(xq (q - z)) * w_scale[n,g]) * a_scale[r,g]; per token a_scale comes last.

    codes int8 [R, G, g], a_scale [R, G, 1] or [R, 1, 1] -> [R, N].
    """
    rows = codes.shape[0]
    if rows == 1:
        codes = jnp.concatenate([codes, codes])
    total = lax.dot_general(
        codes, weight.codes, (((2,), (2,)), ((1,), (0,))), preferred_element_type=jnp.int32
    )[:, :rows]  # [G, R, N]
    parts = total.astype(jnp.float32) * weight.scale[:, None, :]
    if a_scale.shape[1] == 1:
        return jnp.sum(parts, axis=0) * a_scale[:, 0]
    return jnp.sum(parts * a_scale.transpose(1, 0, 2), axis=0)


def weight_only_linear(x: jax.Array, weight: QuantizedWeight) -> jax.Array:
    """W8A16 and W4A16: y = x dequant(W)t in float32, [R, N].

    The inputs of a weight in act order are gathered first. Without a barrier XLA gathers them for
    its product as columns: 512 rows of 2048 inputs then take 14.5 ms of CPU time, not 2.6.

    A product with one row converts the codes while it reads them. With more rows XLA writes the
    float weight to memory first, which pays from about eight rows on.
    """
    if weight.permutation is not None:
        x = lax.optimization_barrier(jnp.take(x, weight.permutation, axis=1, mode="clip"))
    if x.shape[0] > MATVEC_ROWS:
        return float_product(x, dequantize(weight))
    rows = [float_product(row[None, :], dequantize(weight)) for row in x]
    return jnp.concatenate(rows)


def dequantize(weight: QuantizedWeight) -> jax.Array:
    """w = codes * scale (+ offset), float32 [N, K], the columns in the order of the codes."""
    rows, cols = weight.codes.shape
    groups = weight.scale.shape[1]
    codes = jnp.asarray(weight.codes).astype(jnp.float32)
    offset = None if weight.offset is None else jnp.asarray(weight.offset)
    if groups == 1:
        w = codes * jnp.asarray(weight.scale)
        return w if offset is None else w + offset
    codes = split_groups(codes, groups, weight.scheme.group_size)
    w = codes * weight.scale[:, :, None]
    w = w if offset is None else w + offset[:, :, None]
    return w.reshape(rows, -1)[:, :cols]
