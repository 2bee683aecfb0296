"""Quantize one block: every linear by the recipe's method.

observed = observe_for(config, block, recipe, hidden, names, runner)
quantize_block(block, recipe, observed, names, schemes)
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from planish.reference.model.config import ModelConfig
from planish.reference.model.weights import Block, block_linears, replace_modules, split_expert
from planish.reference.quantize.methods import METHODS, NOTHING, quantize_linear
from planish.reference.quantize.observe import (
    ABSMAX,
    ChannelAbsmax,
    Observed,
    Observer,
    Statistics,
)
from planish.reference.quantize.recipe import Recipe
from planish.reference.quantize.runner import NUMPY, Hidden, Runner
from planish.reference.scheme import Scheme


def observers(recipe: Recipe) -> list[Observer]:
    """The observers of a smoothed block: absmax for static scales, and the method's own."""
    own = METHODS[recipe.method].observer
    return [ABSMAX] * recipe.static + ([own] if own is not None and recipe.quantizes_blocks else [])


def observe_for(
    config: ModelConfig,
    block: Block,
    recipe: Recipe,
    hidden: Hidden,
    names: Mapping[str, str] | None = None,
    runner: Runner = NUMPY.runner,
) -> dict[str, Observed]:
    """The statistics that a recipe needs of a block, smoothed but not yet quantized."""
    absmax: ChannelAbsmax = {}
    statistics: Statistics = {}
    own = METHODS[recipe.method].observer
    for observer in observers(recipe):
        found, _ = runner.observe(config, block, hidden, names, observer)
        absmax = with_unseen_experts(block, found) if observer is ABSMAX else absmax
        statistics = found if observer is own else statistics
    return {
        part: Observed(absmax=absmax.get(part), statistic=statistics.get(part))
        for part in absmax | statistics
    }


def quantize_block(
    block: Block,
    recipe: Recipe,
    observed: Mapping[str, Observed] | None = None,
    names: Mapping[str, str] | None = None,
    schemes: Mapping[str, Scheme | None] | None = None,
) -> Block:
    """Quantize every linear of a block under its scheme by the recipe's method.

    observed: from observe_for on this block. names: of its linears, for errors. schemes: of each
    linear, None if it stays in float (schemes.block_schemes); by default every linear except the
    router has the recipe's default scheme.
    """
    linears = block_linears(block)
    if schemes is None:
        schemes = {part: recipe.default for part in linears if part != "router"}
    changed = {
        part: quantize_linear(
            linears[part],
            scheme,
            method=recipe.method,
            rule=recipe.rule,
            observed=(observed or {}).get(part, NOTHING),
            name=(names or {}).get(part, part),
        )
        for part, scheme in schemes.items()
        if scheme is not None
    }
    return replace_modules(block, changed)


def with_unseen_experts(block: Block, absmax: ChannelAbsmax) -> ChannelAbsmax:
    """Give each expert that no calibration token selected the largest absmax of the others."""
    largest: ChannelAbsmax = {}
    for part, seen in absmax.items():
        general, _ = split_expert(part)
        largest[general] = np.maximum(largest[general], seen) if general in largest else seen
    unseen = [part for part in block_linears(block) if part not in absmax]
    return absmax | {part: largest[split_expert(part)[0]] for part in unseen}
