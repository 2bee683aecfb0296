"""AWQ's two searches, jitted: the errors of scaled and rounded candidates, and the clipping.

The reference (reference/quantize/methods/awq.py) makes the candidates and takes the best. Here a
candidate is a float block whose readers have the values of their codes, W' = Q(W s) / s, so the
block runs with float matrix products, s is an argument of one program for each fold, and nothing is
compiled again for another ratio or another block.

Two errors need no block: those of o and down, where a block adds their outputs to the residual
stream as they are, are sum of (W - W') H (W - W')t with H = sum x xt of their inputs.

INT8 activations and experts take the reference's way, on the runner's kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from planish.fast.model.backend import Backend, Tables
from planish.fast.placement import on_cpu, put
from planish.fast.quantize.grid import from_groups, round_weight, to_groups
from planish.fast.quantize.observe import REMEDY, Runner, backend_of, batches, place, run_through
from planish.reference.linear import float_weight
from planish.reference.memory import memory_errors
from planish.reference.model.config import ModelConfig
from planish.reference.model.folds import Fold
from planish.reference.model.weights import Block, Mlp, block_linears, replace_modules
from planish.reference.quantize.job import BlockJob
from planish.reference.quantize.methods.awq import CLIPS, Search, group_moments, search_block
from planish.reference.quantize.methods.awq import candidate_errors as reference_errors
from planish.reference.scheme import Scheme

Schemes = tuple[tuple[str, Scheme], ...]


@on_cpu
@memory_errors(REMEDY)
def quantize_block(job: BlockJob, block: Block) -> Block:
    """As the reference's: scale every fold and clip the groups of a float block."""
    return search_block(job, block, JITTED_SEARCH)


def candidate_errors(
    job: BlockJob, block: Block, fold: Fold, candidates: Sequence[np.ndarray]
) -> Sequence[float]:
    """As the reference's: squared error of the block's outputs, by candidate."""
    schemes = reader_schemes(job, fold)
    if not isinstance(block.mlp, Mlp) or any(s.activation != "float" for _, s in schemes):
        return reference_errors(job, block, fold, candidates)
    if fold.linears in (("o",), ("down",)) and job.config.norm_placement == "pre":
        return output_linear_errors(job, block, schemes, [*map(fold.by_input, candidates)])
    native = isinstance(job.runner, Runner) and job.runner.native
    placed, backend = place(block, native), backend_of(native)
    work = [put((x, tables)) for x, tables in batches(job.config, job.float_inputs)]
    targets = [put(y) for y, _ in batches(job.config, job.targets)]
    errors = []
    for s in candidates:
        trial = round_scaled_readers(placed, fold.by_input(s), schemes, job.rule)
        found = [
            batch_error(job.config, trial, x, tables, right, backend)
            for (x, tables), right in zip(work, targets, strict=True)
        ]
        errors.append(float(np.sum(np.array(found, np.float64))))
    return errors


def reader_schemes(job: BlockJob, fold: Fold) -> Schemes:
    """The readers of a fold that are rounded, and their schemes."""
    pairs = ((part, job.schemes.get(part)) for part in fold.linears)
    return tuple((part, scheme) for part, scheme in pairs if scheme is not None)


def round_scaled_readers(block: Block, s: np.ndarray, schemes: Schemes, rule: str) -> Block:
    """The block with Q(W s) / s in place of the weight of each reader; s [K]."""
    linears = block_linears(block)
    weights = {part: linears[part].weight for part, _ in schemes}
    found = round_scaled(weights, s, schemes, rule)
    return replace_modules(
        block, {part: replace(linears[part], weight=found[part]) for part in found}
    )


@partial(jax.jit, static_argnames=("schemes", "rule"))
def round_scaled(
    weights: dict[str, Any], s: jax.Array, schemes: Schemes, rule: str
) -> dict[str, jax.Array]:
    """Q(W s) / s of each weight [N, K], s [K]."""
    return {
        part: round_weight(weights[part] * s[None], scheme, rule) / s[None]
        for part, scheme in schemes
    }


@partial(jax.jit, static_argnames=("config", "backend"))
def batch_error(
    config: ModelConfig,
    block: Block,
    x: jax.Array,
    tables: Tables,
    targets: jax.Array,
    backend: Backend,
) -> jax.Array:
    """Squared error of a block's outputs for samples x [B, T, D] against targets [B, T, D]."""
    return jnp.sum(jnp.square(run_through(config, block, x, tables, backend) - targets))


def output_linear_errors(
    job: BlockJob, block: Block, schemes: Schemes, candidates: Sequence[np.ndarray]
) -> list[float]:
    """The error of candidates of v -> o or up -> down, from the moments of the reader's inputs."""
    ((part, scheme),) = schemes
    found, _ = job.runner.observe(
        job.config, block, job.float_inputs, job.names, group_moments(-1), parts=(part,)
    )
    w = float_weight(block_linears(block)[part])
    return weight_errors(w, scheme, job.rule, found[part], candidates)


def weight_errors(
    w: np.ndarray,
    scheme: Scheme,
    rule: str,
    moments: np.ndarray,
    candidates: Sequence[np.ndarray],
) -> list[float]:
    """As the reference's: sum of d H dt over the rows d of W - Q(W s) / s, by candidate."""
    placed, inputs = put(w), put(moments)
    return [float(weight_error(placed, s, inputs, scheme, rule)) for s in candidates]


@partial(jax.jit, static_argnames=("scheme", "rule"))
def weight_error(
    w: jax.Array, s: jax.Array, moments: jax.Array, scheme: Scheme, rule: str
) -> jax.Array:
    """sum of d H dt over the rows d of W - Q(W s) / s; moments H [K, K]."""
    wrong = w - round_weight(w * s[None], scheme, rule) / s[None]
    return jnp.sum((wrong @ moments) * wrong)


def clip_groups(w: np.ndarray, scheme: Scheme, rule: str, moments: np.ndarray) -> np.ndarray:
    """As the reference's: w [N, K], each group clipped at the share of least error."""
    return np.asarray(clip_by_error(put(w), put(moments), scheme, rule))


@partial(jax.jit, static_argnames=("scheme", "rule"))
def clip_by_error(w: jax.Array, moments: jax.Array, scheme: Scheme, rule: str) -> jax.Array:
    groups, cols = to_groups(w, scheme.group_size), w.shape[1]  # [N, G, g]
    absmax = jnp.abs(groups).max(axis=2, keepdims=True)
    ratios = jnp.asarray(CLIPS, jnp.float32)

    def one(index: int, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        best, least = state
        bound = ratios[index] * absmax
        clipped = jnp.clip(groups, -bound, bound)
        wrong = to_groups(w - round_weight(from_groups(clipped, cols), scheme, rule), size)
        errors = jnp.einsum("ngk,gkj,ngj->ng", wrong, moments, wrong)[..., None]
        return jnp.where(errors < least, ratios[index], best), jnp.minimum(errors, least)

    size = scheme.group_size
    start = jnp.ones_like(absmax), jnp.full_like(absmax, jnp.inf)
    best, _ = jax.lax.fori_loop(0, len(CLIPS), one, start)
    return from_groups(jnp.clip(groups, -best * absmax, best * absmax), cols)


JITTED_SEARCH = Search(
    scale_errors=candidate_errors, weight_errors=weight_errors, clip_weight=clip_groups
)
