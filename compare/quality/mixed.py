"""Mixed precision: widen the linears of a candidate until the tolerance holds, or a budget is full.

    sensitivities of the base -> steps by gain per bit (ladder.py) -> how many steps?

With a tolerance the number of steps is searched between too few and enough, each time with a real
measurement on the validation text; with a budget, as many are taken as it affords.
"""

from __future__ import annotations

import math
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import replace

from planish.compare.quality.ladder import (
    Bracket,
    Step,
    changes_after,
    levels_of,
    next_count,
)
from planish.compare.quality.mixture import Base, Key, Mixture, widen
from planish.compare.quality.size import bits_per_weight
from planish.compare.quality.trial import Found, Study, measure_model
from planish.reference.linear import Linear
from planish.reference.model.weights import block_linears, split_expert
from planish.reference.quantize.observe import spread

PROBES = 10  # measurements of one base's mixtures, at most
CLOSE = 0.01  # of the bits: so narrow a bracket is not searched further
SAMPLES = 8  # for the sensitivities, at most

Sensitivities = dict[Key, tuple[list[float], list[float]]]  # costs and relative errors by level


def find_sensitivities(study: Study, base: Base) -> Sensitivities:
    """What each linear's rounding costs at every level of its ladder except float."""

    def alternatives(layer: int) -> list[dict[str, Linear]]:
        return block_levels(base, layer)

    some = [study.samples[i] for i in spread(len(study.samples), SAMPLES)]
    found = study.sensitivity(
        study.source.config, base.float_weights(), alternatives, some, study.progress
    )
    return {  # in the order of execution
        (layer, part): (one.cost.tolist(), one.error.tolist())
        for layer, part in base.schemes
        if (one := found[layer].get(part)) is not None
    }


def block_levels(base: Base, layer: int) -> list[dict[str, Linear]]:
    """A block's quantized linears at each level: the base's own, then the wider ones.

    All linears have as many levels; one whose ladder ends earlier repeats its last.
    """
    own = block_linears(Mixture(base=base).block(layer))
    floats = block_linears(base.float_block(layer))
    ladders = {
        part: [scheme for scheme in levels_of(base, key) if scheme is not None]
        for part in own
        if base.schemes.get(key := (layer, split_expert(part)[0])) is not None
    }
    levels: list[dict[str, Linear]] = [{part: own[part] for part in ladders}]
    for place in range(1, max(map(len, ladders.values()), default=0)):
        schemes = {part: ladder[min(place, len(ladder) - 1)] for part, ladder in ladders.items()}
        wide = {part: widen(floats[part], s, "canonical") for part, s in schemes.items()}
        levels.append(wide)
    return levels


def widen_until_within(
    study: Study, found: Found, steps: Sequence[Step], record: Callable[[Found], None]
) -> Found | None:
    """The mixture of the fewest steps that is within the tolerance; else the last one tried.

    found: the base as it was measured. Steps that the budget does not afford are left out; None
    without any.
    """
    tolerance, steps = study.goal.tolerance, affordable(study, found.model.base, steps)
    if tolerance is None or not steps:
        return None
    ends = Bracket(low=0, high=len(steps), low_loss=found.trial.bound, high_loss=0.0)
    best, halve = None, False
    for _ in range(PROBES):
        count = choose_count(ends, steps, tolerance, halve)
        tried, before = try_steps(study, found, steps, count), spent(steps, ends)
        record(tried)
        if tried.trial.within:
            best, ends = tried, replace(ends, high=count, high_loss=tried.trial.bound)
        elif count == len(steps):
            return tried
        else:
            ends = replace(ends, low=count, low_loss=tried.trial.bound)
        halve = spent(steps, ends) > before / 2
        if best is not None and is_narrow(found.model.base, steps, ends):
            return best
    return best or tried


def predict_bits(study: Study, found: Found, steps: Sequence[Step]) -> float:
    """Bits a weight of the mixture that meets the tolerance, if the losses are as predicted.

    The predicted losses are scaled to the base's measured one. Infinite if the budget does not
    afford that mixture.
    """
    tolerance, base = study.goal.tolerance or 0.0, found.model.base
    ends = Bracket(low=0, high=len(steps), low_loss=found.trial.bound, high_loss=0.0)
    bits = bits_after(base, steps, choose_count(ends, steps, tolerance, halve=False))
    return bits if study.goal.affords(bits) else math.inf


def predict_loss(study: Study, found: Found, steps: Sequence[Step]) -> float:
    """The loss of a base with as many steps as the budget affords, scaled in the same way."""
    left = sum(step.spared for step in steps[len(affordable(study, found.model.base, steps)) :])
    return found.trial.bound * left / max(sum(step.spared for step in steps), 1e-30)


def choose_count(ends: Bracket, steps: Sequence[Step], tolerance: float, halve: bool) -> int:
    """The next number of steps; all of them if no smaller number is left."""
    if ends.high - ends.low <= 1:
        return ends.high
    return next_count(ends, steps, tolerance, halve)


def affordable(study: Study, base: Base, steps: Sequence[Step]) -> Sequence[Step]:
    """As many of the first steps as the budget allows."""
    budget = study.goal.budget
    if budget is None:
        return steps
    count = bisect_right(range(1, len(steps) + 1), budget, key=lambda n: bits_after(base, steps, n))
    return steps[:count]


def bits_after(base: Base, steps: Sequence[Step], count: int) -> float:
    """Bits a weight after the first `count` steps."""
    return bits_per_weight(Mixture(base=base, changes=changes_after(steps, count)))


def spent(steps: Sequence[Step], ends: Bracket) -> float:
    """The bits between a bracket's ends."""
    return sum(step.bits for step in steps[ends.low : ends.high])


def is_narrow(base: Base, steps: Sequence[Step], ends: Bracket) -> bool:
    """Whether a better number of steps could spare only CLOSE of the bits."""
    low, high = (bits_after(base, steps, count) for count in (ends.low, ends.high))
    return ends.high - ends.low <= 1 or high - low <= CLOSE * high


def fill_budget(study: Study, found: Found, steps: Sequence[Step]) -> Found | None:
    """The base with as many steps as the budget affords; None if it affords none."""
    steps = affordable(study, found.model.base, steps)
    return try_steps(study, found, steps, len(steps)) if steps else None


def try_steps(study: Study, found: Found, steps: Sequence[Step], count: int) -> Found:
    """Measure the base after `count` steps."""
    start = time.perf_counter()
    changes = changes_after(steps, count)
    model = Mixture(base=found.model.base, changes=changes)
    name = f"{found.trial.name} + {len(changes)} wider"
    return measure_model(study, name, model, start)
