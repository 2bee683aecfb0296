"""What can be judged: a subject is an engine that answers some of these questions in NumPy arrays.

Each group of questions is a protocol. A protocol that a subject does not implement is not judged:

    model     logits of a sequence                                        level 3
    steps     a cache that grows: prefill, single steps, a batch, greedy  level 3
    blocks    each block, given the hidden states that enter it           level 2
    modules   each module of a block, given what enters it                level 2
    ops       one linear                                                  level 1
    codes     the integers inside a linear, where they can be seen        level 1
    slots     attention over a given cache                                level 1

Arguments are of the reference's types (Linear, Block, ModelConfig), so a subject is free to store a
weight in any way and to compute several modules in one call. planish's own engine is
conformance/fast_engine.py, the models of transformers are conformance/hugging_face.py.

B sequences, T tokens, D model width, K inputs, N outputs, H query heads, G key-value heads, Hd
head width, S cache slots, E experts, V vocabulary. Arrays are float32 unless another type is named.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from planish.reference.linear import Linear
from planish.reference.model.attention import AttentionScales
from planish.reference.model.config import Alibi, ModelConfig
from planish.reference.model.layers import Norm
from planish.reference.model.weights import Block, Experts, Mlp, Weights

Slots = Sequence[np.ndarray]
"""One layer's cache: keys and values [B, G, S, Hd]; of int8 codes also their scales [B, G, S]."""


class Model(Protocol):
    """Level 3, the least that a subject must answer."""

    def forward(self, tokens: Sequence[int]) -> np.ndarray:
        """Logits [T, V] of every token of one sequence."""


