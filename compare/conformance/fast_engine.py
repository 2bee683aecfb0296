"""planish's own engine as a subject: all that the judge knows of fast/ is in this file.

The judge hands over the reference's types. Here a weight is placed on the device in the form that
runs, for XLA or in the native kernels' tiles, functions are compiled, and results come back as
NumPy arrays. The last few weights are kept, for the judge asks several questions about each.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from planish.compare.subject import AttentionCall, Slots, Subject
from planish.fast.model import layers as fast_layers
from planish.fast.model import transformer as fast_transformer
from planish.fast.model import weights as fast_weights
from planish.fast.model.backend import AttentionConfig, Backend, Normed, Positions
from planish.fast.model.cache import FIELDS, KVCache, LayerCache
from planish.fast.native import attention as native_attention
from planish.fast.native import backend as native_backend
from planish.fast.native import linear as native_linear
from planish.fast.native import moe as native_moe
from planish.fast.native.cache import KEY_SLOTS, TiledSlots
from planish.fast.native.library import load_library
from planish.fast.session.engine import Engine
from planish.fast.xla import backend as xla_backend
from planish.fast.xla import linear as fast_linear
from planish.fast.xla import moe as xla_moe
from planish.reference.files.load import Checkpoint
from planish.reference.grids import to_groups
from planish.reference.linear import Linear, quantized_weight
from planish.reference.model.config import ModelConfig
from planish.reference.model.layers import Norm
from planish.reference.model.rope import Rope, rotations
from planish.reference.model.weights import Block, Experts, Mlp, Weights
from planish.reference.quantized import QuantizedWeight, centred_codes, to_layout
from planish.reference.scheme import int4
from planish.reference.text.generate import Stop
from planish.reference.text.sampling import Sampling

MOST_KEPT = 16  # placed weights: those of a block


def fast_engine(checkpoint: Checkpoint, native: bool = False) -> Subject:
    """The engine on a checkpoint: the portable XLA form, or the native kernels."""
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


def computed(function: Callable[..., Any], *arguments: Any, static: tuple[int, ...] = ()) -> Any:
    """What one of the engine's functions gives when it is compiled, as NumPy arrays."""
    return jax.tree.map(np.asarray, jax.jit(function, static_argnums=static)(*arguments))


class Placer:
    """Weights as the engine places them on its device; `native`: quantized ones in tiles."""

    def __init__(self, native: bool):
        self.native = native
        self._kept: OrderedDict[int, tuple[Any, Any]] = OrderedDict()

    def __call__(self, tree: Any) -> Any:
        """A linear, a norm, a block or all outer weights."""
        return jax.tree.map(self._place, tree, is_leaf=lambda x: isinstance(x, Linear | Experts))

    def _place(self, leaf: Any) -> Any:
        if not isinstance(leaf, Linear | Experts):
            return jax.device_put(leaf)
        if id(leaf) not in self._kept:
            form = in_tiles(leaf) if self.native else leaf
            self._kept[id(leaf)] = leaf, jax.device_put(fast_weights.place_block(form))
        while len(self._kept) > MOST_KEPT:
            self._kept.popitem(last=False)
        return self._kept[id(leaf)][1]

    def fuses(self, linears: Sequence[Linear]) -> bool:
        """Whether one native call computes them all."""
        return self.native and native_linear.alike([self(linear) for linear in linears])


def in_tiles(tree: Any) -> Any:
    """The tree with every quantized weight in the order in which the kernels read it."""

    def is_leaf(leaf: Any) -> bool:
        return isinstance(leaf, QuantizedWeight | Experts)

    def convert(leaf: Any) -> Any:
        if isinstance(leaf, Experts):
            return Experts(leaf.router, [in_tiles(expert) for expert in leaf.experts])
        return to_layout(leaf, "tiles") if isinstance(leaf, QuantizedWeight) else leaf

    return jax.tree.map(convert, tree, is_leaf=is_leaf)


class FastModel:
    """The engine itself, made when it is first asked."""

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
        return [untiled(layer, self.checkpoint.config.head_dim) for layer in state.layers]


