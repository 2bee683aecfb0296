"""Experts that lie one behind the other: one tensor for each of their parts, not for each expert.

A linear whose arrays have an axis of experts in front holds all the experts' linears: codes
[E, N, K] for [N, K], a bias [E, N] for [N]. It is what a quantized directory stores and what the
engine reads; an expert is a slice of it, and slices are views.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, overload

import numpy as np

from planish.reference.files.formats.planish import in_form
from planish.reference.linear import Linear, QuantizedWeight, TiledWeight
from planish.reference.model.weights import Mlp

ARRAYS = ("codes", "scale", "zero_point")  # of a quantized weight


def linear_of(stack: Linear, index: int) -> Linear:
    """One expert's linear out of a stack of them, as views."""
    return _each([stack], lambda arrays: arrays[0][index])


def stacked(linears: Sequence[Linear]) -> Linear:
    """Linears that are alike in everything but their numbers -> one, with an axis in front."""
    return _each(linears, np.stack)


def _each(linears: Sequence[Linear], change: Callable[[list[Any]], np.ndarray]) -> Linear:
    """A linear each of whose arrays is made of the same array of all the linears."""

    def made(owners: Sequence[Any], names: tuple[str, ...]) -> dict[str, Any]:
        found = {name: [getattr(owner, name) for owner in owners] for name in names}
        return {name: None if a[0] is None else change(a) for name, a in found.items()}

    weights = [layer.weight for layer in linears]
    first: Any = weights[0]
    quantized = isinstance(first, QuantizedWeight | TiledWeight)
    weight = replace(first, **made(weights, ARRAYS)) if quantized else change(weights)
    return replace(linears[0], weight=weight, **made(linears, ("bias", "activation_scale")))


@dataclass(frozen=True)
class Stack(Sequence[Mlp]):
    """Quantized experts, `whole` as they lie on disk; each comes out in tiles or canonical."""

    whole: Mlp  # of stacked linears
    tiled: bool

    def __len__(self) -> int:
        weight: Any = self.whole.up.weight
        return len(weight.codes)

    @overload
    def __getitem__(self, index: int) -> Mlp: ...
    @overload
    def __getitem__(self, index: slice) -> list[Mlp]: ...
    def __getitem__(self, index: int | slice) -> Mlp | list[Mlp]:
        chosen = range(len(self))[index]
        return self._expert(chosen) if isinstance(chosen, int) else [*map(self._expert, chosen)]

    def _expert(self, index: int) -> Mlp:
        return _each_part([self.whole], lambda parts: self._formed(linear_of(parts[0], index)))

    def _formed(self, layer: Linear) -> Linear:
        weight: Any = layer.weight
        return replace(layer, weight=in_form(weight, self.tiled))


def _each_part(mlps: Sequence[Mlp], change: Callable[[list[Any]], Linear]) -> Mlp:
    """An MLP each of whose parts is made of the same part of all the MLPs."""
    parts = {name: [getattr(mlp, name) for mlp in mlps] for name in ("gate", "up", "down")}
    gate = None if parts["gate"][0] is None else change(parts["gate"])
    return Mlp(gate, change(parts["up"]), change(parts["down"]))


def together(experts: Sequence[Mlp]) -> Mlp:
    """All experts' linears as stacks, in the form that the experts have; a view if they lie so."""
    if isinstance(experts, Stack):
        if isinstance(experts.whole.up.weight, TiledWeight) == experts.tiled:
            return experts.whole
    return _each_part(list(experts), stacked)
