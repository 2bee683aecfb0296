"""What rounding each linear alone would cost the loss, from one pass back through the model.

For a linear y = x Wt of the float model, what stands in its place, y', and the loss L, the sum over
tokens of -log p of the next one:

    e = y' - y          the output error                                            [T, N]
    g = dL / dy         how much the loss feels it                                  [T, N]
    cost = 1/2 sum over t, n of (g e)^2 / tokens                                    nats per token

This is the diagonal of the empirical Fisher matrix of the outputs in place of the Hessian, as in
Optimal Brain Damage (LeCun et al. 1989) and SqueezeLLM (arXiv 2306.07629, section 4.1), which have
it for the weights. It orders linears; it does not predict a loss: errors of different linears
add up with signs, and empirical gradients of real text do not vanish.

The experts of a layer have one scheme for each of gate, up and down, and a token reads few of them:
their cost is 1/2 <dL / dW, W' - W>^2 of each sample, over all experts.

Gradients come from trainable.py's backend, block by block: each block's input is kept, nothing
inside a block is. S samples, T tokens, D model width, K inputs, N outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from planish.fast.model.backend import Tables
from planish.fast.model.losses import target_losses
from planish.fast.model.transformer import unembed
from planish.fast.model.weights import place_block
from planish.fast.placement import on_cpu, put
from planish.fast.quantize.observe import run_through
from planish.fast.quantize.trainable import Trainable
from planish.fast.quantize.training import Modules, assemble, fake_linear, place_modules
from planish.fast.xla import backend as xla_backend
from planish.reference.linear import Linear
from planish.reference.model.config import LayerKind, ModelConfig
from planish.reference.model.rope import rotations
from planish.reference.model.weights import Block, Weights, split_expert
from planish.reference.progress import Progress, no_progress
from planish.reference.quantize.observe import embed_samples
from planish.reference.quantized import QuantizedWeight, dequantize

Alternatives = Sequence[Mapping[str, Linear]]  # quantized linears by name, for each level
Sums = dict[str, np.ndarray]  # by a linear's name, or `experts.gate` of all experts


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """Of one linear, or of all experts' gates, ups or downs, in a block.

    cost:   nats per token, for each level that was asked for
    error:  squared error of its output relative to the output's square; NaN for experts
    """

    cost: np.ndarray
    error: np.ndarray


class Sensor(Trainable):
    """The float32 backend, which adds `shift` to each linear's output and records its error.

    The gradient of the shift is that of the output. Use it within one trace only.
    """

    def __init__(self, block: Block, shift: Mapping[str, jax.Array], levels: Alternatives):
        super().__init__()
        self.shift, self.levels = shift, levels
        self.errors: dict[str, list[jax.Array]] = {}
        self.powers: dict[str, jax.Array] = {}
        found = {name: getattr(block, name) for name in "qkvo"}
        found |= {name: getattr(block.mlp, name, None) for name in ("gate", "up", "down")}
        self.names = {id(layer): name for name, layer in found.items() if name in shift}

    def linear(self, x: jax.Array, layer: Linear, residual: jax.Array | None = None) -> jax.Array:
        y = super().linear(x, layer)
        name = self.names.get(id(layer))
        if name is not None:
            others = [level[name] for level in self.levels]
            self.errors[name] = [Trainable().linear(x, other) - y for other in others]
            self.powers[name] = jnp.square(y).sum()
            y = y + self.shift[name]
        return y if residual is None else residual + y


@on_cpu
def measure_sensitivity(
    config: ModelConfig,
    weights: Weights,
    alternatives: Callable[[int], Alternatives],
    samples: Sequence[np.ndarray],
    progress: Progress = no_progress,
) -> list[dict[str, Sensitivity]]:
    """The sensitivity of every linear of each block.

    weights: the float model, its blocks as they were before rounding. alternatives: of a block's
    number, for each level the quantized linears by name, in any layout. samples: token ids, all of
    one length. Kept in memory: 4 S T D bytes for each block.
    """
    tables = sample_tables(config, len(samples[0]))
    states: list[Sequence[np.ndarray]] = [list(embed_samples(config, weights, samples))]
    for block in progress(weights.blocks, "sensitivity, forward"):
        modules, last = place_modules(block), states[-1]
        outputs = [run_float(config, block.kind, modules, put(x[None]), tables) for x in last]
        states.append([np.asarray(y)[0] for y in outputs])
    gradients = loss_gradients(config, weights, states.pop(), samples)
    tokens = sum(len(sample) - 1 for sample in samples)
    found: list[dict[str, Sensitivity]] = []
    for layer in progress(range(len(weights.blocks))[::-1], "sensitivity, back"):
        given = weights.blocks[layer], alternatives(layer)
        totals, gradients = block_sensitivity(config, *given, states.pop(), gradients, tables)
        found.append(totals.per_token(tokens))
    return found[::-1]


@dataclass(frozen=True, kw_only=True)
class Totals:
    """Sums over all samples, by a linear's name: [levels], but for powers."""

    costs: Sums = field(default_factory=dict)
    errors: Sums = field(default_factory=dict)
    powers: Sums = field(default_factory=dict)

    def add(self, costs: Any, errors: Any, powers: Any) -> None:
        """Add what one sample gave."""
        for sums, more in ((self.costs, costs), (self.errors, errors), (self.powers, powers)):
            for name, value in more.items():
                sums[name] = sums.get(name, 0) + np.asarray(value, np.float64)

    def per_token(self, tokens: int) -> dict[str, Sensitivity]:
        """The sensitivities."""
        nothing = np.array(np.nan)
        return {
            name: Sensitivity(
                cost=cost / tokens,
                error=self.errors.get(name, cost * np.nan)
                / np.maximum(self.powers.get(name, nothing), 1e-30),
            )
            for name, cost in self.costs.items()
        }


