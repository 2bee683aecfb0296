"""One float block in, one quantized block out: every linear by the recipe's method.

observed = method_statistics(config, block, recipe, hidden, names, runner)
quantize_block(block, recipe, observed, names, schemes)
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from planish.reference.model.config import ModelConfig
from planish.reference.model.weights import Block, block_linears, replace_parts, split_expert
from planish.reference.quantize.methods import quantize_linear
from planish.reference.quantize.observe import ABSMAX, ChannelAbsmax, Observer, Statistics
from planish.reference.quantize.recipe import Recipe
from planish.reference.quantize.runner import NUMPY, Hidden, Runner
from planish.reference.scheme import Scheme


def method_observer(recipe: Recipe) -> Observer | None:
    """What a recipe's method has to know about a linear's inputs, if anything."""
    return ABSMAX if recipe.static else None


def method_statistics(
    config: ModelConfig,
    block: Block,
    recipe: Recipe,
    hidden: Hidden,
    names: Mapping[str, str] | None = None,
    runner: Runner = NUMPY.runner,
) -> Statistics:
    """What the method wants of the block as it is given: after smoothing, before quantization."""
    observer = method_observer(recipe)
    if observer is None:
        return {}
    found, _ = runner.observe(config, block, hidden, names, observer)
    return with_unseen_experts(block, found)


def quantize_block(
    block: Block,
    recipe: Recipe,
    statistics: Statistics | None = None,
    names: Mapping[str, str] | None = None,
    schemes: Mapping[str, Scheme | None] | None = None,
) -> Block:
    """Every linear of a block by its scheme, by the recipe's method.

    statistics: method_statistics of this block. names: how its parts are called in errors.
    schemes: of each part, None for one that stays in float (schemes.block_schemes); without any,
    all parts but the router have the recipe's default.
    """
    linears, observed = block_linears(block), statistics or {}
    if schemes is None:
        schemes = {part: recipe.default for part in linears if part != "router"}
    changed = {
        part: quantize_linear(
            linears[part],
            scheme,
            method=recipe.method,
            rule=recipe.rule,
            absmax=observed.get(part),
            name=(names or {}).get(part, part),
        )
        for part, scheme in schemes.items()
        if scheme is not None
    }
    return replace_parts(block, changed)


def with_unseen_experts(block: Block, absmax: ChannelAbsmax) -> ChannelAbsmax:
    """An expert that no calibration token chose expects what the others saw at most."""
    largest: ChannelAbsmax = {}
    for part, seen in absmax.items():
        general, _ = split_expert(part)
        largest[general] = np.maximum(largest[general], seen) if general in largest else seen
    unseen = [part for part in block_linears(block) if part not in absmax]
    return absmax | {part: largest[split_expert(part)[0]] for part in unseen}
