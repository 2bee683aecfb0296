"""Train what a method learns of one block, so that its quantized outputs match the float ones.

    w_hat      learner.fake(plan, fixed, params)                   the block that training runs
    loss       sum over a batch of |block(inputs; w_hat) - targets|^2
    step       params <- learner.update(gradient of the loss)

The gradient of w_hat is summed over the samples of a batch, about 1,024 tokens at a time, and
turned into that of the parameters once. So only these tokens' activations are in memory, and what
is computed for each weight is computed once a step, not once a sample. Beside the block there are
w_hat, its gradient, the parameters and the best parameters.

The loss of a batch is compared with what the same samples lost before training: batches differ more
than steps do. The parameters of the step with the least share are the result, so training never
returns anything worse, on its batch, than what it began with.

Programs are compiled for each kind of block and each length of sample. The order of the samples
follows from the seed and the block's number.

B samples, T tokens, D model width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from planish.fast.model.backend import Tables
from planish.fast.model.weights import PlacedExperts
from planish.fast.placement import put
from planish.fast.quantize.observe import run_through
from planish.fast.quantize.products import fast_dtype
from planish.fast.quantize.trainable import Trainable
from planish.reference.linear import Linear
from planish.reference.model.config import LayerKind, ModelConfig
from planish.reference.model.folds import Fold
from planish.reference.model.layers import Norm
from planish.reference.model.rope import rotations
from planish.reference.model.weights import Block, block_linears, block_norms, build_block
from planish.reference.quantize.footprint import TRAINED_TOKENS
from planish.reference.quantize.job import BlockJob
from planish.reference.quantized import QuantizedWeight
from planish.reference.scheme import Scheme

BATCH = 8  # samples of a step


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Modules:
    """A block's linears and norms by name."""

    linears: dict[str, Linear]
    norms: dict[str, Norm]


@dataclass(frozen=True, kw_only=True)
class Structure:
    """What the program of a block's gradient depends on, beside shapes.

    dtype: of the factors of matrix products
    """

    config: ModelConfig
    kind: LayerKind
    dtype: str = "float32"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a compiled program depends on.

    folds:   where teq scales
    fake:    the modules that training runs, from what is fixed and the parameters
    update:  parameters and moments after a step, from both, the gradient and the rate
    """

    structure: Structure
    schemes: tuple[tuple[str, Scheme], ...]  # of the linears that will be quantized
    rule: str
    folds: tuple[Fold, ...] = ()
    fake: Callable[[Plan, Any, Any], Modules]
    update: Callable[[Any, Any, Any, jax.Array], tuple[Any, Any]]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class State:
    """The parameters of a step, those of the best step so far, and what the update remembers."""

    params: Any
    best: Any
    moments: Any


@dataclass(frozen=True, kw_only=True)
class Course:
    """How long and how fast: the rate falls linearly from `rate` to 0."""

    steps: int
    rate: float


def make_plan(job: BlockJob, block: Block, **learner: Any) -> Plan:
    """The plan of a block; learner: fake, update and perhaps folds."""
    schemes = tuple((part, scheme) for part, scheme in job.schemes.items() if scheme is not None)
    structure = Structure(config=job.config, kind=block.kind, dtype=training_dtype(schemes))
    return Plan(structure=structure, schemes=schemes, rule=job.rule, **learner)


def training_dtype(schemes: Sequence[tuple[str, Scheme]]) -> str:
    """bfloat16 where it is fast, unless its errors are as large as those of INT8 weights."""
    return fast_dtype() if all(scheme.bits == 4 for _, scheme in schemes) else "float32"


def place_modules(block: Block) -> Modules:
    """A float block's modules on the device."""
    modules: Modules = put(Modules(linears=block_linears(block), norms=block_norms(block)))
    return modules


def fake_linear(layer: Linear, values: Any, scheme: Scheme) -> Linear:
    """The linear with float values in the place of codes: the layout `fake` of trainable.py."""
    nothing: Any = None
    fake = QuantizedWeight(
        codes=values, scale=nothing, scheme=scheme, shape=values.shape, layout="fake"
    )
    return replace(layer, weight=fake)


def train(
    plan: Plan, fixed: Any, params: Any, job: BlockJob, course: Course, moments: Any = ()
) -> Any:
    """The best parameters, on the device; those given if the block is exact or overflows."""
    before = initial_losses(plan, fixed, params, job)
    if not np.isfinite(before).all() or not before.any():
        return params
    copies = (jax.tree.map(jnp.copy, params) for _ in range(2))  # the state is donated
    state = State(params=next(copies), best=next(copies), moments=moments)
    least, rng = np.inf, np.random.default_rng([job.settings.seed, job.layer])
    for step, chosen in enumerate(draw_batches(rng, len(job.inputs), course.steps)):
        gradient, loss = batch_gradient(plan, fixed, state.params, job, chosen)
        share = loss / max(before[chosen].sum(), np.finfo(np.float32).tiny)
        rate = np.array([course.rate * (1 - step / course.steps), step + 1], np.float32)
        state = advance(plan, fixed, state, gradient, rate, share < least)
        least = min(least, share)
    return state.best


