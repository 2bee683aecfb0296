"""Who carries the calibration's samples through a block: NumPy here, XLA in fast/quantize.

Quantization is a pipeline that does not compute a block itself: it hands hidden states and a
block to a runner and gets back statistics of what the linears read, and hidden states. So the
steps, and the errors that they raise, are written once, whatever runs the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from planish.reference.model.config import ModelConfig
from planish.reference.model.weights import Block, Weights
from planish.reference.progress import Progress, no_progress
from planish.reference.quantize.observe import (
    ABSMAX,
    Observer,
    Statistics,
    embed_samples,
    observe_block,
    run_block,
)

Hidden = Sequence[np.ndarray]  # float32 [T, D] of each sample


class Runner(Protocol):
    """What the pipeline asks for. Blocks are float, or quantized candidates (`run` only)."""

    def embed(self, config: ModelConfig, weights: Weights, samples: Sequence[np.ndarray]) -> Hidden:
        """Hidden states that enter the first block, from the samples' token ids."""

    def observe(
        self,
        config: ModelConfig,
        block: Block,
        hidden: Hidden,
        names: Mapping[str, str] | None = None,
        observer: Observer = ABSMAX,
    ) -> tuple[Statistics, Hidden]:
        """The observer's statistics by linear, and the hidden states that leave the block.

        An expert that no token chose has no entry. Raises QuantizationError, by `names`, where
        an input, an output or an output's square is not finite.
        """

    def run(self, config: ModelConfig, block: Block, hidden: Hidden) -> Hidden:
        """The hidden states that leave the block, finite or not."""


class NumpyRunner:
    """The definition: one sample at a time."""

    def embed(self, config: ModelConfig, weights: Weights, samples: Sequence[np.ndarray]) -> Hidden:
        return embed_samples(config, weights, samples)

    def observe(
        self,
        config: ModelConfig,
        block: Block,
        hidden: Hidden,
        names: Mapping[str, str] | None = None,
        observer: Observer = ABSMAX,
    ) -> tuple[Statistics, Hidden]:
        return observe_block(config, block, hidden, names, observer)

    def run(self, config: ModelConfig, block: Block, hidden: Hidden) -> Hidden:
        with np.errstate(all="ignore"):
            return [run_block(config, block, x) for x in hidden]


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """Who runs the samples, and who shows how far the work is."""

    runner: Runner = field(default_factory=NumpyRunner)
    progress: Progress = no_progress


NUMPY = Runtime()