class Steps(Protocol):
    """Level 3 with a cache. A state is opaque to the judge; one that is passed in is consumed."""

    def prefill(self, tokens: Sequence[int], slots: int) -> tuple[np.ndarray, Any]:
        """Logits [T, V] of a prompt, and the state after it, with room for `slots` tokens."""

    def prefill_batch(
        self, prompts: Sequence[Sequence[int]], new_tokens: int
    ) -> tuple[np.ndarray, Any]:
        """Logits [B, V] of each prompt's last token, and one state for all of them."""

    def step(self, tokens: np.ndarray, positions: np.ndarray, state: Any) -> tuple[np.ndarray, Any]:
        """Logits [B, V] after one more token for each row, tokens and positions int [B]."""

    def generate(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> list[list[int]]:
        """The greedy continuation of each prompt, end-of-text tokens ignored."""

    def capacity(self, state: Any) -> int:
        """Slots of a state."""

    def slots(self, state: Any) -> list[Slots]:
        """The contents of a state, layer by layer, keys rotated."""


class Blocks(Protocol):
    """Level 2, coarsely: whole blocks."""

    def blocks(self, tokens: Sequence[int], hidden: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The embeddings of tokens, then each block's output for hidden[i], [T, D] each."""


class Modules(Protocol):
    """Level 2: the modules of a block, for one sequence x [T, D]."""

    def fuses(self, linears: Sequence[Linear]) -> bool:
        """Whether one native call computes these linears, the norm before, the residual after.

        Where such a call takes its activations in INT8 its results must be equal bit for bit.
        """

    def embed(self, config: ModelConfig, weights: Weights, tokens: np.ndarray) -> np.ndarray:
        """Embeddings [T, D] of the first tokens [T] of a sequence."""

    def unembed(self, config: ModelConfig, weights: Weights, x: np.ndarray) -> np.ndarray:
        """Final norm and lm_head: logits [T, V]."""

    def normalize(self, norm: Norm, x: np.ndarray) -> np.ndarray:
        """A norm whose output no linear reads."""

    def project(
        self, norm: Norm | None, linears: Sequence[Linear], x: np.ndarray
    ) -> list[np.ndarray]:
        """All linears that read norm(x), as the model calls them: [T, N] each."""

    def linear(self, x: np.ndarray, linear: Linear) -> np.ndarray:
        """One linear, as the model calls o_proj, down_proj and a router: [T, N]."""

    def attend(
        self, config: ModelConfig, block: Block, x: np.ndarray, residual: np.ndarray | None = None
    ) -> tuple[np.ndarray, Slots]:
        """Attention of normalized x with o_proj and the residual, and the slots that it wrote."""

    def mlp(
        self, config: ModelConfig, mlp: Mlp, x: np.ndarray, residual: np.ndarray | None = None
    ) -> np.ndarray:
        """The MLP of normalized x, with the residual added: [T, D]."""

    def route(
        self, config: ModelConfig, experts: Experts, x: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Routing weights [T, top_k] of normalized x, and the experts chosen, int [T, top_k]."""

    def mixture(self, config: ModelConfig, experts: Experts, x: np.ndarray) -> np.ndarray:
        """The mixture of experts of normalized x: [T, D]."""

    def expert(self, config: ModelConfig, expert: Mlp, x: np.ndarray) -> np.ndarray:
        """One expert of a mixture, computed by the mixture's code: [T, D]."""

    def block(self, config: ModelConfig, block: Block, x: np.ndarray) -> np.ndarray:
        """A whole block over a whole sequence: [T, D]."""


class Ops(Protocol):
    """Level 1: one linear on each instruction set of the subject; "" if it has one form only."""

    variants: tuple[str, ...]

    def fuses(self, linears: Sequence[Linear]) -> bool:
        """As in Modules: whether one native call computes them and shows only the outputs."""

    def weight(self, linear: Linear) -> dict[str, np.ndarray]:
        """Read back the weight that the subject stores.

        `values` [N, K], or `codes` q - z, int8 [N, K or more], and `scale` [N, G] or [1, 1]; also
        `bias`, `activation_scale` and `activation_zero_point` where there are any.
        """

    def linear(
        self,
        x: np.ndarray,
        linear: Linear,
        residual: np.ndarray | None = None,
        variant: str = "",
    ) -> np.ndarray:
        """y = x Wt + b + residual for x [B, T, K] -> [B, T, N]."""


class Codes(Protocol):
    """Level 1: the integers inside a linear."""

    def int8_scale(self, absmax: np.ndarray) -> np.ndarray:
        """max(absmax, 1e-5) / 127."""

    def activation_codes(self, x: np.ndarray, linear: Linear) -> tuple[np.ndarray, np.ndarray]:
        """Codes int8 of one sequence x [T, K], and their scale [T, 1 or G]."""

    def integer_product(self, x: np.ndarray, w: np.ndarray) -> np.ndarray:
        """sum_k x[t, k] w[n, k] of int8 -> int32 [T, N]."""

    def group_sums(self, codes: np.ndarray, linear: Linear, groups: int) -> np.ndarray:
        """Sums of codes [T, K] over the first groups of an INT4 weight, every scale 1: [T, N]."""


@dataclass(frozen=True, kw_only=True)
class AttentionCall:
    """New queries, keys and values, and the cache that they are written into and read.

    past: keys and values [B, G, S, Hd], and with int8 codes their scales [B, G, S]
    int8: both products are computed on codes; scales are the calibrated ones of q, k and v, if any,
    and then the past has no others.
    """

    q: np.ndarray  # [B, T, H * Hd], not yet rotated
    k: np.ndarray  # [B, T, G * Hd]
    v: np.ndarray  # [B, T, G * Hd]
    positions: np.ndarray  # int32 [B, T]
    tables: tuple[np.ndarray, np.ndarray] | None  # cos and sin [S, dim / 2]
    past: Slots
    kv_heads: int
    head_dim: int
    interleaved: bool = False
    window: int | None = None
    alibi: Alibi | None = None
    cap: float | None = None
    int8: bool = False
    scales: AttentionScales | None = None


class SlotAttention(Protocol):
    """Level 1: attention by itself."""

    def attention(self, call: AttentionCall, variant: str) -> tuple[np.ndarray, Slots]:
        """Rotate, write the cache, softmax(q kt / sqrt(Hd)) v: [B, T, H * Hd], and the cache.

        Every INT8 slot is returned with its scale, be it calibrated.
        """


@dataclass(frozen=True, kw_only=True)
class Subject:
    """An engine with a model, and which questions it answers."""

    name: str  # of the engine
    form: str  # how it computes, in a few words
    model: Model
    steps: Steps | None = None
    blocks: Blocks | None = None
    modules: Modules | None = None
    ops: Ops | None = None
    codes: Codes | None = None
    slots: SlotAttention | None = None

    @property
    def kernels(self) -> tuple[str, ...]:
        """The instruction sets that are judged; none where there is one form only."""
        return tuple(name for name in (self.ops.variants if self.ops else ()) if name)
