"""TEQ, trained: the scales that reference/quantize/methods/teq.py folds, learned by Adam.

The settings are the paper's: 100 steps at the rate 0.001, falling to 0, a from 1. The gradient of
the rounded weights Q(W a) is that of W a. Adam: Kingma and Ba 2014, arXiv 1412.6980, algorithm 1.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from planish.fast.placement import on_cpu, put
from planish.fast.quantize.grid import round_weight
from planish.fast.quantize.observe import REMEDY
from planish.fast.quantize.training import (
    Course,
    Modules,
    Plan,
    fake_linear,
    make_plan,
    place_modules,
    train,
)
from planish.reference.linear import Linear, float_weight
from planish.reference.memory import memory_errors
from planish.reference.model.folds import Fold, block_folds
from planish.reference.model.layers import Norm
from planish.reference.model.weights import Block, block_linears
from planish.reference.quantize.job import BlockJob
from planish.reference.quantize.methods.teq import FLOOR, scale_block
from planish.reference.scheme import Scheme

STEPS, RATE = 100, 1e-3
BETAS, EPSILON = (0.9, 0.999), 1e-8


@on_cpu
@memory_errors(REMEDY)
def quantize_block(job: BlockJob, block: Block) -> Block:
    """Learn the scales of a float block and fold them; another method rounds."""
    folds = tuple(block_folds(job.config, block))
    if not folds:
        return block
    return scale_block(job.config, block, learn(job, block, folds))


def learn(job: BlockJob, block: Block, folds: tuple[Fold, ...]) -> list[np.ndarray]:
    """The learned scale of each fold's source, [channels]."""
    plan = make_plan(job, block, folds=folds, fake=fake, update=update)
    plan = replace(plan, schemes=tuple((part, dynamic(scheme)) for part, scheme in plan.schemes))
    linears = block_linears(block)
    sizes = [
        len(float_weight(linears[fold.source]))
        if fold.source in linears
        else job.config.hidden_size
        for fold in folds
    ]
    start = [put(np.ones(size, np.float32)) for size in sizes]
    zeros = [put(np.zeros(size, np.float32)) for size in sizes]
    moments = (zeros, [jnp.copy(z) for z in zeros])
    course = Course(steps=job.settings.iterations or STEPS, rate=RATE)
    found = train(plan, place_modules(block), start, job, course, moments)
    return [np.asarray(a) for a in found]


def dynamic(scheme: Scheme) -> Scheme:
    """A static scale is calibrated after the block is scaled; training computes it."""
    return replace(scheme, activation="per_tensor") if scheme.activation == "static" else scheme


def fake(plan: Plan, modules: Modules, scales: Any) -> Modules:
    """The block scaled, with the values of its rounded weights."""
    linears, norms = dict(modules.linears), dict(modules.norms)
    for fold, a in zip(plan.folds, scales, strict=True):
        a = jnp.maximum(a, FLOOR)
        if fold.source in norms:
            norms[fold.source] = divide_norm(norms[fold.source], a)
        else:
            linears[fold.source] = divide_outputs(linears[fold.source], a)
        wide = fold.by_input(a)[None, :]
        for part in fold.linears:
            w: Any = linears[part].weight
            linears[part] = replace(linears[part], weight=w * wide)
    for part, scheme in plan.schemes:
        w = linears[part].weight
        rounded = w + lax.stop_gradient(round_weight(w, scheme, plan.rule) - w)
        linears[part] = fake_linear(linears[part], rounded, scheme)
    return Modules(linears=linears, norms=norms)


def divide_norm(norm: Norm, a: jax.Array) -> Norm:
    """A norm whose output channels are divided by a."""
    weight: Any = 1 / a if norm.weight is None else norm.weight / a
    return replace(norm, weight=weight, bias=None if norm.bias is None else norm.bias / a)


def divide_outputs(layer: Linear, a: jax.Array) -> Linear:
    """A linear whose output channels are divided by a."""
    w: Any = layer.weight
    return replace(
        layer, weight=w / a[:, None], bias=None if layer.bias is None else layer.bias / a
    )


def update(params: Any, moments: Any, gradient: Any, rate: jax.Array) -> tuple[Any, Any]:
    """a - rate * m / (sqrt(v) + epsilon), with the bias of both moments corrected."""
    decay, number = [jnp.float32(beta) for beta in BETAS], rate[1]
    first = jax.tree.map(lambda m, g: decay[0] * m + (1 - decay[0]) * g, moments[0], gradient)
    second = jax.tree.map(lambda v, g: decay[1] * v + (1 - decay[1]) * g * g, moments[1], gradient)

    def step(a: jax.Array, m: jax.Array, v: jax.Array) -> jax.Array:
        m, v = m / (1 - decay[0] ** number), v / (1 - decay[1] ** number)
        return jnp.maximum(a - rate[0] * m / (jnp.sqrt(v) + jnp.float32(EPSILON)), FLOOR)

    return jax.tree.map(step, params, first, second), (first, second)
