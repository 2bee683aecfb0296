"""What the tests of quantization share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from planish.reference.files.load import Checkpoint
from planish.reference.model.config import ModelConfig
from planish.reference.model.weights import Block, Weights, block_linears
from planish.reference.quantize.block import quantize_block
from planish.reference.quantize.job import BlockJob
from planish.reference.quantize.observe import embed_samples, observe_block
from planish.reference.quantize.output import quantize_head
from planish.reference.quantize.recipe import Recipe
from planish.reference.quantize.smooth import apply_smoothing
from planish.reference.scheme import Scheme


def same_schemes(block: Block, scheme: Scheme | None) -> dict[str, Scheme | None]:
    """One scheme for every linear of a block except the router."""
    return {part: scheme for part in block_linears(block) if part != "router"}


def by_recipe(
    config: ModelConfig,
    block: Block,
    chosen: Recipe,
    hidden: Sequence[np.ndarray] = (),
    **changes: Any,
) -> Block:
    """A block, smoothed before if need be, with every linear except the router quantized."""
    schemes = same_schemes(block, chosen.default)
    given = {"schemes": schemes, "inputs": hidden, "float_inputs": hidden, **changes}
    job = BlockJob(config=config, rule=chosen.rule, settings=chosen.settings, **given)
    return quantize_block(job, block, chosen)[0]


def in_memory(
    checkpoint: Checkpoint, weights: Weights, chosen: Recipe, samples: Sequence[np.ndarray]
) -> Weights:
    """The recipe's model without a directory: each block smoothed and quantized."""
    config, blocks = checkpoint.config, []
    hidden = embed_samples(config, weights, samples)
    for block in weights.blocks:
        absmax, outputs = observe_block(config, block, hidden)
        if chosen.alpha is not None:
            block = apply_smoothing(config, block, absmax, chosen, chosen.alpha)
        blocks.append(by_recipe(config, block, chosen, hidden, targets=outputs))
        hidden = outputs
    head = chosen.scheme_of("lm_head")
    if head is not None:
        weights = replace(weights, head=quantize_head(weights.head, head, chosen, "head"))
    return replace(weights, blocks=blocks)
