"""Measure quantized models against the float one on text, block by block.

Each block of a candidate runs all windows before the next is read, so the model need not fit into
memory, and programs are compiled for the few kinds of blocks that there are, not for every mixture
of schemes. The float model runs once; what is kept of it are its last hidden states.

T tokens of a window, D model width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from planish.reference.errors import PromptError
from planish.reference.files.load import Checkpoint, load_weights
from planish.reference.model.config import ModelConfig
from planish.reference.model.weights import Weights
from planish.reference.progress import Progress, no_progress
from planish.reference.quantize.runner import NUMPY_RUNNER, Hidden, Runner
from planish.reference.text.evaluate import Comparison, compare_heads, join_comparisons

CompareHeads = Callable[..., Comparison]


@dataclass(frozen=True, kw_only=True)
class Judge:
    """The float model on every window; `tiled`: what runs blocks reads quantized weights in tiles.

    states: its last hidden states [T, D]. compare: compare_heads, or the jitted one.
    """

    source: Checkpoint
    windows: Sequence[Sequence[int]]
    states: Hidden
    weights: Weights
    runner: Runner = NUMPY_RUNNER
    compare: CompareHeads = compare_heads
    tiled: bool = False

    def measure(
        self, other: Weights, progress: Progress = no_progress, what: str = "measuring"
    ) -> Comparison:
        """Compare a quantized model with the float one, token by token."""
        config = self.source.config
        found = run_model(config, other, self.windows, self.runner, progress, what)
        triples = zip(self.states, found, self.windows, strict=True)
        compared = (
            self.compare(config, self.weights, other, (x, y), window) for x, y, window in triples
        )
        return join_comparisons(list(compared))


def prepare_judge(
    source: Checkpoint,
    windows: Sequence[Sequence[int]],
    progress: Progress = no_progress,
    **engine: Any,
) -> Judge:
    """Run the float model on all windows. engine: runner, compare and tiled of Judge.

    Raises PromptError if the float model overflows.
    """
    runner, weights = engine.get("runner", NUMPY_RUNNER), load_weights(source)
    states = run_model(source.config, weights, windows, runner, progress, "measuring float")
    if not all(np.isfinite(x).all() for x in states):
        raise PromptError("the float model gives NaN or Inf", name="validation")
    return Judge(source=source, windows=windows, states=states, weights=weights, **engine)


def run_model(
    config: ModelConfig,
    weights: Weights,
    windows: Sequence[Sequence[int]],
    runner: Runner,
    progress: Progress,
    what: str,
) -> Hidden:
    """The last hidden states [T, D] of every window."""
    states = runner.embed(config, weights, [np.asarray(window) for window in windows])
    for layer in progress(range(len(weights.blocks)), what):
        states = runner.run(config, weights.blocks[layer], states)
    return states
