"""A backend that observes the inputs of one block's linears and lets another backend compute.

The transformer calls it instead of that backend while a program is traced, so the statistics are
part of the program. The rows of experts are observed tile by tile, as the mixture computes them.

T tokens, K inputs, E experts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from planish.fast.model.backend import QKV, AttentionConfig, Backend, Normed, Positions
from planish.fast.model.layers import normalize
from planish.fast.model.weights import PlacedExperts
from planish.fast.quantize.moments import upper_moments
from planish.fast.xla import moe
from planish.fast.xla.attention import rotate_heads
from planish.reference.linear import Linear
from planish.reference.model.attention import AttentionScales
from planish.reference.model.config import ModelConfig
from planish.reference.model.transformer import ROTATED
from planish.reference.model.weights import Block
from planish.reference.quantize.observe import Observer, second_moments

Found = tuple[Any, Any]  # of one linear, or of all experts' linears: is it finite, the statistic


@jax.tree_util.register_dataclass
@dataclass
class Heard:
    """The statistics that one program found at the inputs of a block's linears."""

    linears: dict[str, Found] = field(default_factory=dict)
    chosen: Any = None  # bool [E]: the experts that some token chose
    experts: tuple[Found, ...] = ()  # of `up` (and `gate`), and of `down`: [E], [E, ...]

    def collect(self, gated: bool) -> dict[str, Found]:
        """By a linear's name in its block, such as experts.3.down, with the chosen experts only."""
        found = dict(self.linears)
        if self.chosen is None:
            return found
        up, down = ([np.asarray(array) for array in pair] for pair in self.experts)
        named = {"up": up, "down": down} | ({"gate": up} if gated else {})
        for expert in np.flatnonzero(self.chosen):
            for name, (finite, value) in named.items():
                found[f"experts.{expert}.{name}"] = finite[expert], value[expert]
        return found


class Listener:
    """The backend. Use it within one trace only, because it stores the trace's values."""

    def __init__(
        self,
        backend: Backend,
        block: Block,
        observer: Observer,
        parts: frozenset[str] | None = None,
    ):
        """parts: what to observe (Runner.observe); None for all linears."""
        self.parts = parts
        self.measure = fast_measure(observer)
        self.backend, self.observer, self.heard = backend, observer, Heard()
        linears = {name: getattr(block, name) for name in "qkvo"}
        mlp = vars(block.mlp)  # an Mlp's linears; or a mixture's router, and stacks
        linears |= {name: layer for name, layer in mlp.items() if isinstance(layer, Linear)}
        self.names = {id(linear): name for name, linear in linears.items()}
        self.can_sample, self.empty_layer = backend.can_sample, backend.empty_layer
        self.sample, self.normalize = backend.sample, backend.normalize

    def hear(self, x: jax.Array, *layers: Linear) -> None:
        """Reduce x [B, T, K] for each linear of the block that reads it."""
        rows = x.reshape(-1, x.shape[-1])
        for layer in layers:
            name = self.names[id(layer)]
            if self.parts is None or name in self.parts:
                self.heard.linears[name] = rows_finite(rows), self.measure(rows)

    def reduce(self, rows: jax.Array) -> Found:
        """Whether an expert's rows [T, K] are finite, and their statistic."""
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

    def attention(
        self,
        qkv: QKV,
        positions: Positions,
        past: Any,
        config: AttentionConfig,
        scales: AttentionScales | None = None,
    ) -> tuple[jax.Array, Any]:
        """Observes rotated queries and keys, and values, if they are asked for."""
        if self.parts is not None and self.parts & frozenset(ROTATED):
            for name, x in zip(ROTATED, rotate_heads(qkv, positions, config), strict=True):
                rows = x.reshape(-1, x.shape[-2] * x.shape[-1])
                self.heard.linears[name] = rows_finite(rows), self.measure(rows)
        return self.backend.attention(qkv, positions, past, config, scales)

    def moe(
        self,
        config: ModelConfig,
        weights: PlacedExperts,
        x: Normed,
        residual: jax.Array | None = None,
    ) -> jax.Array:
        """XLA's mixture with a watch, because the kernels do not take float experts."""
        n, routing_weights, ids = moe.route_normed(config, weights, x)  # [B, T, D], [R, top_k] both
        self.hear(n, weights.router)
        watch = moe.Watch(start=self.empty_statistics(weights, n), see=self.see)
        y, self.heard.experts = moe.mix_experts(config, weights, n, routing_weights, ids, watch)
        unchosen = jnp.zeros(weights.router.weight.shape[0], bool)
        self.heard.chosen = unchosen.at[ids.reshape(-1)].set(True)
        return y if residual is None else residual + y

    def empty_statistics(self, weights: PlacedExperts, n: jax.Array) -> tuple[Found, ...]:
        """The initial statistics of the experts: finite, and zeros."""
        count, outputs, inputs = weights.down.weight.shape

        def zeros(width: int) -> Found:
            rows = jax.ShapeDtypeStruct((n.shape[1], width), n.dtype)
            one = jax.eval_shape(self.observer.measure, rows)
            return jnp.ones(count, bool), jnp.zeros((count, *one.shape), one.dtype)

        return zeros(outputs), zeros(inputs)

    def see(self, seen: tuple[Found, ...], expert: jax.Array, *rows: jax.Array) -> Any:
        """Merge the statistics of a tile of an expert's rows.

        rows: what `up` (and `gate`) reads, and what `down` reads.
        """
        merge = getattr(jnp, self.observer.merge.__name__)  # XLA's ufunc of the same name
        merged = []
        for (finite, value), x in zip(seen, rows, strict=True):
            fine, found = self.reduce(x)
            finite = finite.at[expert].set(finite[expert] & fine)
            merged.append((finite, value.at[expert].set(merge(value[expert], found))))
        return tuple(merged)


def fast_measure(observer: Observer) -> Callable[[jax.Array], Any]:
    """What measures the rows of a linear: of second moments only one half (moments.py)."""
    return upper_moments if observer.measure is second_moments else observer.measure


def rows_finite(x: jax.Array) -> jax.Array:
    """Whether x [T, K] has neither NaN nor Inf; XLA's maximum ignores a NaN.

    A sum of entries, scaled down so that it cannot overflow, is finite if and only if all of them
    are. It takes a third of the time of isfinite of every entry.
    """
    return jnp.isfinite((x * jnp.float32(2.0**-30)).sum(axis=0)).all()
