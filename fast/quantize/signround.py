"""SignRound, trained: what reference/quantize/methods/signround.py defines, learned by sign-SGD.

The settings are AutoRound's (https://github.com/intel/auto-round): 200 steps of 8 samples at the
rate 1/steps, V from 0, alpha from 1 and kept in 0..1; presets `light` (50 steps at 0.005) and
`best` (1000). Unlike there, the best step is chosen by its share of the initial loss (training.py).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from planish.fast.placement import on_cpu
from planish.fast.quantize.observe import REMEDY
from planish.fast.quantize.ranges import Ranges, fake_quantize, group_ranges, range_parameters
from planish.fast.quantize.training import (
    Course,
    Modules,
    Plan,
    fake_linear,
    make_plan,
    place_modules,
    train,
)
from planish.reference.linear import float_weight
from planish.reference.memory import memory_errors
from planish.reference.model.weights import Block, block_linears, replace_modules
from planish.reference.quantize.job import BlockJob, static_scale
from planish.reference.quantize.methods.rtn import quantize_block as round_to_nearest
from planish.reference.quantize.methods.signround import Rounding, signround_weight
from planish.reference.quantize.settings import Settings

COURSES = {
    "light": Course(steps=50, rate=5e-3),
    "default": Course(steps=200, rate=1 / 200),
    "best": Course(steps=1000, rate=1 / 1000),
}

Fixed = tuple[Modules, dict[str, Ranges]]

jax.tree_util.register_dataclass(Rounding, ("v", "alpha_min", "alpha_max"), ())


@on_cpu
@memory_errors(REMEDY)
def quantize_block(job: BlockJob, block: Block) -> Block:
    """Quantize every linear of a block that has a scheme, by learned rounding."""
    rounded = round_to_nearest(job, block)  # raises what a method must raise, before training
    learned = learn(job, block)
    linears, changed = block_linears(rounded), {}
    for part, layer in block_linears(block).items():
        scheme = job.schemes.get(part)
        if scheme is not None:
            w = float_weight(layer)
            weight = signround_weight(w, learned[part], scheme, job.rule, job.name(part))
            changed[part] = replace(linears[part], weight=weight)
    return replace_modules(rounded, changed)


def course_of(settings: Settings) -> Course:
    """The preset's; other steps at the rate 1/steps, or at the rate of `light`."""
    course = COURSES[settings.preset]
    if settings.iterations is None:
        return course
    rate = course.rate if settings.preset == "light" else 1 / settings.iterations
    return Course(steps=settings.iterations, rate=rate)


def learn(job: BlockJob, block: Block) -> dict[str, Rounding]:
    """The learned parameters of each linear that has a scheme, as NumPy arrays."""
    plan, fixed, start = prepare(job, block)
    found = train(plan, fixed, start, job, course_of(job.settings))
    learned: dict[str, Rounding] = jax.tree.map(np.asarray, found)
    return learned


def prepare(job: BlockJob, block: Block) -> tuple[Plan, Fixed, dict[str, Rounding]]:
    """The plan, what is fixed (modules and their ranges), and the parameters at first."""
    plan = make_plan(job, block, fake=fake, update=update)
    modules = place_modules(block)
    for part, scheme in plan.schemes:
        if scheme.activation == "static":
            scale: Any = jnp.asarray(static_scale(job.absmax[part]))
            modules.linears[part] = replace(modules.linears[part], activation_scale=scale)
    weights: dict[str, Any] = {part: modules.linears[part].weight for part, _ in plan.schemes}
    ranges = {part: ranges_of(weights[part], scheme) for part, scheme in plan.schemes}
    start = {part: initial(weights[part], ranges[part]) for part in ranges}
    return plan, (modules, ranges), start


ranges_of = jax.jit(group_ranges, static_argnames=("scheme",))


def initial(w: Any, ranges: Ranges) -> Rounding:
    """Round to nearest: V = 0, alpha = 1."""
    ones: Any = jnp.ones_like(ranges.low)
    same: Any = jnp.copy(ones)
    v: Any = jnp.zeros(w.shape, jnp.float32)
    return Rounding(v=v, alpha_min=ones, alpha_max=same)


def fake(plan: Plan, fixed: Fixed, params: Any) -> Modules:
    """The block with the weights that the parameters' codes stand for."""
    modules, ranges = fixed
    linears = dict(modules.linears)
    for part, scheme in plan.schemes:
        rounding, layer, whole = params[part], linears[part], ranges[part]
        low, high = whole.low * rounding.alpha_min, whole.high * rounding.alpha_max
        shrunk = Ranges(low=low, high=high, low_first=whole.low_first)
        scale, zero = range_parameters(shrunk, scheme, plan.rule)
        w: Any = layer.weight
        linears[part] = fake_linear(
            layer, fake_quantize(w, scale, zero, scheme, rounding.v), scheme
        )
    return Modules(linears=linears, norms=modules.norms)


def update(params: Any, moments: Any, gradient: Any, rate: jax.Array) -> tuple[Any, Any]:
    """p - rate * sign(gradient), alpha kept in 0..1; there are no moments."""
    params = jax.tree.map(lambda p, g: p - rate[0] * jnp.sign(g), params, gradient)

    def clip(alpha: jax.Array) -> jax.Array:
        return jnp.clip(alpha, 0, 1)

    kept = {
        part: replace(r, alpha_min=clip(r.alpha_min), alpha_max=clip(r.alpha_max))
        for part, r in params.items()
    }
    return kept, moments
