"""The reference as an engine: what a verb asks of fast.engine.Engine too."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np

from planish.reference.files.load import Checkpoint, load_weights
from planish.reference.memory import ENGINE, FORWARD, GENERATE, LOSSES, memory_errors
from planish.reference.model import transformer as model
from planish.reference.text import generate as loop
from planish.reference.text.evaluate import token_losses
from planish.reference.text.sampling import Sampling


@contextmanager
def unwarned() -> Iterator[None]:
    """A model that overflows ends in NaN, which whoever reads the result refuses by name."""
    with np.errstate(over="ignore", invalid="ignore"):
        yield


class Engine:
    """A checkpoint in memory, run by NumPy; nothing is compiled."""

    name, compile_seconds = "reference", 0.0

    @memory_errors(ENGINE)
    def __init__(self, checkpoint: Checkpoint):
        start = time.perf_counter()
        weights = load_weights(checkpoint)
        self.config = checkpoint.config
        self.weights = replace(weights, blocks=list(weights.blocks))
        self.load_seconds = time.perf_counter() - start

    @unwarned()
    @memory_errors(FORWARD)
    def forward(self, tokens: Sequence[int]) -> np.ndarray:
        """Logits float32 [T, V] of every token of one sequence."""
        loop.check_fits(self.config, [tokens], loop.Stop(0), self.config.max_positions)
        return model.prefill(self.config, self.weights, tokens)[0]

    @unwarned()
    @memory_errors(LOSSES)
    def losses(self, tokens: Sequence[int]) -> np.ndarray:
        """-log p of tokens 1..T-1 of one sequence, each given those before it, float64 [T - 1]."""
        loop.check_fits(self.config, [tokens], loop.Stop(0), self.config.max_positions)
        return token_losses(self.config, self.weights, tokens)

    def generate(
        self, prompts: Sequence[Sequence[int]], stop: loop.Stop, sampling: Sampling
    ) -> Iterator[tuple[int, int]]:
        """(row, token) as tokens come."""
        loop.check_fits(self.config, prompts, stop, self.config.max_positions)
        with memory_errors(GENERATE), unwarned():
            loop.reserve(self._cache_bytes(max(map(len, prompts), default=0) + stop.max_new_tokens))
            yield from loop.generate(self.config, self.weights, prompts, stop, sampling)

    def _cache_bytes(self, slots: int) -> int:
        """Of one sequence's keys and values in float32; they grow, but must fit at the end."""
        each = self.config.num_kv_heads * self.config.head_dim * 4
        return 2 * self.config.num_layers * each * slots
