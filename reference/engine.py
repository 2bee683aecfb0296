"""The reference as an engine: what a verb asks of fast.engine.Engine too."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from reference import generate as loop
from reference import model
from reference.checkpoint import Checkpoint, load_weights
from reference.sampling import Sampling


class Engine:
    """A checkpoint in memory, run by NumPy."""

    name = "reference"

    def __init__(self, checkpoint: Checkpoint):
        weights = load_weights(checkpoint)
        self.config = checkpoint.config
        self.weights = replace(weights, blocks=list(weights.blocks))

    def forward(self, tokens: Sequence[int]) -> np.ndarray:
        """Logits float32 [T, V] of every token of one sequence."""
        loop.check_fits(self.config, [tokens], loop.Stop(0), self.config.max_positions)
        return model.prefill(self.config, self.weights, tokens)[0]

    def generate(
        self, prompts: Sequence[Sequence[int]], stop: loop.Stop, sampling: Sampling
    ) -> Iterator[tuple[int, int]]:
        """(row, token) as tokens come."""
        return loop.generate(self.config, self.weights, prompts, stop, sampling)
