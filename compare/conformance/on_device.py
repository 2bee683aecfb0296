"""The engine's side of a comparison: what it has on its device, what its functions give there.

A weight is placed in the form that runs: for XLA as fast/weights.py converts it, for the native
kernels in tiles. Either form is read back here, so that it can be held against what is stored.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from planish.fast.model import weights as fast_weights
from planish.fast.model.backend import Backend, Normed, Positions
from planish.fast.native import backend as native_backend
from planish.fast.native import linear as native_linear
from planish.fast.xla import backend as xla_backend
from planish.fast.xla import linear as fast_linear
from planish.reference.linear import Linear
from planish.reference.model.layers import Norm
from planish.reference.model.weights import Experts
from planish.reference.quantized import QuantizedWeight, centred_codes, to_layout

Sets = tuple[str, ...]  # instruction sets whose kernels are judged, the default first; () is XLA


def backend_of(native: bool) -> Backend:
    return native_backend if native else xla_backend


def normed(x: np.ndarray, norm: Norm | None = None) -> Normed:
    """norm(x) of one sequence x [T, D] as the engine hands it on."""
    return Normed(jnp.asarray(x)[None], norm)


def positions_of(index: np.ndarray, tables: Any = ()) -> Positions:
    """Positions [B, T] and rotary tables as the engine hands them on."""
    return Positions(jnp.asarray(index, jnp.int32), tables)


def place(tree: Any, native: bool = False) -> Any:
    """A linear, a norm or a block as the engine places it on its device; `native`: in tiles."""
    return jax.device_put(fast_weights.place_block(in_tiles(tree) if native else tree))


def in_tiles(tree: Any) -> Any:
    """The tree with every quantized weight in the order in which the kernels read it."""

    def is_leaf(leaf: Any) -> bool:
        return isinstance(leaf, QuantizedWeight | Experts)

    def convert(leaf: Any) -> Any:
        if isinstance(leaf, Experts):
            return Experts(leaf.router, [in_tiles(expert) for expert in leaf.experts])
        return to_layout(leaf, "tiles") if isinstance(leaf, QuantizedWeight) else leaf

    return jax.tree.map(convert, tree, is_leaf=is_leaf)


def is_native(placed: Linear) -> bool:
    """Whether the kernels compute this linear; one in floats is XLA's in both forms."""
    return native_linear.is_tiled(placed)


def computed(function: Callable[..., Any], *arguments: Any, static: tuple[int, ...] = ()) -> Any:
    """What one of the engine's functions gives when it is compiled, as NumPy arrays."""
    return jax.tree.map(np.asarray, jax.jit(function, static_argnums=static)(*arguments))


def kernel_output(x: np.ndarray, placed: Linear, isa: str) -> np.ndarray:
    """One linear of x [T, K] by the kernels of one instruction set -> [T, N]."""
    return computed(one_linear, x[None], placed, isa, static=(2,))[0]


def one_linear(x: jax.Array, layer: Linear, isa: str) -> jax.Array:
    """A kernel by name, as one function, so that equal shapes are compiled once."""
    return native_linear.linears(x, (layer,), isa=isa)[0]


def portable_output(x: np.ndarray, placed: Linear) -> np.ndarray:
    """One linear of x [T, K] as the model calls it -> [T, N]."""
    return computed(fast_linear.linear, x[None], placed)[0]


def placed_weight(weight: Any, placed: Any) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """What each array of a placed weight should hold, and what it holds."""
    if not isinstance(weight, QuantizedWeight):
        return {"values": (weight, np.asarray(placed))}
    codes, scale = centred_codes(weight), weight.scale.astype(np.float32)
    if placed.layout == "tiles":
        back = to_layout(jax.tree.map(np.asarray, placed), "canonical")
        centred = centred_codes(back)
        return {"codes": (codes, centred), "scale": (scale, back.scale.astype(np.float32))}
    found, found_scale = np.asarray(placed.codes), np.asarray(placed.scale)
    if placed.layout == "grouped":  # [G, N, g] and [G, N]
        rows, k = weight.shape
        found, found_scale = found.transpose(1, 0, 2).reshape(rows, -1), found_scale.T
        codes = np.pad(codes, ((0, 0), (0, found.shape[1] - k)))
    if placed.layout == "centred":
        scale = np.broadcast_to(scale, found_scale.shape)
    return {"codes": (codes, found), "scale": (scale, found_scale)}
