"""TEQ: scale channels by a trained equivalent transformation before weights are rounded.

Cheng et al. 2023, arXiv 2310.10944. For each place where a scale can move (model/folds.py), with a
trained scale a of the source's channels:

    y = Q(W diag(a)) (x / a)        source / a, readers * a        (section 3)

This file defines what learned scales do: they are folded, so nothing is computed at run time, and
another method rounds the block. fast/quantize/teq.py learns them, which needs the gradient of a
block:

    a <- a - rate * Adam(gradient)        a = 1 at first, at least FLOOR

with the rounding passed straight through, and the mean squared error of the block's outputs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from planish.reference.model.config import ModelConfig
from planish.reference.model.folds import block_folds
from planish.reference.model.weights import Block
from planish.reference.quantize.fold import apply_fold

FLOOR = np.float32(1e-5)


def scale_block(config: ModelConfig, block: Block, scales: Sequence[np.ndarray]) -> Block:
    """The float block with learned scales folded; it computes the same function.

    scales: of the channels of each fold's source, in the order of block_folds; FLOOR at least.
    """
    for fold, a in zip(block_folds(config, block), scales, strict=True):
        block = apply_fold(block, fold, np.maximum(a, FLOOR))
    return block
