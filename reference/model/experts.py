"""The experts of a layer, stacked: one array for each kind of tensor, not one for each expert.

A stack is a Linear whose arrays have a leading axis of experts: codes [E, N, K] for [N, K], a bias
[E, N] for [N]. Quantized directories store stacks and the engine reads them. One expert is a slice
of a stack, and a slice is a view.
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

# of a QuantizedWeight, and of a Linear
ARRAYS = ("codes", "scale", "zero_point", "offset", "permutation", "code_sums")
BESIDE = ("bias", "activation_scale", "activation_zero_point")


def linear_of(stack: Linear, index: int) -> Linear:
    """One expert's linear from a stack, as views."""
    return _combine([stack], lambda arrays: arrays[0][index])


def stack_linears(linears: Sequence[Linear]) -> Linear:
    """Stack linears of one shape and scheme along a new leading axis.

    Raises ValueError if their schemes differ.
    """
    schemes = dict.fromkeys(layer.scheme for layer in linears)
    if len(schemes) > 1:
        raise ValueError(f"experts of one stack differ: {', '.join(map(str, schemes))}")
    return _combine(_with_zero_points(linears), np.stack)


def _with_zero_points(linears: Sequence[Linear]) -> Sequence[Linear]:
    """Write out the implied zero points (8) if only some of the linears store theirs."""
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
    """Combine the linears field by field with `change`, and return one Linear."""

    def combine(owners: Sequence[Any], names: tuple[str, ...]) -> dict[str, Any]:
        found = {name: [getattr(owner, name) for owner in owners] for name in names}
        return {name: None if a[0] is None else change(a) for name, a in found.items()}

    weights = [layer.weight for layer in linears]
    first = weights[0]
    if isinstance(first, QuantizedWeight):
        weight: Any = replace(first, **combine(weights, ARRAYS))
    else:
        weight = change(weights)
    return replace(linears[0], weight=weight, **combine(linears, BESIDE))


@dataclass(frozen=True)
class Stack(Sequence[Mlp]):
    """Quantized experts as stored, in `whole`; indexing gives one expert, in `layout`."""

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
        return _combine_mlps([self.whole], lambda stacks: self._slice(stacks[0], index))

    def _slice(self, stack: Linear, index: int) -> Linear:
        layer = linear_of(stack, index)
        weight: Any = layer.weight
        return replace(layer, weight=to_layout(weight, self.layout))


def _combine_mlps(mlps: Sequence[Mlp], change: Callable[[list[Any]], Linear]) -> Mlp:
    """Combine MLPs linear by linear with `change`."""
    linears = {name: [getattr(mlp, name) for mlp in mlps] for name in ("gate", "up", "down")}
    gate = None if linears["gate"][0] is None else change(linears["gate"])
    return Mlp(gate, change(linears["up"]), change(linears["down"]))


def stack_experts(experts: Sequence[Mlp]) -> Mlp:
    """Stack all experts' linears, in the experts' layout; a view if they are stored in it."""
    if isinstance(experts, Stack):
        weight: Any = experts.whole.up.weight
        if weight.layout == experts.layout:
            return experts.whole
    return _combine_mlps(list(experts), stack_linears)
