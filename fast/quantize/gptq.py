"""GPTQ's column loop, jitted; the stages, factors and groups' parameters are the reference's.

The weight is held transposed, [K, N], so that a column is a contiguous row. Two programs do the
work, compiled once for each shape of a linear:

    round_columns   the columns of a group, or of a block of 128, one after another
    update_rest     what a block of 128 owes the columns after it, one matrix product, eq. (4)

Between them the reference chooses the parameters of the next group from the current columns, so
no rule is written twice. The codes differ from the reference's, given the same U, only where the
matrix products (summed in another order) and XLA's fused multiply-adds move a weight over a tie.

N outputs, K inputs (padded to blocks), B = 128 columns of a block, C of a group in it.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from planish.fast.placement import on_cpu
from planish.reference.grids import INT4_MAX, INT8_MAX
from planish.reference.model.weights import Block
from planish.reference.quantize.job import BlockJob
from planish.reference.quantize.methods.gptq import (
    COLUMNS,
    ColumnGrids,
    Factor,
    Grid,
    in_place,
    quantize_stages,
)
from planish.reference.scheme import Scheme

LIMITS = {4: (0, INT4_MAX), 8: (-INT8_MAX, INT8_MAX)}  # of codes, by bits


def quantize_block(job: BlockJob, block: Block) -> Block:
    """As the reference's, with the jitted column loop."""
    return quantize_stages(job, block, gptq_codes)


@on_cpu
def gptq_codes(
    w: np.ndarray, factor: Factor, scheme: Scheme, rule: str = "signed", name: str = "w"
) -> Grid:
    """As the reference's: codes [N, K], scale and zero point of w [N, K]."""
    w = np.where(factor.dead, np.float32(0), w)
    grids = ColumnGrids.start(w, scheme, rule, factor.order, name)
    k, order = w.shape[1], factor.order
    blocks = -(-k // COLUMNS)
    rest = pad_columns(w if order is None else w[:, order], blocks * COLUMNS)  # [K, N]
    upper = pad_upper(factor.upper, blocks * COLUMNS)  # [K, K]
    codes = np.zeros((k, len(w)), np.uint8 if scheme.bits == 4 else np.int8)
    for start in range(0, k, COLUMNS):
        rows = upper[start : start + COLUMNS]  # [B, K]
        errors, found = round_block(rest, rows, start, grids, k)
        codes[start : start + COLUMNS] = found[: k - start]
        if start + COLUMNS < k:
            rest = update_rest(rest, rows, errors, start + COLUMNS)
    return in_place(np.ascontiguousarray(codes.T), order), *grids.parameters()


def pad_columns(w: np.ndarray, width: int) -> jax.Array:
    """w [N, K] -> [width, N] with zeros."""
    return jnp.asarray(np.pad(w.T, ((0, width - w.shape[1]), (0, 0))))


def pad_upper(upper: np.ndarray, width: int) -> np.ndarray:
    """U [K, K] -> [width, width]: ones on the diagonal of what is added, else zeros."""
    padded = np.eye(width, dtype=np.float32)
    padded[: len(upper), : len(upper)] = upper
    return padded


def round_block(
    rest: jax.Array, rows: np.ndarray, start: int, grids: ColumnGrids, k: int
) -> tuple[jax.Array, np.ndarray]:
    """Errors [B, N] and codes [B, N] of the block at `start` of rest [K, N]; rows of U [B, K]."""
    block = take_block(rest, start)
    upper = rows[:, start : start + COLUMNS]  # [B, B]
    count = min(grids.moving or COLUMNS, COLUMNS)
    errors, codes = [], []
    for first in range(0, COLUMNS, count):
        columns = np.arange(start + first, start + first + count)
        group, size = (start + first) // count * count, grids.moving
        if size and group % size == 0 and group < k:
            source = rest if size > COLUMNS else block
            offset = group if size > COLUMNS else first
            width = min(size, k - group)
            grids.add_group(np.asarray(source)[offset : offset + width].T)
        parameters = column_parameters(grids, columns, k)
        bits = grids.scheme.bits
        block, error, code = round_columns(block, upper, parameters, first, count=count, bits=bits)
        errors.append(error)
        codes.append(np.asarray(code))
    return jnp.concatenate(errors), np.concatenate(codes)


def column_parameters(
    grids: ColumnGrids, columns: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Scale and zero point of columns, float32 [C, N], or [1, N] or [1, 1] if they share one."""
    if grids.moving:
        scale, zero = grids.scale[-1], grids.zero[-1]
    else:
        scale, zero = grids.fixed(np.minimum(columns, k - 1))
    zero = np.zeros((1, 1)) if zero is None else zero
    return scale.T.astype(np.float32), zero.T.astype(np.float32)


@jax.jit
def take_block(rest: jax.Array, start: int) -> jax.Array:
    """Rows start : start + B of rest [K, N]."""
    return lax.dynamic_slice_in_dim(rest, start, COLUMNS)


@partial(jax.jit, static_argnames=("count", "bits"), donate_argnums=0)
def round_columns(
    block: jax.Array,  # [B, N]
    upper: jax.Array,  # [B, B]
    parameters: tuple[jax.Array, jax.Array],  # scale and zero point, [C or 1, N or 1] both
    first: int,
    count: int,
    bits: int,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Round `count` columns from `first` on: the block [B, N] after them, errors, codes [C, N]."""
    lowest, highest = LIMITS[bits]

    def step(i: jax.Array, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        block, errors, codes = state
        scale, zero = (p[jnp.minimum(i, p.shape[0] - 1)] for p in parameters)  # [N]
        w, u = block[first + i], upper[first + i]  # [N], [B]
        code = jnp.clip(jnp.rint(w / scale) + zero, lowest, highest)
        error = (w - (code - zero) * scale) / u[first + i]  # eq. (2)
        block = block - u[:, None] * error[None]  # U is upper triangular: earlier columns stay
        return block, errors.at[i].set(error), codes.at[i].set(code.astype(codes.dtype))

    errors = jnp.zeros((count, block.shape[1]), jnp.float32)
    codes = jnp.zeros(errors.shape, jnp.uint8 if bits == 4 else jnp.int8)
    after: tuple[jax.Array, jax.Array, jax.Array]
    after = lax.fori_loop(0, count, step, (block, errors, codes))
    return after


@partial(jax.jit, donate_argnums=0)
def update_rest(rest: jax.Array, rows: jax.Array, errors: jax.Array, start: int) -> jax.Array:
    """rest [K, N] less U[block, :] [B, K] transposed times errors [B, N], from row `start` on.

    B rows at a time, because what is before `start` needs no update: half of all products.
    """

    def update(block: jax.Array, rest: jax.Array) -> jax.Array:
        first = block * COLUMNS
        upper = lax.dynamic_slice_in_dim(rows, first, COLUMNS, axis=1)  # [B, B]
        updated = take_block(rest, first) - upper.T @ errors
        return lax.dynamic_update_slice_in_dim(rest, updated, first, axis=0)

    return lax.fori_loop(start // COLUMNS, rest.shape[0] // COLUMNS, update, rest)
