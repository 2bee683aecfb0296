"""Calibration by XLA: the samples through a block, and statistics of what its linears read.

The block is the engine's own: an observer listens where the transformer hands an input to its
linears, while the program is traced, so nothing of a block's arithmetic is written here again.
Statistics are reduced inside the program; an input leaves it only if the observer keeps it.

One sample of 512 tokens at a time is the fastest on the CPU; shorter ones go together.

B samples, T tokens, K inputs, D model width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from planish.fast.model import moe, transformer
from planish.fast.model.cache import can_tile, empty_layer
from planish.fast.model.weights import place_block
from planish.fast.placement import on_cpu
from planish.reference.linear import Linear
from planish.reference.memory import memory_errors
from planish.reference.model.config import ModelConfig
from planish.reference.model.rope import rotations
from planish.reference.model.weights import Block, Weights, block_linears, replace_parts
from planish.reference.quantize.observe import (
    ABSMAX,
    Observer,
    Statistics,
    embed_samples,
    reads_overflow,
    require_finite_output,
)
from planish.reference.quantize.runner import Hidden
from planish.reference.quantized import QuantizedWeight, to_layout

TOKENS = 512  # that are run together, if samples are shorter
REMEDY = "fewer or shorter samples"


class Runner:
    """The reference's Runner, jitted; a program is compiled for each kind of block."""

    def __init__(self, native: bool = False):
        """`native`: attention, and quantized candidates' linears, by the kernels, if loaded."""
        self.native = native

    def embed(self, config: ModelConfig, weights: Weights, samples: Sequence[np.ndarray]) -> Hidden:
        return embed_samples(config, weights, samples)

    @on_cpu
    @memory_errors(REMEDY)
    def observe(
        self,
        config: ModelConfig,
        block: Block,
        hidden: Hidden,
        names: Mapping[str, str] | None = None,
        observer: Observer = ABSMAX,
    ) -> tuple[Statistics, Hidden]:
        return observe_block(config, block, hidden, names, observer, self.native)

    @on_cpu
    @memory_errors(REMEDY)
    def run(self, config: ModelConfig, block: Block, hidden: Hidden) -> Hidden:
        placed, tiled = place(block, self.native), self.native and can_tile(config)
        outputs: list[np.ndarray] = []
        for x, tables in batches(config, hidden):
            outputs += [*np.asarray(run_batch(config, placed, x, tables, tiled))]
        return outputs


def observe_block(
    config: ModelConfig,
    block: Block,
    hidden: Hidden,
    names: Mapping[str, str] | None = None,
    observer: Observer = ABSMAX,
    native: bool = False,
) -> tuple[Statistics, list[np.ndarray]]:
    """As the reference's: statistics of the linears' inputs, and the hidden states after it."""
    placed, tiled = place(block, native), native and can_tile(config)
    statistics: Statistics = {}
    outputs: list[np.ndarray] = []
    for x, tables in batches(config, hidden):
        heard, y, largest = observe_batch(config, placed, x, tables, tiled, observer)
        found = by_expert(heard, gated=config.gated_mlp)
        for part in block_linears(block):  # in the order of execution
            if part in found:
                add(statistics, part, found[part], names or {}, observer)
        require_finite_output(np.asarray(largest)[()], names or {})
        outputs += [*np.asarray(y)]  # views [T, D]
    return statistics, outputs


def add(
    statistics: Statistics,
    part: str,
    found: tuple[jax.Array, jax.Array],
    names: Mapping[str, str],
    observer: Observer,
) -> None:
    """Merge what one program found at one linear's input, if that was finite."""
    finite, value = found
    if not finite:
        raise reads_overflow(names.get(part, part))
    observer.add(statistics, part, np.asarray(value))


Found = dict[str, tuple[jax.Array, jax.Array]]  # by linear: finite or not, the statistic


@partial(jax.jit, static_argnames=("config", "tiled", "observer"))
def observe_batch(
    config: ModelConfig,
    block: Block,
    x: jax.Array,
    tables: transformer.Tables,
    tiled: bool,
    observer: Observer,
) -> tuple[Found, jax.Array, jax.Array]:
    """A block over samples x [B, T, D]: what its linears read, its outputs, and their absmax."""
    listener = Listener(block, observer)
    with listener:
        y = forward(config, block, x, tables, tiled)
    rows = y.reshape(-1, y.shape[-1])
    largest = jnp.where(all_finite(rows), abs(rows).max(axis=0).max(), jnp.float32(jnp.nan))
    return listener.found, y, largest


@partial(jax.jit, static_argnames=("config", "tiled"))
def run_batch(
    config: ModelConfig, block: Block, x: jax.Array, tables: transformer.Tables, tiled: bool
) -> jax.Array:
    """A block over samples x [B, T, D]."""
    return forward(config, block, x, tables, tiled)


def forward(
    config: ModelConfig, block: Block, x: jax.Array, tables: transformer.Tables, tiled: bool
) -> jax.Array:
    """The engine's block over whole samples, nothing cached."""
    nothing = empty_layer(config, *x.shape[:2], tiled)
    positions = jnp.broadcast_to(jnp.arange(x.shape[1], dtype=jnp.int32)[None], x.shape[:2])
    return transformer.block_forward(config, block, x, positions, nothing, tables)[0]