def sample_tables(config: ModelConfig, length: int) -> Any:
    """The rotary tables of samples of one length."""
    return tuple(rotations(rope, np.arange(length), length) for rope in config.ropes)


@partial(jax.jit, static_argnames=("config", "kind"))
def run_float(
    config: ModelConfig, kind: LayerKind, modules: Modules, x: jax.Array, tables: Tables
) -> jax.Array:
    """A float block of samples x [B, T, D] -> [B, T, D]."""
    return run_through(config, assemble(kind, modules), x, tables, Trainable())


def loss_gradients(
    config: ModelConfig,
    weights: Weights,
    states: Sequence[np.ndarray],
    samples: Sequence[np.ndarray],
) -> list[np.ndarray]:
    """dL / dx [T, D] at the last block's output, for each sample."""
    outer = put(place_block(replace(weights, blocks=())))
    targets = [np.append(tokens[1:], tokens[-1:]).astype(np.int32) for tokens in samples]
    pairs = zip(states, targets, strict=True)
    return [
        np.asarray(loss_gradient(config, outer, put(x[None]), put(t[None])))[0] for x, t in pairs
    ]


@partial(jax.jit, static_argnames=("config",))
def loss_gradient(
    config: ModelConfig, weights: Weights, x: jax.Array, targets: jax.Array
) -> jax.Array:
    """The gradient of the sum of -log p of each next token, targets [1, T]; the last has none."""

    def loss(x: jax.Array) -> jax.Array:
        return target_losses(unembed(config, weights, x, xla_backend), targets)[:, :-1].sum()

    return jax.grad(loss)(x)


def block_sensitivity(
    config: ModelConfig,
    block: Block,
    alternatives: Alternatives,
    inputs: Sequence[np.ndarray],
    gradients: Sequence[np.ndarray],
    tables: Tables,
) -> tuple[Totals, list[np.ndarray]]:
    """The sums of one block over all samples, and the gradients at its input."""
    modules, totals = place_modules(block), Totals()
    levels = tuple({name: fake(layer) for name, layer in one.items()} for one in alternatives)
    levels = put(levels)
    earlier: list[np.ndarray] = []
    for x, gradient in zip(inputs, gradients, strict=True):
        given = modules, levels, put(x[None]), put(gradient[None]), tables
        before, *sums = pull_back(config, block.kind, *given)
        totals.add(*sums)
        earlier.append(np.asarray(before)[0])
    return totals, earlier


def fake(layer: Linear) -> Linear:
    """A quantized linear with its weight's values in the layout that trainable.py runs."""
    weight = layer.weight
    if not isinstance(weight, QuantizedWeight):
        return layer
    values: Any = dequantize(weight)
    return fake_linear(layer, values, weight.scheme)


@partial(jax.jit, static_argnames=("config", "kind"))
def pull_back(
    config: ModelConfig,
    kind: LayerKind,
    modules: Modules,
    levels: Alternatives,
    x: jax.Array,
    gradient: jax.Array,
    tables: Tables,
) -> tuple[jax.Array, Any, Any, Any]:
    """The gradient at a block's input [1, T, D]; costs, errors and powers by a linear's name.

    gradient: at its output. levels: fake linears by name.
    """
    parts = [name for name in levels[0] if split_expert(name)[1] is None]
    experts = {n: modules.linears[n].weight for n in levels[0] if split_expert(n)[1] is not None}
    shift = {n: jnp.zeros((*x.shape[:2], outputs_of(modules.linears[n]))) for n in parts}

    def run(x: jax.Array, shift: Any, experts: Any) -> Any:
        changed = {n: replace(modules.linears[n], weight=w) for n, w in experts.items()}
        block = assemble(kind, replace(modules, linears=modules.linears | changed))
        sensor = Sensor(block, shift, levels)
        y = run_through(config, block, x, tables, sensor)
        return y, (sensor.errors, sensor.powers)

    _, backwards, (errors, powers) = jax.vjp(run, x, shift, experts, has_aux=True)
    before, felt, of_experts = backwards(gradient)
    costs = {n: output_cost(felt[n], found) for n, found in errors.items()}
    costs |= expert_costs(of_experts, experts, levels)
    squares = {n: jnp.stack([jnp.square(e).sum() for e in found]) for n, found in errors.items()}
    return before, costs, squares, powers


def outputs_of(layer: Linear) -> int:
    """N of a float linear."""
    weight: Any = layer.weight
    return len(weight)


def output_cost(felt: jax.Array, errors: Sequence[jax.Array]) -> jax.Array:
    """1/2 sum of (g e)^2 for each level, [levels]."""
    return jnp.stack([jnp.square(felt * error).sum() / 2 for error in errors])


def expert_costs(gradients: Any, weights: Any, levels: Alternatives) -> dict[str, jax.Array]:
    """1/2 (sum over experts of <dL / dW, W' - W>)^2 for each level, by name without a number."""
    moved: dict[str, list[jax.Array]] = {}
    for name, gradient in gradients.items():
        others: list[Any] = [level[name].weight for level in levels]
        steps = [(gradient * (other.codes - weights[name])).sum() for other in others]
        moved.setdefault(split_expert(name)[0], []).append(jnp.stack(steps))
    return {name: jnp.square(sum(steps)) / 2 for name, steps in moved.items()}
