"""Mixed precision: which linears to widen, in which order, and how many of them.

Each linear has a ladder of levels from the recipe's scheme up to float. A step on it costs bits and
spares a part of the loss, as the sensitivities have it (fast/quantize/sensitivity.py). Steps are
taken in the order of what they spare for each bit; steps of one linear stay in order, because a
step that spares more for each bit than the one before it is taken together with that one.

    W4A16            W8A16                   float
    W4A8             W8A8        W8A16       float
    W8A8                         W8A16       float
    O1, O2, O3       W8A8        W8A16       float

A step that stores no more bits, as from O3 to W8A8, makes the activations of that linear wider, and
so slower. It costs as much as one bit a weight.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from planish.compare.quality.mixture import Base, Changes, Key
from planish.compare.quality.size import linear_bits
from planish.reference.scheme import Scheme, int8

W8A8, W8A16 = int8(activation="per_token"), int8()


def ladder(scheme: Scheme | None, stays_quantized: bool = False) -> tuple[Scheme | None, ...]:
    """The levels of a linear, its own scheme first, float last; stays_quantized: without float."""
    if scheme is None:
        return (None,)
    levels: tuple[Scheme | None, ...] = (scheme,)
    if scheme.activation != "float" and scheme != W8A8:
        levels += (W8A8,)
    if scheme != W8A16:
        levels += (W8A16,)
    return levels if stays_quantized else (*levels, None)


@dataclass(frozen=True, kw_only=True)
class Step:
    """Give one linear another scheme; spared: of the loss in nats, bits: what that costs."""

    key: Key
    scheme: Scheme | None
    spared: float
    bits: float


def plan_steps(base: Base, costs: Mapping[Key, Sequence[float]]) -> list[Step]:
    """All steps of all linears in the order in which they are taken.

    costs: of each linear at each level of its ladder, that of float (0) included or left out.
    """
    steps: list[Step] = []
    for key, losses in costs.items():
        rows, cols, count = base.sizes[key]
        levels = levels_of(base, key)
        bits = [count * linear_bits(base, key, scheme, rows, cols) for scheme in levels]
        steps += linear_steps(key, levels, losses, bits, least=rows * cols * count)
    return sorted(steps, key=lambda step: -step.spared / step.bits)


def levels_of(base: Base, key: Key) -> tuple[Scheme | None, ...]:
    """A linear's ladder; experts stay quantized, because all of a layer's must be or none."""
    return ladder(base.schemes[key], stays_quantized=key[1].startswith("experts."))


def linear_steps(
    key: Key,
    levels: Sequence[Scheme | None],
    losses: Sequence[float],
    bits: Sequence[float],
    least: float,
) -> list[Step]:
    """The steps of one linear, of falling gain for each bit; those without any gain are left out.

    losses: 0 beyond those given. least: bits that a step costs at least.
    """
    padded = [*losses, *([0.0] * len(levels))]
    place = 0
    steps: list[Step] = []
    while place < len(levels) - 1:
        ahead = range(place + 1, len(levels))
        costs = {i: max(bits[i] - bits[place], least) for i in ahead}
        best = max(ahead, key=lambda i: (padded[place] - padded[i]) / costs[i])
        spared = padded[place] - padded[best]
        if spared <= 0:
            break
        steps.append(Step(key=key, scheme=levels[best], spared=spared, bits=costs[best]))
        place = best
    return steps


def changes_after(steps: Sequence[Step], count: int) -> Changes:
    """The schemes after the first `count` steps."""
    return {step.key: step.scheme for step in steps[:count]}


@dataclass(frozen=True, kw_only=True)
class Bracket:
    """Between `low` steps, which are too few, and `high`, which are enough, with their losses."""

    low: int
    high: int
    low_loss: float
    high_loss: float


def next_count(bracket: Bracket, steps: Sequence[Step], tolerance: float, halve: bool) -> int:
    """Where to measure next, between the ends.

    What remains of the predicted loss is scaled to the losses measured at both ends, and its
    place found where that meets the tolerance; or, with `halve`, where half of the bits between
    them are spent, so that the bracket shrinks even if predictions mislead.
    """
    if halve:
        spent = np.cumsum([0.0, *(step.bits for step in steps)])
        count = int(np.searchsorted(spent, (spent[bracket.low] + spent[bracket.high]) / 2))
    else:
        remaining = np.cumsum([0.0, *(step.spared for step in steps[::-1])])[::-1]
        low, high = remaining[bracket.low], remaining[bracket.high]
        share = (tolerance - bracket.high_loss) / max(bracket.low_loss - bracket.high_loss, 1e-30)
        wanted = high + min(max(share, 0.0), 1.0) * (low - high)
        count = int(np.searchsorted(-remaining, -wanted))
    return min(max(count, bracket.low + 1), bracket.high - 1)
