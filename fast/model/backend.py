"""What the transformer asks of a backend: seven functions, and a cache that two of them share.

    project     every linear that reads one norm                        q, k, v; up of a plain MLP
    linear      one linear + residual                                   o, down, lm_head
    gated       act(gate n) * up n                                      the first half of an MLP
    attention   rotation, the cache's new slots, softmax(q kt / d) v
    moe         a mixture of experts, routing included
    normalize   a norm that no linear reads                             of heads, of outputs
    sample      logits to tokens, on the device

fast/xla/backend.py is portable. fast/native/backend.py uses the C++ kernels where it can; one of
their calls takes a norm, all the linears that read it, and a residual. So the transformer passes a
norm to the linears: see Normed.

B sequences, T tokens, D model width, H query heads, K key-value heads, Hd head width, S slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import jax

from planish.fast.model.cache import KVCache, LayerCache
from planish.reference.linear import Linear
from planish.reference.model.attention import AttentionScales
from planish.reference.model.config import Alibi, LayerKind, ModelConfig
from planish.reference.model.layers import Norm
from planish.reference.model.rope import Rope
from planish.reference.text.sampling import Sampling

Tables = tuple[tuple[jax.Array, jax.Array], ...]  # of each rope: cos and sin [slots, dim / 2]
QKV = tuple[jax.Array, jax.Array, jax.Array]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Normed:
    """norm(raw), not yet computed: a kernel normalizes in the call of the linears that read it."""

    raw: jax.Array  # [B, T, D]
    norm: Norm | None = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Positions:
    """The position of each new token, which is also its slot (modulo S in a ring), and all rotary
    tables.

    Where a cache is of pages, tokens may be of any of its rows: see fast/session/pages.py.
    """

    index: jax.Array  # int32 [B, T], or [B] if each row gets one token
    tables: Tables = ()
    rows: jax.Array | None = None  # int32 [B * T], -1 for padding
    pages: jax.Array | None = None  # int32 [R, pages of a row]

    def slots(self, cache: KVCache) -> int:
        """The slots of a row."""
        pages = 1 if self.pages is None else int(self.pages.shape[1])
        return pages * cache.slots


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Draw:
    """How several tokens of each row are sampled, and which of them end a row."""

    sampling: jax.Array  # int32 [B, 5]: native.sampling.pack_settings of each row
    uniform: jax.Array  # int32 [steps, B, 2]: float64 random numbers, native.sampling.as_int32
    ends: jax.Array  # int32 [B, E] token ids
    count: jax.Array  # int32, at most `steps`


@dataclass(frozen=True, kw_only=True)
class AttentionConfig:
    """The options of one layer's attention; none depends on the tokens."""

    kv_heads: int
    head_dim: int
    divisor: float  # of the scores
    rope: Rope | None = None
    table: int | None = None  # index in Positions.tables
    window: int | None = None
    alibi: Alibi | None = None
    cap: float | None = None  # of the scores
    int8: bool = False  # both products on codes (SPEC 3); static if the layer's scales are given


def attention_config(config: ModelConfig, kind: LayerKind) -> AttentionConfig:
    """The attention of a layer of this kind."""
    return AttentionConfig(
        kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        divisor=kind.score_divisor,
        rope=None if kind.rope is None else config.ropes[kind.rope],
        table=kind.rope,
        window=kind.window,
        alibi=config.alibi,
        cap=config.score_cap,
        int8=config.attention == "int8",
    )


class Backend(Protocol):
    """A module with these functions; jit takes it as a static argument."""

    def project(self, x: Normed, layers: Sequence[Linear], /) -> tuple[jax.Array, ...]:
        """Every linear of x [B, T, D] -> [B, T, N_i] each."""

    def linear(
        self, x: jax.Array, layer: Linear, residual: jax.Array | None = None, /
    ) -> jax.Array:
        """y = x Wt + b (+ residual), x [B, T, K] -> [B, T, N]."""

    def gated(self, x: Normed, gate: Linear, up: Linear, activation: str, /) -> jax.Array:
        """act(gate x) * up x -> [B, T, F]."""

    def attention(
        self,
        qkv: QKV,
        positions: Positions,
        past: Any,
        config: AttentionConfig,
        scales: AttentionScales | None = None,
        /,
    ) -> tuple[jax.Array, Any]:
        """q [B, T, H * Hd], k and v [B, T, K * Hd], not yet rotated -> [B, T, H * Hd], and the
        slots with the new keys and values. scales: of a static INT8 cache, float32 [1] each."""

    def moe(
        self, config: ModelConfig, weights: Any, x: Normed, residual: jax.Array | None = None, /
    ) -> jax.Array:
        """Each token of x through its top experts, weighted by the router, + residual."""

    def normalize(self, x: jax.Array, norm: Norm | None, /) -> jax.Array:
        """norm(x) over the last axis of x [B, T, ..., D]; x itself if norm is None."""

    def sample(self, logits: jax.Array, sampling: jax.Array, uniform: jax.Array, /) -> jax.Array:
        """The next token of each row of logits [B, V] -> int32 [B]; -1 if they are not numbers.
        sampling and uniform [B, 2] as in Draw."""

    def can_sample(self, sampling: Sampling, /) -> bool:
        """Whether `sample` draws the reference's tokens; if not, the host samples."""

    def empty_layer(self, config: ModelConfig, batch: int, slots: int, /) -> LayerCache:
        """One layer's slots, all zeros, in the form that `attention` reads and writes."""
