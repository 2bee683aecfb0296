"""A quantized candidate, and mixtures of it: some linears wider than the recipe has them.

    base        a directory of one recipe, and how its methods rescaled the float blocks
    mixture     the base, in which some linears have another scheme, or none

A wider linear is rounded to nearest from the rescaled float weights; all others keep the base's
codes. So a mixture costs no second quantization, and is written by copying.

A linear's key is its layer and its name in the block; `experts.gate` means all experts' gates,
which share a scheme.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, overload

import numpy as np

from planish.compare.quality.rescaling import NOTHING, Rescaling, Rescalings, rescale_block
from planish.reference.files.load import Checkpoint, load_block, load_weights
from planish.reference.linear import Linear
from planish.reference.model.shapes import block_shapes
from planish.reference.model.weights import (
    Block,
    Weights,
    block_linears,
    block_norms,
    replace_modules,
    split_expert,
)
from planish.reference.quantize.methods.rtn import quantize_weight
from planish.reference.quantize.recipe import Recipe
from planish.reference.quantize.schemes import block_schemes
from planish.reference.quantized import to_layout
from planish.reference.scheme import Scheme

Key = tuple[int, str]  # a layer, and a linear's name in its block without an expert's number
Changes = Mapping[Key, Scheme | None]


@dataclass(frozen=True, kw_only=True)
class Base:
    """One quantized candidate.

    rescalings: of each layer; empty if the recipe's methods change no float weight.
    """

    source: Checkpoint
    quantized: Checkpoint
    recipe: Recipe
    rescalings: Sequence[Rescalings] = ()

    @cached_property
    def schemes(self) -> dict[Key, Scheme | None]:
        """The scheme of every linear of the blocks, but for routers."""
        return {
            (layer, split_expert(part)[0]): scheme
            for layer in range(self.source.config.num_layers)
            for part, scheme in block_schemes(self.source, self.recipe, layer).items()
            if part != "router"
        }

    @cached_property
    def sizes(self) -> dict[Key, tuple[int, int, int]]:
        """Outputs and inputs of each of these linears, and how many there are: experts."""
        found: dict[Key, tuple[int, int, int]] = {}
        for layer in range(self.source.config.num_layers):
            for part, ((rows, cols), _) in block_shapes(self.source.config, layer).items():
                key = layer, split_expert(part)[0]
                if part != "router":
                    found[key] = rows, cols, found.get(key, (0, 0, 0))[2] + 1
        return found

    def float_block(self, layer: int) -> Block:
        """The float block that was rounded, without the clipping of a method."""
        block = load_block(self.source, layer)
        if not self.rescalings:
            return block
        norms = block_norms(load_block(self.quantized, layer))
        return rescale_block(block, norms, self.rescalings[layer])

    def float_linear(self, layer: int, part: str, linear: Linear) -> Linear:
        """One linear of the source as it was rounded, without the clipping of a method."""
        return self.rescaling(layer, part).apply(linear)

    def rescaling(self, layer: int, part: str) -> Rescaling:
        """The scales of one linear."""
        return self.rescalings[layer].get(part, NOTHING) if self.rescalings else NOTHING

    def float_weights(self) -> Weights:
        """The float model, its blocks as they were rounded."""
        return replace(load_weights(self.source), blocks=LazyBlocks(self, self.float_block))


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """A base with other schemes for some of its linears, None for float."""

    base: Base
    changes: Changes = field(default_factory=dict)

    @cached_property
    def schemes(self) -> dict[Key, Scheme | None]:
        """The scheme of every linear of the blocks, but for routers."""
        return {**self.base.schemes, **self.changes}

    def weights(self, tiled: bool = False) -> Weights:
        """The model with lazy blocks; tiled: quantized weights as the kernels read them."""
        whole = load_weights(self.base.quantized, tiled)
        return replace(whole, blocks=LazyBlocks(self.base, lambda i: self.block(i, tiled)))

    def block(self, layer: int, tiled: bool = False) -> Block:
        """One block."""
        block = load_block(self.base.quantized, layer, tiled)
        changed = self.changed_linears(layer, block_linears(block), "tiles" if tiled else None)
        return replace_modules(block, changed) if changed else block

    def changed_linears(
        self, layer: int, linears: Mapping[str, Linear], layout: str | None = None
    ) -> dict[str, Linear]:
        """The linears of a block that have another scheme than the base; linears: the base's."""
        wanted = [part for part in linears if (layer, split_expert(part)[0]) in self.changes]
        if not wanted:
            return {}
        source = block_linears(load_block(self.base.source, layer))
        found = {}
        for part in wanted:
            scheme = self.changes[layer, split_expert(part)[0]]
            layer_ = self.base.float_linear(layer, part, source[part])
            found[part] = widen(layer_, scheme, layout or "canonical")
        return found


class LazyBlocks(Sequence[Block]):
    """Blocks that are made when they are indexed."""

    def __init__(self, base: Base, make: Any):
        self.layers, self.make = base.source.config.num_layers, make

    def __len__(self) -> int:
        return self.layers

    @overload
    def __getitem__(self, index: int) -> Block: ...
    @overload
    def __getitem__(self, index: slice) -> list[Block]: ...
    def __getitem__(self, index: int | slice) -> Block | list[Block]:
        chosen = range(self.layers)[index]
        return self.make(chosen) if isinstance(chosen, int) else [self.make(i) for i in chosen]


def widen(layer: Linear, scheme: Scheme | None, layout: str) -> Linear:
    """A float linear under a scheme, rounded to nearest; itself if that is None."""
    if scheme is None:
        return layer
    weight = quantize_weight(np.asarray(layer.weight), scheme)
    return replace(layer, weight=to_layout(weight, layout), activation_scale=None)
