"""planish's own engine as a subject. Only this file and fast_placement.py know fast/.

The checks pass the reference's types. Here each weight is placed on the device, the engine's
functions are compiled and called, and their results come back as NumPy arrays.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from planish.compare.conformance.fast_placement import (
    Placer,
    is_native,
    read_slots,
    read_weight,
    tile_codes,
    tile_keys,
)
from planish.compare.conformance.routing import require_moe
from planish.compare.subject import AttentionCall, Slots, Subject
from planish.fast.model import transformer as fast_transformer
from planish.fast.model.backend import AttentionConfig, Backend, Normed, Positions
from planish.fast.model.cache import FIELDS, KVCache
from planish.fast.native import attention as native_attention
from planish.fast.native import backend as native_backend
from planish.fast.native import linear as native_linear
from planish.fast.native import moe as native_moe
from planish.fast.native.cache import CodedSlots, TiledSlots
from planish.fast.native.library import load_library
from planish.fast.session.engine import Engine
from planish.fast.xla import backend as xla_backend
from planish.fast.xla import grids as fast_grids
from planish.fast.xla import linear as fast_linear
from planish.fast.xla import moe as xla_moe
from planish.reference.files.load import Checkpoint
from planish.reference.grids import to_groups
from planish.reference.linear import Linear, quantized_weight
from planish.reference.model.attention import AttentionScales
from planish.reference.model.config import ModelConfig
from planish.reference.model.experts import BESIDE
from planish.reference.model.layers import Norm
from planish.reference.model.rope import Rope, rotations
from planish.reference.model.weights import Block, Experts, Mlp, Weights
from planish.reference.quantized import QuantizedWeight
from planish.reference.scheme import int4
from planish.reference.text.generate import Stop
from planish.reference.text.sampling import Sampling


def fast_engine(checkpoint: Checkpoint, native: bool = False) -> Subject:
    """Open the engine on a checkpoint: the portable XLA form, or the native kernels."""
    sets = tuple(load_library(None).sets) if native else ("",)
    model, ops, modules = FastModel(checkpoint, native), FastOps(sets), FastModules(native)
    form = f"kernels: {', '.join(sets)}" if native else "portable XLA form"
    return Subject(
        name="planish",
        form=form,
        model=model,
        steps=model,
        modules=modules,
        ops=ops,
        codes=None if native else ops,
        slots=ops if native else None,
    )


def run_compiled(
    function: Callable[..., Any], *arguments: Any, static: tuple[int, ...] = ()
) -> Any:
    """Compile one of the engine's functions, call it, and return its results as NumPy arrays."""
    return jax.tree.map(np.asarray, jax.jit(function, static_argnums=static)(*arguments))


def run_array(
    function: Callable[..., Any], *arguments: Any, static: tuple[int, ...] = ()
) -> np.ndarray:
    """The same for a function of one result."""
    found: np.ndarray = run_compiled(function, *arguments, static=static)
    return found


def run_sequence(
    function: Callable[..., Any], *arguments: Any, static: tuple[int, ...] = ()
) -> np.ndarray:
    """The same for one sequence: the first row of the batch."""
    first: np.ndarray = run_compiled(function, *arguments, static=static)[0]
    return first


