"""What quantization costs a model on a text, compared with the same model in float (SPEC 8).

    for each recipe:  quantize -> open -> every window of the text -> one row

`planish perplexity`, `planish quality` and the demo measure perplexity by one protocol.
Differences are paired: both models read the same windows, so the difficulty of a window cancels and
the difference is known far better than either perplexity. With a_i and
b_i the cross entropies of token i under the recipe's model and the float one, and P their
perplexities, to first order

    delta = P_a - P_b        standard error = std(P_a a_i - P_b b_i) / sqrt(n)

Tokens are treated as independent, as in the standard error of the perplexity itself.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from planish.compare.bench.timing import time_decoding
from planish.reference.errors import PromptError
from planish.reference.files.load import Checkpoint, open_checkpoint
from planish.reference.files.writer import CheckpointWriter
from planish.reference.progress import Progress, no_progress
from planish.reference.quantize.checkpoint import quantize_checkpoint
from planish.reference.quantize.recipe import Recipe
from planish.reference.quantize.runtime import NUMPY, Runtime
from planish.reference.text.evaluate import Agreement, agreement, summarize, window_nll

CACHED_BYTES = 2**30  # of the float model's logits; the logits of a longer text are recomputed
ROWS = 32  # distributions compared at a time, few enough to stay in the processor's cache
PROMPT, STEPS, RUNS = 128, 40, 4  # of the tokens per second, after one warm-up

AnyEngine = Any  # with forward(tokens) -> logits [T, V] and generate(prompts, stop, sampling)
Opened = tuple[AnyEngine, Path]  # a model, and the directory that it was read from


@dataclass(frozen=True, kw_only=True)
class Study:
    """How every recipe is measured. Quantized models are written to `directory`/name."""

    source: Checkpoint
    windows: Sequence[Sequence[int]]
    samples: Sequence[np.ndarray] | None  # calibration tokens, for recipes that need them
    directory: Path
    keep: bool  # keep the quantized models and replace older ones; else remove each once measured
    open_engine: Callable[[Checkpoint], AnyEngine]
    runtime: Runtime = NUMPY  # of the quantization


@dataclass(frozen=True, kw_only=True)
class Quality:
    """One row of the table."""

    recipe: str
    perplexity: float
    standard_error: float  # of perplexity
    delta: float  # perplexity less the float model's on the same windows
    delta_error: float  # standard error of delta, paired token by token
    mean_kl: float  # KL(float || recipe) of the next token, nats per token
    top1: float  # share of tokens whose likeliest successor is the float model's
    size: int  # bytes of the weights' files
    tokens_per_second: float


class Baseline:
    """The float model on every window: logits, and the cross entropy of every token."""

    def __init__(
        self,
        engine: AnyEngine,
        windows: Sequence[Sequence[int]],
        progress: Progress = no_progress,
    ):
        self.engine, self.windows = engine, windows
        self._cached: list[np.ndarray] = []
        chunks = []
        for window in progress(windows, "measuring float"):
            logits = engine.forward(window)
            chunks.append(window_nll(logits, window))
            if (len(self._cached) + 1) * logits.nbytes <= CACHED_BYTES:
                self._cached.append(logits)
        self.nll = np.concatenate(chunks)

    def logits(self, index: int) -> np.ndarray:
        """The logits [T, V] of one window, cached or recomputed."""
        if index < len(self._cached):
            return self._cached[index]
        logits: np.ndarray = self.engine.forward(self.windows[index])
        return logits


def measure_recipes(
    study: Study, recipes: Mapping[str, Recipe], progress: Progress = no_progress
) -> Iterator[Quality]:
    """Yield the float model's row, then each recipe's, as soon as it is measured.

    Raises PromptError where a model gives NaN or Inf, and what quantize_checkpoint raises.
    """
    engine = study.open_engine(study.source)
    baseline = Baseline(engine, study.windows, progress)
    yield summarize_row("float", baseline, baseline.nll, [], (engine, study.source.path))
    for name, chosen in recipes.items():
        directory = study.directory / name
        with CheckpointWriter(directory, study.source.path, overwrite=study.keep) as writer:
            runtime = replace(study.runtime, progress=progress)
            quantize_checkpoint(study.source, writer, chosen, study.samples, runtime=runtime)
        opened = study.open_engine(open_checkpoint(directory)), directory
        yield measure(name, opened, baseline, progress)
        if not study.keep:
            shutil.rmtree(directory)


def measure(
    recipe: str, opened: Opened, baseline: Baseline, progress: Progress = no_progress
) -> Quality:
    """Measure one recipe's model and compare it with the float model."""
    chunks, same = [], []
    for index, window in enumerate(progress(baseline.windows, f"measuring {recipe}")):
        found = opened[0].forward(window)
        chunks.append(window_nll(found, window))
        same += compare_logits(baseline.logits(index), found)
    return summarize_row(recipe, baseline, np.concatenate(chunks), same, opened)


def summarize_row(
    recipe: str,
    baseline: Baseline,
    nll: np.ndarray,
    same: Sequence[tuple[int, Agreement]],
    opened: Opened,
) -> Quality:
    """The figures of a row, from the cross entropy of every token.

    same: agreement with the float model in chunks of (rows, agreement); empty for float itself.
    Raises PromptError where a cross entropy is not finite.
    """
    if not np.isfinite(nll).all():
        raise PromptError("the model gives NaN or Inf", name=recipe)
    (engine, directory), windows = opened, baseline.windows
    summary = summarize(nll, sum(map(len, windows)), len(windows), len(windows[0]))
    delta, delta_error = pair_difference(nll, baseline.nll)
    rows = [count for count, _ in same]
    return Quality(
        recipe=recipe,
        perplexity=summary.perplexity,
        standard_error=summary.standard_error,
        delta=delta,
        delta_error=delta_error,
        mean_kl=float(np.average([a.mean_kl for _, a in same], weights=rows)) if same else 0.0,
        top1=float(np.average([a.top1 for _, a in same], weights=rows)) if same else 1.0,
        size=count_stored_bytes(directory),
        tokens_per_second=measure_decoding(engine, windows[0]),
    )


def compare_logits(expected: np.ndarray, found: np.ndarray) -> list[tuple[int, Agreement]]:
    """The agreement of logits [T, V] in chunks of a few rows, each with its number of rows."""
    chunks = [slice(start, start + ROWS) for start in range(0, len(expected), ROWS)]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        agreements = pool.map(lambda chunk: agreement(expected[chunk], found[chunk]), chunks)
        return [(len(found[chunk]), same) for chunk, same in zip(chunks, agreements, strict=True)]


def pair_difference(nll: np.ndarray, float_nll: np.ndarray) -> tuple[float, float]:
    """Perplexity less the float model's and its standard error, from cross entropies [n]."""
    ours, floats = (math.exp(min(float(x.mean()), 700.0)) for x in (nll, float_nll))
    error = (ours * nll - floats * float_nll).std() / math.sqrt(len(nll))
    return ours - floats, float(error)


def count_stored_bytes(directory: Path) -> int:
    """Bytes of the weights' files."""
    return sum(file.stat().st_size for file in directory.glob("*.safetensors"))


def measure_decoding(engine: AnyEngine, window: Sequence[int]) -> float:
    """New tokens per second after the beginning of a window: the median, after one warm-up."""
    steps = min(STEPS, len(window) // 2)
    prompt = list(window[: min(PROMPT, len(window) - steps)])
    rates = [steps / time_decoding(engine, [prompt], steps) for _ in range(RUNS)]
    return float(np.median(rates[1:]))
