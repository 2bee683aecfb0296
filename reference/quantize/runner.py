"""What runs the calibration samples through a block: NumPy here, XLA in fast/quantize.

The quantization pipeline does not compute blocks: it gives a runner a block and hidden states, and
gets back statistics of the linears' inputs and the block's outputs. So the steps and their errors
are written once for every runner.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from copy import copy
from typing import Protocol

import numpy as np

from planish.reference.model.config import ModelConfig
from planish.reference.model.weights import Block, Weights
from planish.reference.quantize.hidden import UNLIMITED, Store
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
    """What the pipeline needs. Blocks are float; `run` also takes quantized candidates."""

    @property
    def name(self) -> str:
        """What computes: numpy, xla or native; their results may differ in the last bits."""

    def storing(self, store: Store) -> Runner:
        """The same runner, whose embeddings and outputs go to a store (hidden.py)."""

    def embed(self, config: ModelConfig, weights: Weights, samples: Sequence[np.ndarray]) -> Hidden:
        """The first block's input from the samples' token ids."""

    def observe(
        self,
        config: ModelConfig,
        block: Block,
        hidden: Hidden,
        names: Mapping[str, str] | None = None,
        observer: Observer = ABSMAX,
        parts: Collection[str] | None = None,
    ) -> tuple[Statistics, Hidden]:
        """The observer's statistics by linear, and the block's outputs.

        parts: only these are observed, and the outputs are empty; a runner need not run what
        follows them. They are linears, or queries, keys and values as attention reads them
        (ROTATED), which are not among all. An expert that no token selected has no entry. Raises
        QuantizationError, with the name from `names`, if an input, an output or an output's square
        is not finite.
        """

    def run(self, config: ModelConfig, block: Block, hidden: Hidden) -> Hidden:
        """The block's outputs, finite or not."""


class NumpyRunner:
    """The definition: one sample at a time."""

    name = "numpy"

    def __init__(self, store: Store = UNLIMITED):
        self.store = store

    def storing(self, store: Store) -> NumpyRunner:
        other = copy(self)
        other.store = store
        return other

    def embed(self, config: ModelConfig, weights: Weights, samples: Sequence[np.ndarray]) -> Hidden:
        return embed_samples(config, weights, samples, self.store)

    def observe(
        self,
        config: ModelConfig,
        block: Block,
        hidden: Hidden,
        names: Mapping[str, str] | None = None,
        observer: Observer = ABSMAX,
        parts: Collection[str] | None = None,
    ) -> tuple[Statistics, Hidden]:
        return observe_block(config, block, hidden, names, observer, parts, self.store)

    def run(self, config: ModelConfig, block: Block, hidden: Hidden) -> Hidden:
        outputs = self.store.new()
        with np.errstate(all="ignore"):
            outputs.extend(run_block(config, block, x) for x in hidden)
        return outputs


NUMPY_RUNNER = NumpyRunner()
