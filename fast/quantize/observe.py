"""Calibration by XLA: runs samples through a block and reduces the inputs of its linears.

The block is the engine's: while the program is traced, a listening backend observes what the
transformer passes to the linears, so no arithmetic of a block is repeated here. Statistics are
reduced inside the program; an input leaves it only if the observer keeps it.

One sample of 512 tokens at a time is fastest on the CPU; shorter samples are run in batches.

B samples, T tokens, K inputs, D model width.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby, islice
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from planish.fast.model.backend import Backend, Positions, Tables
from planish.fast.model.transformer import attention_half, block_forward, mlp_half
from planish.fast.model.weights import place_block
from planish.fast.native import backend as native_backend
from planish.fast.placement import on_cpu, put
from planish.fast.quantize.listener import Found, Heard, Listener, rows_finite
from planish.fast.quantize.middle import Kept
from planish.fast.quantize.moments import Upper, add_upper, complete
from planish.fast.xla import backend as xla_backend
from planish.reference.linear import Linear
from planish.reference.memory import memory_errors
from planish.reference.model.config import ModelConfig
from planish.reference.model.rope import rotations
from planish.reference.model.transformer import ROTATED
from planish.reference.model.weights import (
    Block,
    Weights,
    block_linears,
    replace_modules,
    split_expert,
)
from planish.reference.quantize.hidden import UNLIMITED, States, Store
from planish.reference.quantize.observe import (
    ABSMAX,
    Observer,
    Statistics,
    embed_samples,
    reads_overflow,
    require_finite_output,
)
from planish.reference.quantize.runner import Hidden
from planish.reference.quantized import QuantizedWeight, dequantize, to_layout

TOKENS = 512  # in a batch of shorter samples
REMEDY = "fewer or shorter samples"


class Runner:
    """The reference's Runner, jitted; a program is compiled for each kind of block."""

    def __init__(self, native: bool = False, store: Store = UNLIMITED):
        """native: use the kernels, which must be loaded, for attention and quantized linears.

        store: where hidden states go.
        """
        self.native, self.store, self.kept = native, store, Kept()

    @property
    def name(self) -> str:
        return "native" if self.native else "xla"

    def storing(self, store: Store) -> Runner:
        return Runner(self.native, store)

    def embed(self, config: ModelConfig, weights: Weights, samples: Sequence[np.ndarray]) -> Hidden:
        return embed_samples(config, weights, samples, self.store)

    @on_cpu
    @memory_errors(REMEDY)
    def observe(
        self,
        config: ModelConfig,
        block: Block,
        hidden: Hidden,
        names: Mapping[str, str] | None = None,
        observer: Observer = ABSMAX,
        parts: Collection[str] | None = None,
    ) -> tuple[Statistics, Hidden]:
        given = (config, block, hidden, names, observer, parts, self.store)
        return observe_block(*given, native=self.native, kept=self.kept)

    @on_cpu
    @memory_errors(REMEDY)
    def run(self, config: ModelConfig, block: Block, hidden: Hidden) -> Hidden:
        placed, backend = place(block, self.native), backend_of(self.native)
        middle, outputs = self.kept.find(block, hidden, self.native), self.store.new()
        for x, tables in batches(config, hidden if middle is None else middle):
            if config.parallel:
                y = run_batch(config, placed, x, tables, backend)
            else:
                z = attend_batch(config, placed, x, tables, backend) if middle is None else x
                y = finish_batch(config, placed, z, backend)
            outputs.extend(np.asarray(y))
        return outputs


def observe_block(  # noqa: PLR0913  (the reference's, and native)
    config: ModelConfig,
    block: Block,
    hidden: Hidden,
    names: Mapping[str, str] | None = None,
    observer: Observer = ABSMAX,
    parts: Collection[str] | None = None,
    store: Store = UNLIMITED,
    *,
    native: bool = False,
    kept: Kept | None = None,
) -> tuple[Statistics, States]:
    """As the reference's: statistics of the linears' inputs, and the block's outputs.

    kept: what earlier passes left, and where this one leaves something (middle.py).
    """
    wanted = None if parts is None else frozenset(parts)
    native = native and not has_quantized_experts(block)
    placed, backend = place(block, native), backend_of(native)
    every = (*block_linears(block), *ROTATED)
    order = [part for part in every if wanted is None or part in wanted]
    totals, outputs = Totals(order, observer, names or {}), store.new()
    if wanted is not None and not wanted & {*"qkvo", *ROTATED} and not config.parallel:
        kept = Kept() if kept is None else kept
        if (middle := kept.find(block, hidden, native)) is None:
            middle = attend_all(config, placed, hidden, store, backend)
            kept.keep(block, hidden, native, middle)
        for x, _ in batches(config, middle):
            heard = observe_second_half(config, placed, x, backend, observer, wanted)
            totals.add(heard.collect(config.gated_mlp))
        return totals.finish(), outputs
    for x, tables in batches(config, hidden):
        heard, y, largest = observe_batch(config, placed, x, tables, backend, observer, wanted)
        totals.add(heard.collect(config.gated_mlp))
        if wanted is None:
            require_finite_output(np.float32(largest), names or {})
            outputs.extend(np.asarray(y))  # views [T, D]
    return totals.finish(), outputs


