"""The reference as an engine, with the interface of fast/session/engine.py."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from planish.reference.files.load import Checkpoint, load_weights
from planish.reference.memory import ENGINE, FORWARD, GENERATE, LOSSES, memory_errors
from planish.reference.model import transformer as model
from planish.reference.overflow import silence_overflow
from planish.reference.text import generate as loop
from planish.reference.text.evaluate import (
    Scores,
    continuation_scores,
    share_length,
    token_losses,
)
from planish.reference.text.sampling import Sampling


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

    @silence_overflow()
    @memory_errors(FORWARD)
    def forward(self, tokens: Sequence[int]) -> np.ndarray:
        """Logits float32 [T, V] of every token of one sequence."""
        loop.check_fits(self.config, [tokens], loop.Stop(0), self.config.max_positions)
        return model.prefill(self.config, self.weights, tokens)[0]

    @silence_overflow()
    @memory_errors(LOSSES)
    def losses(self, tokens: Sequence[int]) -> np.ndarray:
        """-log p of tokens 1..T-1 of one sequence, each given those before it, float64 [T - 1]."""
        loop.check_fits(self.config, [tokens], loop.Stop(0), self.config.max_positions)
        return token_losses(self.config, self.weights, tokens)

    @silence_overflow()
    @memory_errors(FORWARD)
    def score(self, context: Sequence[int], continuations: Sequence[Sequence[int]]) -> list[Scores]:
        """Score each continuation of a context; both are token ids, at least one in each."""
        loop.check_continuations(self.config, context, continuations)
        groups = share_length(self.config, continuations)
        parts = (continuation_scores(self.config, self.weights, context, some) for some in groups)
        return [score for part in parts for score in part]

    def generate(
        self, prompts: Sequence[Sequence[int]], stop: loop.Stop, sampling: Sampling
    ) -> Iterator[tuple[int, int]]:
        """Yield (row, token) as tokens are generated."""
        loop.check_fits(self.config, prompts, stop, self.config.max_positions)
        with memory_errors(GENERATE), silence_overflow():
            loop.reserve(self._cache_bytes(max(map(len, prompts), default=0) + stop.max_new_tokens))
            yield from loop.generate(self.config, self.weights, prompts, stop, sampling)

    def _cache_bytes(self, slots: int) -> int:
        """Bytes of one sequence's keys and values, float32, once all `slots` are filled."""
        per_slot = self.config.num_kv_heads * self.config.head_dim * 4
        return 2 * self.config.num_layers * per_slot * slots