def draw_batches(rng: np.random.Generator, count: int, steps: int) -> Iterator[np.ndarray]:
    """For each step the numbers of its samples: permutations, cut into whole batches."""
    order = np.zeros(0, np.int64)
    for _ in range(steps):
        if len(order) < min(BATCH, count):
            order = rng.permutation(count)
        chosen, order = order[:BATCH], order[BATCH:]
        yield np.sort(chosen)


def initial_losses(plan: Plan, fixed: Any, params: Any, job: BlockJob) -> np.ndarray:
    """What each sample loses with the parameters as they are, [samples]."""
    modules, losses = fake_modules(plan, fixed, params), np.zeros(len(job.inputs))
    for some, x, y, tables in pieces(job, range(len(job.inputs))):
        losses[some] = sample_losses(plan.structure, modules, x, y, tables)
    return losses


def batch_gradient(
    plan: Plan, fixed: Any, params: Any, job: BlockJob, chosen: Sequence[int] | np.ndarray
) -> tuple[Modules, float]:
    """The gradient of the fake modules and the loss, both summed over the chosen samples."""
    modules, loss = fake_modules(plan, fixed, params), 0.0
    gradient = jax.tree.map(jnp.zeros_like, modules)
    for _, x, y, tables in pieces(job, chosen):
        gradient, losses = add_gradient(plan.structure, modules, gradient, x, y, tables)
        loss += float(np.asarray(losses, np.float64).sum())
    return gradient, loss


def pieces(
    job: BlockJob, chosen: Sequence[int] | np.ndarray
) -> Iterator[tuple[list[int], np.ndarray, np.ndarray, Tables]]:
    """Samples of one length, about 1,024 tokens at a time: their numbers, inputs [B, T, D],
    targets [B, T, D], and the rotary tables."""
    for length, group in groupby(chosen, key=lambda i: len(job.inputs[i])):
        equal = [int(i) for i in group]
        tables: Any = tuple(rotations(r, np.arange(length), length) for r in job.config.ropes)
        most = max(1, TRAINED_TOKENS // length)
        size = -(-len(equal) // -(-len(equal) // most))  # in pieces as equal as can be
        for start in range(0, len(equal), size):
            some = equal[start : start + size]
            x, y = (np.stack([states[i] for i in some]) for states in (job.inputs, job.targets))
            yield some, x, y, tables


@partial(jax.jit, static_argnames=("plan",))
def fake_modules(plan: Plan, fixed: Any, params: Any) -> Modules:
    """The modules that training runs."""
    return plan.fake(plan, fixed, params)


@partial(jax.jit, static_argnames=("structure",))
def sample_losses(
    structure: Structure, modules: Modules, x: jax.Array, y: jax.Array, tables: Tables
) -> jax.Array:
    """The squared error of each sample's outputs: x, y [B, T, D] -> [B]."""
    block, backend = assemble(structure.kind, modules), Trainable(structure.dtype)
    found = run_through(structure.config, block, x, tables, backend)
    return jnp.square(found - y).sum(axis=(1, 2))


@partial(jax.jit, static_argnames=("structure",), donate_argnames=("total",))
def add_gradient(
    structure: Structure,
    modules: Modules,
    total: Modules,
    x: jax.Array,
    y: jax.Array,
    tables: Tables,
) -> tuple[Modules, jax.Array]:
    """total + the gradient of the samples' losses, and these losses [B]."""

    def loss(modules: Modules) -> tuple[jax.Array, jax.Array]:
        losses = sample_losses(structure, modules, x, y, tables)
        return losses.sum(), losses

    gradient, losses = jax.grad(loss, has_aux=True)(modules)
    return jax.tree.map(jnp.add, total, gradient), losses


@partial(jax.jit, static_argnames=("plan",), donate_argnames=("state",))
def advance(
    plan: Plan, fixed: Any, state: State, gradient: Modules, rate: jax.Array, improved: jax.Array
) -> State:
    """One step; the parameters before it become the best ones if they have improved.

    rate: float32 [2], the step's rate and its number from 1.
    """
    _, pull_back = jax.vjp(lambda params: plan.fake(plan, fixed, params), state.params)
    best = jax.tree.map(partial(jnp.where, improved), state.params, state.best)
    params, moments = plan.update(state.params, state.moments, pull_back(gradient)[0], rate)
    return State(params=params, best=best, moments=moments)


def assemble(kind: LayerKind, modules: Modules) -> Block:
    """The block of these modules, its experts stacked."""
    block = build_block(kind, modules.linears, modules.norms)
    if "router" not in modules.linears:
        return block
    stacks: dict[str, Any] = {"gate": None}
    for name in ("gate", "up", "down"):
        each = [x for part, x in modules.linears.items() if part.endswith(f".{name}")]
        if each:
            stacks[name] = jax.tree.map(lambda *arrays: jnp.stack(arrays), *each)
    mlp: Any = PlacedExperts(router=modules.linears["router"], **stacks)
    return replace(block, mlp=mlp)