class Totals:
    """The statistics of the batches so far, by linear."""

    def __init__(self, order: list[str], observer: Observer, names: Mapping[str, str]):
        """order: of execution, of the linears that are wanted."""
        self.order, self.observer, self.names = order, observer, names
        self.statistics: Statistics = {}
        self.upper: dict[str, Upper] = {}  # on the device

    def add(self, batch: Mapping[str, Found]) -> None:
        """Merge those of a batch; raises QuantizationError for an input that is not finite."""
        for name in self.order:
            if name in batch:
                finite, value = batch[name]
                if not finite:
                    raise reads_overflow(self.names.get(name, name))
                self.merge(name, value)

    def merge(self, name: str, value: Any) -> None:
        if not isinstance(value, tuple):
            self.observer.add(self.statistics, name, np.asarray(value))
        elif name in self.upper:
            self.upper[name] = add_upper(self.upper[name], value)
        else:
            self.upper[name] = value

    def finish(self) -> Statistics:
        """All of them, in the order of execution."""
        found = self.statistics | {name: complete(upper) for name, upper in self.upper.items()}
        return {name: found[name] for name in self.order if name in found}


@partial(jax.jit, static_argnames=("config", "backend", "observer", "parts"))
def observe_batch(
    config: ModelConfig,
    block: Block,
    x: jax.Array,
    tables: Tables,
    backend: Backend,
    observer: Observer,
    parts: frozenset[str] | None,
) -> tuple[Heard, jax.Array | None, jax.Array | None]:
    """Run a block: statistics of its linears' inputs, its outputs [B, T, D], and their absmax.

    With parts only the statistics of these linears; XLA then leaves out what nothing needs.
    """
    listener = Listener(backend, block, observer, parts)
    y = run_through(config, block, x, tables, listener)
    if parts is not None:
        return listener.heard, None, None
    rows = y.reshape(-1, y.shape[-1])
    largest = jnp.where(rows_finite(rows), abs(rows).max(axis=0).max(), jnp.float32(jnp.nan))
    return listener.heard, y, largest


@partial(jax.jit, static_argnames=("config", "backend", "observer", "parts"))
def observe_second_half(
    config: ModelConfig,
    block: Block,
    x: jax.Array,
    backend: Backend,
    observer: Observer,
    parts: frozenset[str],
) -> Heard:
    """Statistics of linears of the MLP, from what attention leaves, x [B, T, D]."""
    listener = Listener(backend, block, observer, parts)
    mlp_half(config, block, x, listener)
    return listener.heard


def attend_all(
    config: ModelConfig, block: Block, hidden: Hidden, store: Store, backend: Backend
) -> States:
    """attend_batch of all samples."""
    states = store.new()
    for x, tables in batches(config, hidden):
        states.extend(np.asarray(attend_batch(config, block, x, tables, backend)))
    return states


@partial(jax.jit, static_argnames=("config", "backend"))
def attend_batch(
    config: ModelConfig, block: Block, x: jax.Array, tables: Tables, backend: Backend
) -> jax.Array:
    """The first half of a block of samples x [B, T, D] -> [B, T, D]."""
    past = backend.empty_layer(config, *x.shape[:2])
    return attention_half(config, block, x, every_position(x, tables), past, backend)[0]


@partial(jax.jit, static_argnames=("config", "backend"))
def finish_batch(config: ModelConfig, block: Block, x: jax.Array, backend: Backend) -> jax.Array:
    """The second half, from what attention leaves of samples, x [B, T, D] -> [B, T, D]."""
    return mlp_half(config, block, x, backend)


@partial(jax.jit, static_argnames=("config", "backend"))
def run_batch(
    config: ModelConfig, block: Block, x: jax.Array, tables: Tables, backend: Backend
) -> jax.Array:
    """Run a block of samples x [B, T, D] -> [B, T, D]."""
    return run_through(config, block, x, tables, backend)


def run_through(
    config: ModelConfig, block: Block, x: jax.Array, tables: Tables, backend: Backend
) -> jax.Array:
    """The engine's block over whole samples, without keeping the cache."""
    past = backend.empty_layer(config, *x.shape[:2])
    return block_forward(config, block, x, every_position(x, tables), past, backend)[0]


def every_position(x: jax.Array, tables: Tables) -> Positions:
    """The positions of whole samples x [B, T, D]: 0 .. T - 1 of each."""
    index = jnp.broadcast_to(jnp.arange(x.shape[1], dtype=jnp.int32)[None], x.shape[:2])
    return Positions(index, tables)


def batches(
    config: ModelConfig, hidden: Hidden
) -> Iterator[tuple[np.ndarray, tuple[tuple[np.ndarray, np.ndarray], ...]]]:
    """Samples of equal length in batches [B, T, D] of about TOKENS tokens, and rotary tables."""
    for length, states in groupby(hidden, key=len):
        tables = tuple(rotations(rope, np.arange(length), length) for rope in config.ropes)
        count = max(1, TOKENS // length)
        while batch := [*islice(states, count)]:  # lazily: the states may be on the disk
            yield np.stack(batch), tables


def backend_of(native: bool) -> Backend:
    return native_backend if native else xla_backend


def place(block: Block, native: bool) -> Block:
    """Put a block on the device, with its weights as XLA or the kernels read them."""
    linears = block_linears(block).items()
    return put(place_block(replace_modules(block, {p: as_run(p, x, native) for p, x in linears})))


def has_quantized_experts(block: Block) -> bool:
    """Whether experts have codes: only XLA's mixture is observed, and it does not read tiles."""
    linears = block_linears(block).items()
    return any(x.scheme is not None for part, x in linears if split_expert(part)[1] is not None)


def as_run(part: str, layer: Linear, native: bool) -> Linear:
    """A quantized linear in the form that many rows pass through fastest; a float one as it is.

    With float activations these are the weights that its codes stand for: to convert them once
    takes less time than in each batch. Experts keep their codes.
    """
    weight = layer.weight
    if not isinstance(weight, QuantizedWeight):
        return layer
    if weight.scheme.activation == "float" and split_expert(part)[1] is None:
        return replace(layer, weight=dequantize(weight))
    return replace(layer, weight=to_layout(weight, "tiles")) if native else layer
