"""Where a scale can move without changing what a block computes (SPEC 3).

It follows from the config. A fold divides the output channels of its source by s and multiplies the
input channels of all linears that read them by s. SmoothQuant, AWQ and TEQ choose s in different
ways; where it can go is written here once.

A norm is a source if only linears read its output:

    pre, sandwich     attention_norm -> q k v        mlp_norm -> gate up, or a router and experts
    shared_norm       attention_norm -> q k v gate up
    post, output      none: the residual stream reads the norms' outputs

A linear is a source if a positive scale commutes with what comes between it and its reader:

    v -> o            attention does, clipped values (qkv_clip) do not
    up -> down        a gate does, and ReLU; GELU and SiLU without a gate do not
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from planish.reference.model.config import ModelConfig
from planish.reference.model.weights import Block, block_linears, split_expert


@dataclass(frozen=True)
class Fold:
    """A norm or a linear, and all the linears that read its output.

    `experts.gate` means every expert's. shared: query heads that read one channel of v and share
    its scale; they are consecutive heads of width `width` at o's input.
    """

    source: str
    linears: tuple[str, ...]
    shared: int = 1
    width: int = 1

    def by_source(self, per_input: np.ndarray) -> np.ndarray:
        """Per-input values [K] of a reader -> [channels of the source, inputs that share one]."""
        heads = per_input.reshape(-1, self.shared, self.width)
        return heads.transpose(0, 2, 1).reshape(-1, self.shared)

    def by_input(self, s: Any) -> Any:
        """A scale of the source's channels -> of the readers' inputs, [K]; NumPy or JAX."""
        if self.shared == 1:
            return s
        return s.reshape(-1, 1, self.width).repeat(self.shared, axis=1).reshape(-1)


def folds(config: ModelConfig) -> tuple[Fold, ...]:
    """The norms of a block whose output only linears read; a layer may lack some of the linears.

    A model with experts may have dense MLPs in other layers, so both kinds are named.
    """
    if not config.norms_before:
        return ()
    mlp = ("gate", "up") if config.gated_mlp else ("up",)
    if config.moe is not None:
        mlp = ("router", *(f"experts.{linear}" for linear in mlp), *mlp)
    attention = ("q", "k", "v")
    if config.shared_norm:
        return (Fold("attention_norm", (*attention, *mlp)),)
    return Fold("attention_norm", attention), Fold("mlp_norm", mlp)


def output_folds(config: ModelConfig) -> tuple[Fold, ...]:
    """The linears whose output channels can be scaled: v and up, or every expert's up."""
    found: tuple[Fold, ...] = ()
    if config.qkv_clip is None:
        shared = config.num_heads // config.num_kv_heads
        found = (Fold("v", ("o",), shared, config.head_dim),)
    if config.gated_mlp or config.activation == "relu":
        found += (Fold("up", ("down",)),)
        if config.moe is not None:
            found += (Fold("experts.up", ("experts.down",)),)
    return found


def block_folds(config: ModelConfig, block: Block, outputs: bool = True) -> list[Fold]:
    """The folds of one block by the names of its linears, in the order of execution.

    Each expert's up -> down is a fold; outputs=False leaves out the linears' folds.
    """
    general = folds(config) + (output_folds(config) if outputs else ())
    names = {name: split_expert(name) for name in block_linears(block)}
    found = [fold for each in general for fold in _name_linears(each, names)]
    order = list(names)
    return sorted(found, key=lambda fold: order.index(fold.linears[0]))


def _name_linears(fold: Fold, names: Mapping[str, tuple[str, int | None]]) -> Iterator[Fold]:
    """The fold by the names that a block has; one for each expert if an expert is its source."""
    sources = [name for name, (general, _) in names.items() if general == fold.source]
    for source in sources or [fold.source]:
        own = names[source][1] if source in names else None
        readers = tuple(
            name
            for name, (general, expert) in names.items()
            if general in fold.linears and own in (None, expert)
        )
        if readers:
            yield Fold(source, readers, fold.shared, fold.width)
