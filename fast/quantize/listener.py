"""A backend that hears what the linears of one block read, and has another backend compute.

The transformer calls it instead of the backend while a program is traced, so the statistics are
part of that program. Experts' rows are heard where the mixture computes them, tile by tile.

T tokens, K inputs, E experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from planish.fast.model.backend import Backend, Normed
from planish.fast.model.layers import normalize
from planish.fast.model.weights import PlacedExperts
from planish.fast.xla import moe
from planish.reference.linear import Linear
from planish.reference.model.config import ModelConfig
from planish.reference.model.weights import Block
from planish.reference.quantize.observe import Observer

Found = tuple[Any, Any]  # at one linear, or at all experts': finite or not, the statistic


@jax.tree_util.register_dataclass
@dataclass
class Heard:
    """What one program found at the inputs of a block's linears."""

    parts: dict[str, Found] = field(default_factory=dict)
    met: Any = None  # bool [E]: the experts that some token chose
    experts: tuple[Found, ...] = ()  # at `up` and `gate`, and at `down`: [E], [E, ...]

    def by_part(self, gated: bool) -> dict[str, Found]:
        """By the linear's name in its block, as in experts.3.down; experts by those met."""
        parts = dict(self.parts)
        if self.met is None:
            return parts
        up, down = ([np.asarray(array) for array in found] for found in self.experts)
        named = {"up": up, "down": down} | ({"gate": up} if gated else {})
        for expert in np.flatnonzero(self.met):
            for name, (finite, value) in named.items():
                parts[f"experts.{expert}.{name}"] = finite[expert], value[expert]
        return parts


class Listener:
    """The backend. It lives inside one trace only: what it heard are the trace's values."""

    def __init__(self, backend: Backend, block: Block, observer: Observer):
        self.backend, self.observer, self.heard = backend, observer, Heard()
        linears = {name: getattr(block, name) for name in "qkvo"}
        mlp = vars(block.mlp)  # an Mlp's linears; a mixture's router, and its experts' in stacks
        linears |= {name: layer for name, layer in mlp.items() if isinstance(layer, Linear)}
        self.parts = {id(linear): part for part, linear in linears.items()}
        self.attention, self.sample = backend.attention, backend.sample
        self.can_sample, self.empty_layer = backend.can_sample, backend.empty_layer

    def hear(self, x: jax.Array, *layers: Linear) -> None:
        """Reduce x [B, T, K], for each linear of the block that is to read it."""
        rows = x.reshape(-1, x.shape[-1])
        for layer in layers:
            self.heard.parts[self.parts[id(layer)]] = self.reduce(rows)

    def reduce(self, rows: jax.Array) -> Found:
        """Whether rows [T, K] are finite, and their statistic."""
        return rows_finite(rows), self.observer.measure(rows)

    def project(self, x: Normed, layers: Sequence[Linear]) -> tuple[jax.Array, ...]:
        self.hear(normalize(x.raw, x.norm), *layers)
        return self.backend.project(x, layers)

    def linear(self, x: jax.Array, layer: Linear, residual: jax.Array | None = None) -> jax.Array:
        self.hear(x, layer)
        return self.backend.linear(x, layer, residual)

    def gated(self, x: Normed, gate: Linear, up: Linear, activation: str) -> jax.Array:
        self.hear(normalize(x.raw, x.norm), gate, up)
        return self.backend.gated(x, gate, up, activation)

    def moe(
        self,
        config: ModelConfig,
        weights: PlacedExperts,
        x: Normed,
        residual: jax.Array | None = None,
    ) -> jax.Array:
        """XLA's mixture, watched: the kernels take no float experts."""
        n, shares, chosen = moe.route_normed(config, weights, x)
        self.hear(n, weights.router)
        watch = moe.Watch(start=self.nothing(weights, n), see=self.see)
        y, self.heard.experts = moe.mix_experts(config, weights, n, shares, chosen, watch)
        unmet = jnp.zeros(weights.router.weight.shape[0], bool)
        self.heard.met = unmet.at[chosen.reshape(-1)].set(True)
        return y if residual is None else residual + y

    def nothing(self, weights: PlacedExperts, n: jax.Array) -> tuple[Found, ...]:
        """What has been seen of the experts before any row: finite, and zeros."""
        count, outputs, inputs = weights.down.weight.shape

        def zeros(width: int) -> Found:
            rows = jax.ShapeDtypeStruct((n.shape[1], width), n.dtype)
            one = jax.eval_shape(self.observer.measure, rows)
            return jnp.ones(count, bool), jnp.zeros((count, *one.shape), one.dtype)

        return zeros(outputs), zeros(inputs)

    def see(self, seen: tuple[Found, ...], expert: jax.Array, *rows: jax.Array) -> Any:
        """Merge a tile of an expert's rows: at `up` (and `gate`), and at `down`."""
        merge = getattr(jnp, self.observer.merge.__name__)  # XLA's ufunc of the same name
        merged = []
        for (finite, value), x in zip(seen, rows, strict=True):
            fine, found = self.reduce(x)
            finite = finite.at[expert].set(finite[expert] & fine)
            merged.append((finite, value.at[expert].set(merge(value[expert], found))))
        return tuple(merged)


def rows_finite(x: jax.Array) -> jax.Array:
    """Whether x [T, K] has neither NaN nor Inf; XLA's maximum passes over a NaN.

    A sum of finite entries, made so small that it cannot overflow, is finite, and no other is:
    a third of the time that isfinite of every entry takes.
    """
    return jnp.isfinite((x * jnp.float32(2.0**-30)).sum(axis=0)).all()