class FastModules:
    """The functions of fast/model/transformer.py, by one of the backends."""

    def __init__(self, native: bool):
        self.place = Placer(native)
        self.backend: Backend = native_backend if native else xla_backend

    def fuses(self, linears: Sequence[Linear]) -> bool:
        return self.place.fuses(linears)

    def embed(self, config: ModelConfig, weights: Weights, tokens: np.ndarray) -> np.ndarray:
        outer = self.place(replace(weights, blocks=()))
        given = tokens.astype(np.int32)[None], np.arange(len(tokens), dtype=np.int32)[None]
        embed = fast_transformer.embed
        return computed(embed, config, outer, *given, self.backend, static=(0, 4))[0]

    def unembed(self, config: ModelConfig, weights: Weights, x: np.ndarray) -> np.ndarray:
        outer = self.place(replace(weights, blocks=()))
        given = config, outer, x[None], self.backend
        return computed(fast_transformer.unembed, *given, static=(0, 3))[0]

    def normalize(self, norm: Norm, x: np.ndarray) -> np.ndarray:
        return computed(fast_layers.normalize, x[None], self.place(norm))[0]

    def project(
        self, norm: Norm | None, linears: Sequence[Linear], x: np.ndarray
    ) -> list[np.ndarray]:
        given = normed(x, self.place(norm)), tuple(map(self.place, linears))
        return [y[0] for y in computed(self.backend.project, *given)]

    def linear(self, x: np.ndarray, linear: Linear) -> np.ndarray:
        return computed(self.backend.linear, x[None], self.place(linear))[0]

    def attend(
        self, config: ModelConfig, block: Block, x: np.ndarray, residual: np.ndarray | None = None
    ) -> tuple[np.ndarray, Slots]:
        past = self.backend.empty_layer(config, 1, len(x))
        added = None if residual is None else residual[None]
        given = self.place(block), normed(x), positions_of(config, len(x)), past
        last = self.backend, added
        y, past = computed(fast_transformer.attend, config, *given, *last, static=(0, 5))
        return y[0], untiled(past, config.head_dim)

    def mlp(
        self, config: ModelConfig, mlp: Mlp, x: np.ndarray, residual: np.ndarray | None = None
    ) -> np.ndarray:
        given = normed(x), self.backend, None if residual is None else residual[None]
        return computed(fast_transformer.mlp, config, self.place(mlp), *given, static=(0, 3))[0]

    def route(
        self, config: ModelConfig, experts: Experts, x: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        placed = self.place(experts)
        route = native_moe.route_normed if is_native(placed.up) else xla_moe.route_normed
        _, shares, chosen = computed(route, config, placed, normed(x), static=(0,))
        return shares, chosen

    def mixture(self, config: ModelConfig, experts: Experts, x: np.ndarray) -> np.ndarray:
        return computed(self.backend.moe, config, self.place(experts), normed(x), static=(0,))[0]

    def expert(self, config: ModelConfig, expert: Mlp, x: np.ndarray) -> np.ndarray:
        """In a mixture that has no other, where its routing weight is exactly 1."""
        if config.moe is None:
            raise ValueError("the model has no experts")
        alone = replace(config, moe=replace(config.moe, num_experts=1, top_k=1))
        router = Linear(np.zeros((1, x.shape[1]), np.float32))
        placed = self.place(Experts(router, [expert]))
        if is_native(placed.up):
            return computed(native_moe.mixture, alone, placed, normed(x), static=(0,))[0]
        given = np.int32(0), x, np.ones(len(x), bool)
        return computed(xla_moe.one_expert, config, placed, *given, static=(0,))

    def block(self, config: ModelConfig, block: Block, x: np.ndarray) -> np.ndarray:
        given = x[None], positions_of(config, len(x)), self.backend
        run = fast_transformer.run_block
        return computed(run, config, self.place(block), *given, static=(0, 4))[0]


class FastOps:
    """One linear by the portable form or by each instruction set, and the codes of the former."""

    def __init__(self, variants: tuple[str, ...]):
        self.variants, self.place = variants, Placer(bool(variants[0]))

    def fuses(self, linears: Sequence[Linear]) -> bool:
        return self.place.fuses(linears)

    def weight(self, linear: Linear) -> dict[str, np.ndarray]:
        placed = self.place(linear)
        others = {name: getattr(placed, name) for name in ("bias", "activation_scale")}
        found = stored(placed) | {name: x for name, x in others.items() if x is not None}
        return {name: np.asarray(array) for name, array in found.items()}

    def linear(
        self,
        x: np.ndarray,
        linear: Linear,
        residual: np.ndarray | None = None,
        variant: str = "",
    ) -> np.ndarray:
        if not self.fuses([linear]):
            return computed(fast_linear.linear, x, self.place(linear), residual)
        return computed(one_kernel, x, self.place(linear), residual, variant, static=(3,))

    def int8_scale(self, absmax: np.ndarray) -> np.ndarray:
        return computed(fast_linear.int8_scale, absmax)

    def activation_codes(self, x: np.ndarray, linear: Linear) -> tuple[np.ndarray, np.ndarray]:
        weight = quantized_weight(linear)
        if weight.scheme.bits == 8:
            nothing = np.zeros(0)  # one program for every weight
            weight = replace(weight, codes=nothing, scale=nothing, shape=(0, 0))
            bare = replace(linear, weight=weight, bias=None)
            codes, scale = computed(fast_linear.quantize_activations, x[None], bare)
            return codes[0], scale
        given = to_groups(x, weight.scheme.group_size), linear.activation
        codes, scale = computed(fast_linear.quantize_groups, *given, static=(1,))
        return codes.reshape(len(x), -1)[:, : x.shape[1]], scale[:, :, 0]

    def integer_product(self, x: np.ndarray, w: np.ndarray) -> np.ndarray:
        return computed(fast_linear.integer_product, x, w)

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
        return computed(fast_linear.int4_rows, split, ones, placed)

    def attention(self, call: AttentionCall, variant: str) -> tuple[np.ndarray, Slots]:
        arrays: Any = dict(zip(FIELDS, (tiled(call.past[0]), *call.past[1:]), strict=False))
        turns: Any = () if call.tables is None else (call.tables,)
        positions = Positions(jnp.asarray(call.positions), turns)
        given = (call.q, call.k, call.v), positions, TiledSlots(**arrays)
        kernel, config = native_attention.cached_attention, attention_config(call)
        mixed, past = computed(kernel, *given, config, variant, static=(3, 4))
        return mixed, untiled(past, call.head_dim)


def one_kernel(x: jax.Array, layer: Linear, residual: jax.Array | None, isa: str) -> jax.Array:
    """A kernel by name, as one function, so that equal shapes are compiled once."""
    return native_linear.linears(x, (layer,), residual=residual, isa=isa)[0]


def is_native(placed: Linear) -> bool:
    """Whether the kernels compute this placed linear; one in floats is XLA's in both forms."""
    return native_linear.is_tiled(placed)


def stored(placed: Linear) -> dict[str, Any]:
    """The values, or the codes q - z and the scales, that a placed weight holds."""
    weight: Any = placed.weight
    if not isinstance(weight, QuantizedWeight):
        return {"values": weight}
    if weight.layout == "grouped":  # [G, N, g] and [G, N]
        codes = np.asarray(weight.codes).transpose(1, 0, 2)
        return {"codes": codes.reshape(len(codes), -1), "scale": np.asarray(weight.scale).T}
    if weight.layout == "tiles":
        back = to_layout(jax.tree.map(np.asarray, weight), "canonical")
        return {"codes": centred_codes(back), "scale": back.scale}
    return {"codes": weight.codes, "scale": weight.scale}


def normed(x: np.ndarray, norm: Norm | None = None) -> Normed:
    """norm(x) of one sequence x [T, D] as the transformer hands it on."""
    return Normed(jnp.asarray(x)[None], norm)


def positions_of(config: ModelConfig, length: int) -> Positions:
    """A whole sequence's, and the rotary tables, which the engine too takes from the reference."""
    tables: Any = tuple(rotations(rope, np.arange(length), length) for rope in config.ropes)
    return Positions(jnp.arange(length, dtype=jnp.int32)[None], tables)


def attention_config(call: AttentionCall) -> AttentionConfig:
    """What the engine would know of a call before its tokens."""
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


def tiled(keys: np.ndarray) -> np.ndarray:
    """Keys [B, G, S, Hd] -> [B, G, S / 16, Hd, 16], as the kernels read them."""
    batch, heads, slots, width = keys.shape
    split = keys.reshape(batch, heads, slots // KEY_SLOTS, KEY_SLOTS, width)
    return np.ascontiguousarray(split.swapaxes(3, 4))


def untiled(layer: LayerCache, head_dim: int) -> list[np.ndarray]:
    """One layer's arrays with keys as [B, G, S, Hd], and no longer in tiles of 16 slots.

    The tiles of a narrow head are padded with zeros.
    """
    arrays = [np.asarray(array) for array in layer.arrays]
    if isinstance(layer, TiledSlots):
        batch, heads, tiles, width, slots = arrays[0].shape
        keys = arrays[0].transpose(0, 1, 2, 4, 3)
        arrays[0] = keys.reshape(batch, heads, tiles * slots, width)[..., :head_dim]
        arrays[1] = arrays[1][..., :head_dim]
    return arrays
