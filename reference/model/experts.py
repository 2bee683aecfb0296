"""The experts of a layer in one array for each kind of tensor, not one for each expert.

A linear whose arrays have an axis of experts in front holds all the experts' linears: codes
[E, N, K] for [N, K], a bias [E, N] for [N]. It is what a quantized directory stores and what the
engine reads; an expert is a slice of it, and slices are views.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, overload

import numpy as np

from planish.reference.grids import SYMMETRIC_ZERO
from planish.reference.linear import Linear
from planish.reference.model.weights import Mlp
from planish.reference.quantized import QuantizedWeight, to_layout


def linear_of(stack: Linear, index: int) -> Linear:
    """One expert's linear out of a stack of them, as views."""
    return _combine([stack], lambda arrays: arrays[0][index])


def stacked(linears: Sequence[Linear]) -> Linear:
    """Linears that differ in nothing but their numbers -> one, with an axis in front.

    Raises ValueError where their schemes differ.
    """
    schemes = dict.fromkeys(layer.scheme for layer in linears)
    if len(schemes) > 1:
        raise ValueError(f"experts of one stack differ: {', '.join(map(str, schemes))}")
    return _combine(_with_zero_points(linears), np.stack)


def _with_zero_points(linears: Sequence[Linear]) -> Sequence[Linear]:
    """Zero points written out where only some of the linears have them stored."""
    weights: Any = [layer.weight for layer in linears]
    if len({getattr(weight, "zero_point", None) is None for weight in weights}) < 2:
        return linears
    full = [
        np.full(weight.scale.shape, SYMMETRIC_ZERO, np.uint8)
        if weight.zero_point is None
        else weight.zero_point
        for weight in weights
    ]
    return [
        replace(layer, weight=replace(weight, zero_point=zero))
        for layer, weight, zero in zip(linears, weights, full, strict=True)
    ]


def _combine(linears: Sequence[Linear], change: Callable[[list[Any]], np.ndarray]) -> Linear:
    """Combine the linears field by field with `change`."""

    def made(owners: Sequence[Any], names: tuple[str, ...]) -> dict[str, Any]:
        found = {name: [getattr(owner, name) for owner in owners] for name in names}
        return {name: None if a[0] is None else change(a) for name, a in found.items()}

    weights = [layer.weight for layer in linears]
    first = weights[0]
    if isinstance(first, QuantizedWeight):
        weight: Any = replace(first, **made(weights, ("codes", "scale", "zero_point")))
    else:
        weight = change(weights)
    return replace(linears[0], weight=weight, **made(linears, ("bias", "activation_scale")))


@dataclass(frozen=True)
class Stack(Sequence[Mlp]):
    """Quantized experts, `whole` as they are stored; each comes out in `layout`."""

    whole: Mlp  # of stacked linears
    layout: str

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
        return _combine_parts([self.whole], lambda parts: self._laid_out(parts[0], index))

    def _laid_out(self, stack: Linear, index: int) -> Linear:
        layer = linear_of(stack, index)
        weight: Any = layer.weight
        return replace(layer, weight=to_layout(weight, self.layout))


def _combine_parts(mlps: Sequence[Mlp], change: Callable[[list[Any]], Linear]) -> Mlp:
    """Combine MLPs linear by linear with `change`."""
    parts = {name: [getattr(mlp, name) for mlp in mlps] for name in ("gate", "up", "down")}
    gate = None if parts["gate"][0] is None else change(parts["gate"])
    return Mlp(gate, change(parts["up"]), change(parts["down"]))


def together(experts: Sequence[Mlp]) -> Mlp:
    """All experts' linears as stacks, in the layout that the experts have; a view if stored so."""
    if isinstance(experts, Stack):
        weight: Any = experts.whole.up.weight
        if weight.layout == experts.layout:
            return experts.whole
    return _combine_parts(list(experts), stacked)
