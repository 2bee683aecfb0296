"""Collect one linear's input and weight, before and after smoothing."""

from __future__ import annotations

import numpy as np

from planish import pocket
from planish.reference.files.load import Checkpoint, load_weights
from planish.reference.model.weights import Block, block_linears
from planish.reference.quantize.observe import (
    cut_samples,
    embed_samples,
    observe_block,
    run_block,
)
from planish.reference.quantize.smooth import smooth_block
from planish.reference.text.tokenizer import load_tokenizer, read_text


def calibration_sample(checkpoint: Checkpoint) -> np.ndarray:
    """The first 512 tokens of the embedded calibration text."""
    tokenizer = load_tokenizer(checkpoint.tokenizer_path, checkpoint.config)
    return cut_samples(tokenizer.encode(read_text(pocket.CALIBRATION)), 1, 512)[0]


def collect_panels(
    checkpoint: Checkpoint, sample: np.ndarray, layer: int, linear: str, alpha: float
) -> dict[str, np.ndarray]:
    """|X| [T, K] and |W| [N, K] of one linear, before and after smoothing."""
    weights = load_weights(checkpoint)
    hidden = list(embed_samples(checkpoint.config, weights, [sample]))
    for index in range(layer):
        block = weights.blocks[index]
        hidden = [run_block(checkpoint.config, block, x) for x in hidden]
    before = weights.blocks[layer]
    absmax, _ = observe_block(checkpoint.config, before, hidden)
    after = smooth_block(checkpoint.config, before, absmax, alpha)
    panels = {}
    for title, block in (("before", before), ("after", after)):
        panels[f"activations {title}"] = np.abs(input_of(checkpoint, block, hidden[0], linear))
        panels[f"weights {title}"] = np.abs(np.asarray(block_linears(block)[linear].weight))
    return panels


def input_of(checkpoint: Checkpoint, block: Block, x: np.ndarray, linear: str) -> np.ndarray:
    """The input [T, K] of one linear of a block."""
    seen: dict[str, np.ndarray] = {}

    def keep(name: str, value: np.ndarray) -> None:
        seen.setdefault(name, value)

    run_block(checkpoint.config, block, x, keep)
    return seen[linear]