def all_finite(x: jax.Array) -> jax.Array:
    """Whether x [T, K] has neither NaN nor Inf; XLA's maximum passes over a NaN.

    A sum of finite entries, made so small that it cannot overflow, is finite, and no other is:
    a third of the time that isfinite of every entry takes.
    """
    return jnp.isfinite((x * jnp.float32(2.0**-30)).sum(axis=0)).all()


class Listener:
    """Hears every input that the transformer hands to a linear of one block in a trace."""

    def __init__(self, block: Block, observer: Observer):
        self.observer, self.found = observer, Found()
        linears = {name: getattr(block, name) for name in "qkvo"}
        mlp = vars(block.mlp).items()  # an Mlp's linears, or a mixture's
        linears |= {name: linear for name, linear in mlp if isinstance(linear, Linear)}
        self.parts = {id(linear): part for part, linear in linears.items()}

    def hear(self, x: jax.Array, layer: Linear) -> None:
        """Reduce x [B, T, K], if a linear of the block is to read it."""
        part = self.parts.get(id(layer))
        if part is not None:
            rows = x.reshape(-1, x.shape[-1])
            self.found[part] = all_finite(rows), self.observer.measure(rows)

    def moe(self, config, weights, x, norm=None, residual=None):
        """The engine's mixture; each expert's rows are heard where its tiles are computed."""
        n, shares, chosen = moe.portable_route(config, weights, x, norm)
        self.hear(n, weights.router)
        count, rows = weights.router.weight.shape[0], chosen.size
        inputs = jax.ShapeDtypeStruct((rows, n.shape[-1]), n.dtype)
        inner = jax.ShapeDtypeStruct((rows, weights.down.weight.shape[-1]), n.dtype)
        start = tuple(self.nothing(count, kind) for kind in (inputs, inner))
        y, seen = moe.portable_mixture(config, weights, n, shares, chosen, self.watch, start)
        met = jnp.zeros(count, bool).at[chosen.reshape(-1)].set(True)
        self.found["experts"] = met, *seen
        return y if residual is None else residual + y

    def nothing(self, count: int, rows: jax.ShapeDtypeStruct) -> tuple[jax.Array, jax.Array]:
        """What has been seen of `count` experts before any row: finite, and zeros."""
        one = jax.eval_shape(self.observer.measure, rows)
        return jnp.ones(count, bool), jnp.zeros((count, *one.shape), one.dtype)

    def watch(self, seen, expert: jax.Array, *rows: jax.Array):
        """Merge one tile's rows at `up` (and `gate`) and at `down` of an expert."""
        merge = getattr(jnp, self.observer.merge.__name__)  # the ufunc of the same name
        return tuple(
            (
                finite.at[expert].set(finite[expert] & all_finite(x)),
                value.at[expert].set(merge(value[expert], self.observer.measure(x))),
            )
            for (finite, value), x in zip(seen, rows, strict=True)
        )

    def __enter__(self) -> None:
        self.before = transformer.linear, transformer.project, transformer.experts
        from types import SimpleNamespace

        from planish.fast.xla.layers import normalize

        def linear(x, layer, residual=None):
            self.hear(x, layer)
            return self.before[0](x, layer, residual)

        def project(x, norm, layers):
            n = x if norm is None else normalize(x, norm)
            for layer in layers:
                self.hear(n, layer)
            return self.before[1](x, norm, layers)

        transformer.linear, transformer.project = linear, project
        transformer.experts = SimpleNamespace(mixture=self.moe)

    def __exit__(self, *a):
        transformer.linear, transformer.project, transformer.experts = self.before


def by_expert(found: dict[str, Any], gated: bool) -> Found:
    """The linears' findings, with each expert that some token chose by its name."""
    if "experts" not in found:
        return found
    met, *seen = found.pop("experts")
    up, down = ([np.asarray(array) for array in pair] for pair in seen)
    parts = {"up": up, "down": down} | ({"gate": up} if gated else {})
    for expert in np.flatnonzero(met):
        for part, (finite, value) in parts.items():
            found[f"experts.{expert}.{part}"] = finite[expert], value[expert]
    return found


def batches(
    config: ModelConfig, hidden: Hidden
) -> Iterator[tuple[np.ndarray, tuple[tuple[np.ndarray, np.ndarray], ...]]]:
    """Samples of equal length in batches [B, T, D] of about TOKENS tokens, and rotary tables."""
    for length, states in groupby(hidden, key=len):
        tables = tuple(rotations(rope, np.arange(length), length) for rope in config.ropes)
        alike, count = [*states], max(1, TOKENS // length)
        for start in range(0, len(alike), count):
            yield np.stack(alike[start : start + count]), tables


def place(block: Block, native: bool) -> Block:
    """The block on the device, its weights as XLA or the kernels read them."""
    if native:
        block = replace_parts(block, {p: tiled(x) for p, x in block_linears(block).items()})
    return jax.tree.map(partial(jax.device_put, may_alias=True), place_block(block))


def tiled(layer: Linear) -> Linear:
    """A quantized linear's codes as the kernels read them; a float linear as it is."""
    weight = layer.weight
    return (
        replace(layer, weight=to_layout(weight, "tiles"))
        if isinstance(weight, QuantizedWeight)
        else layer
    )
