"""The search for the smallest recipe within a tolerance: `planish quantize --method auto`.

    each candidate of the order:  quantize -> measure on validation text -> within? then stop
    mixed precision:              sensitivities -> steps by gain per bit -> the fewest within
    else:                         the best of all, and by how much it misses

With a budget of bits a weight and no tolerance, every candidate that it affords is tried, the best
two are filled up with wider linears, and the one with the least loss is the result.

A candidate is quantized into the study's directory. One that another beats in bits and in loss is
removed; of the others, the BASES become mixtures that the sensitivities promise most of.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from planish.compare.quality.ladder import Step, plan_steps
from planish.compare.quality.mixed import (
    Sensitivities,
    fill_budget,
    find_sensitivities,
    predict_bits,
    predict_loss,
    widen_until_within,
)
from planish.compare.quality.order import Candidate
from planish.compare.quality.trial import Found, Study, Trial, try_candidate
from planish.reference.errors import QuantizationError, RecipeError

BASES = 2  # candidates that become mixtures


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a search found.

    trials: every row, in order. left_out: candidates that could not be made, and why.
    sensitivities: of the chosen model's base.
    """

    chosen: Found
    trials: list[Trial]
    left_out: dict[str, str]
    sensitivities: Sensitivities


@dataclass(kw_only=True)
class Search:
    """A search in progress; `show` gets every row as soon as it is measured."""

    study: Study
    show: Callable[[Trial], None]
    trials: list[Trial] = field(default_factory=list)
    kept: list[Found] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    families: dict[str, float] = field(default_factory=dict)  # losses the first time
    costs: dict[str, Sensitivities] = field(default_factory=dict)

    def run(self, candidates: Iterable[Candidate]) -> Outcome:
        """Try the candidates, then mixtures of the best of them."""
        for candidate in candidates:
            tried = self.attempt(candidate) if self.is_promising(candidate) else None
            if tried is not None and tried.trial.within:
                return self.outcome(tried)
        if not self.kept:
            raise no_recipe(self.left_out, self.study.goal.budget)
        mixed = [mixture for base in self.bases() if (mixture := self.mix(base)) is not None]
        return self.outcome(self.best([*mixed, *self.kept]))

    def is_promising(self, candidate: Candidate) -> bool:
        """Whether a family is new, or was the best of all families the first time."""
        family = candidate.family
        if family is None or family not in self.families:
            return True
        return self.families[family] == min(self.families.values())

    def attempt(self, candidate: Candidate) -> Found | None:
        """Quantize and measure one candidate, if the model and the budget allow it."""
        try:
            tried = try_candidate(self.study, candidate)
        except (RecipeError, QuantizationError) as problem:
            self.left_out[candidate.name] = str(problem)
            return None
        if not self.study.goal.affords(tried.trial.bits):
            self.left_out[candidate.name] = f"{tried.trial.bits:.3f} bits a weight"
            shutil.rmtree(tried.model.base.quantized.path)
            return None
        self.record(tried)
        self.keep(tried)
        if candidate.family is not None:
            self.families.setdefault(candidate.family, tried.trial.bound)
        return tried

    def record(self, tried: Found) -> None:
        """Add a row, and show it."""
        self.trials.append(tried.trial)
        self.show(tried.trial)

    def keep(self, tried: Found) -> None:
        """Keep what no other candidate beats in both bits and loss; remove the others' files."""
        beaten = [one for one in self.kept if beats(tried.trial, one.trial)]
        if any(beats(one.trial, tried.trial) for one in self.kept):
            beaten = [tried]
        else:
            self.kept = [one for one in self.kept if one not in beaten] + [tried]
        for one in beaten:
            shutil.rmtree(one.model.base.quantized.path)

    def bases(self) -> list[Found]:
        """The candidates that become mixtures, the most promising first."""
        if len(self.kept) == 1:
            return self.kept
        return sorted(self.kept, key=self.promise)[:BASES]

    def promise(self, base: Found) -> float:
        """What its mixture will need: bits for the tolerance, or the loss that fills the budget."""
        if self.study.goal.tolerance is not None:
            return predict_bits(self.study, base, self.steps(base))
        return predict_loss(self.study, base, self.steps(base))

    def mix(self, base: Found) -> Found | None:
        """The smallest mixture of a base that is within, or the one that fills the budget."""
        if self.study.goal.tolerance is not None:
            return widen_until_within(self.study, base, self.steps(base), self.record)
        filled = fill_budget(self.study, base, self.steps(base))
        if filled is not None:
            self.record(filled)
        return filled

    def steps(self, base: Found) -> list[Step]:
        """The steps that widen a base, by gain per bit."""
        return plan_steps(base.model.base, {k: c for k, (c, _) in self.sense(base).items()})

    def sense(self, found: Found) -> Sensitivities:
        """The sensitivities of a base, measured once."""
        name = found.model.base.quantized.path.name
        if name not in self.costs:
            self.costs[name] = find_sensitivities(self.study, found.model.base)
        return self.costs[name]

    def best(self, found: list[Found]) -> Found:
        """The smallest of those within the tolerance; if none is, the one of least loss."""
        within = [one for one in found if one.trial.within]
        if within:
            return min(within, key=lambda one: one.trial.bits)
        return min(found, key=lambda one: one.trial.bound)

    def outcome(self, chosen: Found) -> Outcome:
        """The result, with the sensitivities of what was chosen."""
        return Outcome(
            chosen=chosen,
            trials=self.trials,
            left_out=self.left_out,
            sensitivities=self.sense(chosen),
        )


def no_recipe(left_out: Mapping[str, str], budget: float | None) -> RecipeError:
    """The error for a search without any candidate: why the first of them was left out."""
    limit = "" if budget is None else f" and a budget of {budget:g} bits a weight"
    first = next((f"{name}: {why}" for name, why in left_out.items()), None)
    return RecipeError(f"no recipe fits this model{limit}", name="method auto", found=first)


def beats(one: Trial, other: Trial) -> bool:
    """Whether a trial is at least as good in bits and loss, and better in one of them."""
    no_worse = one.bits <= other.bits and one.bound <= other.bound
    return no_worse and (one.bits < other.bits or one.bound < other.bound)