class FastModel:
    """The engine itself, opened at the first question."""

    def __init__(self, checkpoint: Checkpoint, native: bool):
        self.checkpoint, self.native = checkpoint, native

    @cached_property
    def engine(self) -> Engine:
        return Engine(self.checkpoint, self.native)

    def forward(self, tokens: Sequence[int]) -> np.ndarray:
        return self.engine.forward(tokens)

    def prefill(self, tokens: Sequence[int], slots: int) -> tuple[np.ndarray, KVCache]:
        logits = []
        for chunk, cache in self.engine.prefill(tokens, slots, all_logits=True):
            logits.append(chunk)
            state = cache
        return np.concatenate(logits), state

    def prefill_batch(
        self, prompts: Sequence[Sequence[int]], new_tokens: int
    ) -> tuple[np.ndarray, KVCache]:
        return self.engine.prefill_batch(prompts, Stop(new_tokens))

    def step(
        self, tokens: np.ndarray, positions: np.ndarray, state: KVCache
    ) -> tuple[np.ndarray, KVCache]:
        return self.engine.decode_step(tokens, positions, state)

    def generate(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> list[list[int]]:
        found: list[list[int]] = [[] for _ in prompts]
        stop = Stop(new_tokens, ignore_eos=True)
        for row, token in self.engine.generate(prompts, stop, Sampling()):
            found[row].append(token)
        return found

    def capacity(self, state: KVCache) -> int:
        return state.slots

    def slots(self, state: KVCache) -> list[Slots]:
        config, blocks = self.checkpoint.config, self.engine.weights.blocks
        pairs = zip(state.layers, blocks, strict=True)
        return [read_slots(x, config.head_dim, static_scales(config, block)) for x, block in pairs]


class FastModules:
    """The functions of fast/model/transformer.py with one of the two backends."""

    def __init__(self, native: bool):
        self.place = Placer(native)
        self.backend: Backend = native_backend if native else xla_backend

    def fuses(self, linears: Sequence[Linear]) -> bool:
        return self.place.fuses(linears)

    def embed(self, config: ModelConfig, weights: Weights, tokens: np.ndarray) -> np.ndarray:
        outer = self.place(replace(weights, blocks=()))
        given = tokens.astype(np.int32)[None], np.arange(len(tokens), dtype=np.int32)[None]
        embed = fast_transformer.embed
        return run_sequence(embed, config, outer, *given, self.backend, static=(0, 4))

    def unembed(self, config: ModelConfig, weights: Weights, x: np.ndarray) -> np.ndarray:
        outer = self.place(replace(weights, blocks=()))
        given = config, outer, x[None], self.backend
        return run_sequence(fast_transformer.unembed, *given, static=(0, 3))

    def normalize(self, norm: Norm, x: np.ndarray) -> np.ndarray:
        return run_sequence(self.backend.normalize, x[None], self.place(norm))

    def project(
        self, norm: Norm | None, linears: Sequence[Linear], x: np.ndarray
    ) -> list[np.ndarray]:
        given = wrap_normed(x, self.place(norm)), tuple(map(self.place, linears))
        return [y[0] for y in run_compiled(self.backend.project, *given)]

    def linear(self, x: np.ndarray, linear: Linear) -> np.ndarray:
        return run_sequence(self.backend.linear, x[None], self.place(linear))

    def attend(
        self, config: ModelConfig, block: Block, x: np.ndarray, residual: np.ndarray | None = None
    ) -> tuple[np.ndarray, Slots]:
        past = self.backend.empty_layer(config, 1, len(x))
        added = None if residual is None else residual[None]
        given = self.place(block), wrap_normed(x), make_positions(config, len(x)), past
        last = self.backend, added
        y, past = run_compiled(fast_transformer.attend, config, *given, *last, static=(0, 5))
        return y[0], read_slots(past, config.head_dim, static_scales(config, block))

    def mlp(
        self, config: ModelConfig, mlp: Mlp, x: np.ndarray, residual: np.ndarray | None = None
    ) -> np.ndarray:
        given = wrap_normed(x), self.backend, None if residual is None else residual[None]
        return run_sequence(fast_transformer.mlp, config, self.place(mlp), *given, static=(0, 3))

    def route(
        self, config: ModelConfig, experts: Experts, x: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        placed = self.place(experts)
        route = native_moe.route_normed if is_native(placed.up) else xla_moe.route_normed
        _, weights, chosen = run_compiled(route, config, placed, wrap_normed(x), static=(0,))
        return weights, chosen

    def mixture(self, config: ModelConfig, experts: Experts, x: np.ndarray) -> np.ndarray:
        given = config, self.place(experts), wrap_normed(x)
        return run_sequence(self.backend.moe, *given, static=(0,))

    def expert(self, config: ModelConfig, expert: Mlp, x: np.ndarray) -> np.ndarray:
        """The expert as the only one of a mixture, so that its routing weight is exactly 1."""
        only = replace(require_moe(config), num_experts=1, top_k=1)
        alone = replace(config, moe=only)
        router = Linear(np.zeros((1, x.shape[1]), np.float32))
        placed = self.place(Experts(router, [expert]))
        if is_native(placed.up):
            return run_sequence(native_moe.mixture, alone, placed, wrap_normed(x), static=(0,))
        given = np.int32(0), x, np.ones(len(x), bool)
        return run_array(xla_moe.one_expert, config, placed, *given, static=(0,))

    def block(self, config: ModelConfig, block: Block, x: np.ndarray) -> np.ndarray:
        given = x[None], make_positions(config, len(x)), self.backend
        run = fast_transformer.run_block
        return run_sequence(run, config, self.place(block), *given, static=(0, 4))


class FastOps:
    """One linear in the portable form, with its codes, or by each instruction set."""

    def __init__(self, variants: tuple[str, ...]):
        self.variants, self.place = variants, Placer(bool(variants[0]))

    def fuses(self, linears: Sequence[Linear]) -> bool:
        return self.place.fuses(linears)

    def weight(self, linear: Linear) -> dict[str, np.ndarray]:
        placed = self.place(linear)
        others = {name: getattr(placed, name) for name in BESIDE}
        found = read_weight(placed) | {name: x for name, x in others.items() if x is not None}
        return {name: np.asarray(array) for name, array in found.items()}

    def linear(
        self,
        x: np.ndarray,
        linear: Linear,
        residual: np.ndarray | None = None,
        variant: str = "",
    ) -> np.ndarray:
        if not self.fuses([linear]):
            return run_array(fast_linear.linear, x, self.place(linear), residual)
        return run_array(run_kernel, x, self.place(linear), residual, variant, static=(3,))

    def int8_scale(self, absmax: np.ndarray) -> np.ndarray:
        return run_array(fast_grids.int8_scale, absmax)

    def activation_codes(self, x: np.ndarray, linear: Linear) -> tuple[np.ndarray, np.ndarray]:
        weight = quantized_weight(linear)
        if weight.scheme.bits == 8:
            nothing = np.zeros(0)  # one program serves every weight
            weight = replace(weight, codes=nothing, scale=nothing, shape=(0, 0))
            bare = replace(linear, weight=weight, bias=None)
            codes, scale = run_compiled(fast_linear.quantize_activations, x[None], bare)
            return codes[0], scale
        given = to_groups(x, weight.scheme.group_size), linear.activation
        codes, scale = run_compiled(fast_linear.quantize_groups, *given, static=(1,))
        return codes.reshape(len(x), -1)[:, : x.shape[1]], scale[:, :, 0]

    def integer_product(self, x: np.ndarray, w: np.ndarray) -> np.ndarray:
        return run_array(fast_linear.integer_product, x, w)

    def group_sums(self, codes: np.ndarray, linear: Linear, groups: int) -> np.ndarray:
        weight = np.asarray(self.place(linear).weight.codes)[:groups]  # [G, N, g]
        _, outputs, size = weight.shape
        split = to_groups(codes[:, : groups * size], size)
        placed = QuantizedWeight(
            codes=weight,
            scale=np.ones((groups, outputs), np.float32),
            scheme=int4(activation="per_group"),
            shape=(outputs, groups * size),
            layout="grouped",
        )
        ones = np.ones((len(codes), groups, 1), np.float32)
        return run_array(fast_linear.int4_rows, split, ones, placed)

    def attention(self, call: AttentionCall, variant: str) -> tuple[np.ndarray, Slots]:
        tables: Any = () if call.tables is None else (call.tables,)
        positions = Positions(jnp.asarray(call.positions), tables)
        given = (call.q, call.k, call.v), positions, place_slots(call)
        kernel, config = native_attention.cached_attention, make_attention_config(call)
        mixed, past = run_compiled(kernel, *given, config, call.scales, variant, static=(3, 5))
        return mixed, read_slots(past, call.head_dim, call.scales)


def static_scales(config: ModelConfig, block: Block) -> AttentionScales | None:
    """The calibrated scales of a layer's attention, if the cache is static."""
    return block.attention_scales if config.kv_cache == "int8_static" else None


def run_kernel(x: jax.Array, layer: Linear, residual: jax.Array | None, isa: str) -> jax.Array:
    """Run one instruction set's kernel; one function, so that equal shapes are compiled once."""
    return native_linear.linears(x, (layer,), residual=residual, isa=isa)[0]


def wrap_normed(x: np.ndarray, norm: Norm | None = None) -> Normed:
    """norm(x) of one sequence x [T, D], in the form that the transformer passes to a backend."""
    return Normed(jnp.asarray(x)[None], norm)


def make_positions(config: ModelConfig, length: int) -> Positions:
    """Positions of a whole sequence, and the rotary tables, which the reference computes for the
    engine too."""
    tables: Any = tuple(rotations(rope, np.arange(length), length) for rope in config.ropes)
    return Positions(jnp.arange(length, dtype=jnp.int32)[None], tables)


def place_slots(call: AttentionCall) -> TiledSlots | CodedSlots:
    """The cache of an attention call, in the kernels' tiles."""
    tile, form = (tile_codes, CodedSlots) if call.int8 else (tile_keys, TiledSlots)
    arrays: Any = dict(zip(FIELDS, (*tile(*call.past[:2]), *call.past[2:]), strict=False))
    return form(**arrays)


def make_attention_config(call: AttentionCall) -> AttentionConfig:
    """What the engine knows about an attention call before it sees tokens."""
    rope = Rope(theta=1.0, dim=call.head_dim, interleaved=call.interleaved)
    return AttentionConfig(
        kv_heads=call.kv_heads,
        head_dim=call.head_dim,
        divisor=math.sqrt(call.head_dim),
        rope=None if call.tables is None else rope,
        table=None if call.tables is None else 0,
        window=call.window,
        alibi=call.alibi,
        cap=call.cap,
    )
