"""What every timed engine answers, in seconds, and how planish's own engine answers it."""

from __future__ import annotations

import time
from typing import Protocol

import numpy as np

from planish.fast.session.engine import Engine
from planish.reference.model.config import ModelConfig
from planish.reference.text.generate import Stop
from planish.reference.text.sampling import Sampling


class Timer(Protocol):
    """One engine with one model, ready to be timed."""

    @property
    def compile_seconds(self) -> float | None:
        """Seconds spent compiling so far; None where that is not known."""

    def prefill(self, tokens: int) -> float:
        """Seconds from one prompt, over an empty cache, to the logits of its last token."""

    def decode(self, tokens: int, batch: int = 1, context: int = 1) -> float:
        """Seconds of `tokens` greedy steps of `batch` sequences after `context` tokens each."""


class EngineTimer:
    """Times planish's engine."""

    def __init__(self, engine: Engine):
        self.engine = engine

    @property
    def compile_seconds(self) -> float:
        return self.engine.compile_seconds

    def prefill(self, tokens: int) -> float:
        prompts = draw_prompts(self.engine.config, 1, tokens)
        start = time.perf_counter()
        next(self.engine.generate(prompts, Stop(1, ignore_eos=True), Sampling()))
        return time.perf_counter() - start

    def decode(self, tokens: int, batch: int = 1, context: int = 1) -> float:
        prompts = draw_prompts(self.engine.config, batch, context)
        return time_decoding(self.engine, prompts, tokens)


def time_decoding(engine: Engine, prompts: list[list[int]], tokens: int) -> float:
    """Seconds of `tokens` greedy steps after prompts, which are not counted."""
    steps = engine.generate(prompts, Stop(tokens + 1, ignore_eos=True), Sampling())
    for _ in prompts:  # the first token of each row belongs to its prompt
        next(steps)
    start = time.perf_counter()
    for _ in steps:
        pass
    return time.perf_counter() - start


def draw_prompts(config: ModelConfig, batch: int, length: int) -> list[list[int]]:
    """Random token ids, the same at each call."""
    rng = np.random.default_rng(0)
    ids: list[list[int]] = rng.integers(0, config.vocab_size, (batch, length)).tolist()
    return ids
