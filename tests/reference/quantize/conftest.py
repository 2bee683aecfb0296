"""What the tests of quantization share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from planish.reference.files.load import Checkpoint
from planish.reference.model.weights import Weights
from planish.reference.quantize.block import observe_for, quantize_block
from planish.reference.quantize.checkpoint import quantize_head
from planish.reference.quantize.observe import embed_samples, observe_block
from planish.reference.quantize.recipe import Recipe
from planish.reference.quantize.smooth import apply_smoothing


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
        statistics = observe_for(config, block, chosen, hidden)
        quantizes = chosen.default is not None
        blocks.append(quantize_block(block, chosen, statistics) if quantizes else block)
        hidden = outputs
    head = chosen.scheme_of("lm_head")
    if head is not None:
        weights = replace(weights, head=quantize_head(weights.head, head, chosen, "head"))
    return replace(weights, blocks=blocks)
