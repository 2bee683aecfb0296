"""Calibration: statistics of the inputs of a block's linears on real text.

SmoothQuant and static scales need the absmax of each input channel of each linear; other methods
need other statistics. All are running statistics: an Observer measures the inputs of one sample
and merges the result with the previous one, so inputs need not be kept. The samples' hidden states
pass through one block after another, so a model larger than memory can be calibrated. The default
is that of SmoothQuant's code (arXiv 2211.10438): 512 samples of 512 tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from os.path import commonprefix
from typing import Any

import numpy as np

from planish.reference.errors import PromptError, QuantizationError, notice
from planish.reference.model.config import ModelConfig
from planish.reference.model.transformer import ROTATED, Tap, block_forward, embed, no_tap
from planish.reference.model.weights import Block, Weights
from planish.reference.progress import Progress, no_progress
from planish.reference.quantize.hidden import UNLIMITED, States, Store

NUM_SAMPLES, SAMPLE_LENGTH = 512, 512


Statistics = dict[str, np.ndarray]  # name of a linear in its block -> an observer's result
ChannelAbsmax = dict[str, np.ndarray]  # the results of ABSMAX, float32 [K]


@dataclass(frozen=True, kw_only=True)
class Observer:
    """A running statistic of the inputs x [T, K] of a linear.

    measure(x) takes one sample, as a NumPy or JAX array, so it may use only operators and methods
    of arrays. merge takes two results as NumPy arrays; merge(measure(a), measure(b)) must equal
    measure of a followed by b. A Hessian is measure=lambda x: x.T @ x, merge=np.add. For experts,
    whose rows come in tiles padded with zeros, the fast runner needs a merge that is a ufunc
    (np.maximum, np.add) and a measure that zero rows do not change.
    """

    measure: Callable[[Any], Any]
    merge: Callable[[np.ndarray, np.ndarray], np.ndarray]

    def add(self, statistics: Statistics, name: str, found: np.ndarray) -> None:
        """Merge one result into the statistic of a linear."""
        before = statistics.get(name)
        statistics[name] = found if before is None else self.merge(before, found)


def channel_absmax(x: Any) -> Any:
    """max over tokens of |x_j|: [T, K] -> [K]."""
    return abs(x).max(axis=0)


ABSMAX = Observer(measure=channel_absmax, merge=np.maximum)


def second_moments(x: Any) -> Any:
    """sum over tokens of x xt: [T, K] -> [K, K]; fast/quantize/moments.py has a faster form."""
    return x.T @ x


MOMENTS = Observer(measure=second_moments, merge=np.add)


def cut_samples(
    ids: Sequence[int],
    count: int = NUM_SAMPLES,
    length: int = SAMPLE_LENGTH,
    seed: int | None = None,
) -> list[np.ndarray]:
    """`count` windows of `length` tokens; fewer, with a notice, if the text has fewer.

    The windows follow each other without overlap from the text's beginning. Without a seed the
    first ones are taken. With one, numpy.random.default_rng(seed).choice draws them from all
    windows, none twice, and they keep the text's order. Raises PromptError if there is none.
    """
    if count < 1 or length < 1:
        found, expected = f"{count} of {length}", "at least 1 sample of 1 token"
        raise PromptError("bad value", name="calibration", expected=expected, found=found)
    there = len(ids) // length
    windows = min(count, there)
    if windows == 0:
        raise PromptError(
            "is too short", name="calibration", expected=f"at least {length} tokens", found=len(ids)
        )
    if windows < count:
        samples = f"{windows} sample{'s' * (windows > 1)} of {length} tokens"
        notice(f"calibrating on {samples}: the text has no more")
    chosen = choose_windows(windows, there, seed)
    return [np.asarray(ids[i * length : (i + 1) * length]) for i in chosen]


def choose_windows(count: int, there: int, seed: int | None) -> list[int]:
    """The first `count` of `there` numbers or, with a seed, some drawn at random, ascending."""
    if seed is None or count == there:
        return [*range(count)]
    return sorted(np.random.default_rng(seed).choice(there, count, replace=False).tolist())


def spread(count: int, most: int) -> list[int]:
    """At most `most` of the numbers below `count`, evenly spaced."""
    chosen = min(count, most)
    return [index * count // chosen for index in range(chosen)]


def fingerprint(samples: Sequence[np.ndarray]) -> dict[str, Any]:
    """The calibration as config.json records it: count, length, and a hash of the token ids."""
    digest = hashlib.sha256(np.stack(samples).astype("<i4").tobytes()).hexdigest()
    return {"samples": len(samples), "length": len(samples[0]), "sha256": digest}


def embed_samples(
    config: ModelConfig,
    weights: Weights,
    samples: Sequence[np.ndarray],
    store: Store = UNLIMITED,
) -> States:
    """The input of the first block: hidden states [T, D] of each sample."""
    states = store.new()
    states.extend(embed(config, weights, tokens, np.arange(len(tokens))) for tokens in samples)
    return states


def run_block(config: ModelConfig, block: Block, x: np.ndarray, tap: Tap = no_tap) -> np.ndarray:
    """Run one block on a whole sample [T, D], without a KV cache."""
    nothing = np.zeros((0, config.num_kv_heads, config.head_dim), np.float32)
    return block_forward(config, block, x, np.arange(len(x)), (nothing, nothing), tap)[0]


def observe_block(
    config: ModelConfig,
    block: Block,
    hidden: Sequence[np.ndarray],
    names: Mapping[str, str] | None = None,
    observer: Observer = ABSMAX,
    parts: Collection[str] | None = None,
    store: Store = UNLIMITED,
) -> tuple[Statistics, States]:
    """Statistics of the inputs of a block's linears, and the block's output hidden states.

    parts: only these are observed, linears or names of ROTATED (all linears if None), and the
    outputs are empty. store: where outputs go.
    Raises QuantizationError if the float model overflows on the samples; `names` are the names of
    the block's linears for this error.
    """
    statistics: Statistics = {}
    called, outputs = names or {}, store.new()

    def tap(name: str, x: np.ndarray) -> None:
        if name in ROTATED if parts is None else name not in parts:
            return
        if not np.isfinite(x).all():
            raise reads_overflow(called.get(name, name))
        observer.add(statistics, name, observer.measure(x))

    with np.errstate(all="ignore"):  # the checks report them by name
        for x in hidden:
            y = run_block(config, block, x, tap)
            require_finite_output(np.abs(y).max(), called)
            if parts is None:
                outputs.append(y)
    return statistics, outputs


def reads_overflow(name: str) -> QuantizationError:
    """The error for a linear whose input is not finite."""
    what = f"{name}: the activations that it reads"
    return QuantizationError(f"{what} overflow float32 in the float model's calibration")


def require_finite_output(largest: np.floating[Any], names: Mapping[str, str]) -> None:
    """Raise QuantizationError unless a block's largest output and its square are finite.

    The next norm takes the mean of the squares.
    """
    with np.errstate(over="ignore"):
        squared = np.square(largest)
    for what, value in (("", largest), ("squared ", squared)):
        if not np.isfinite(value):
            left = f"{block_name(names)}: the {what}hidden states that leave it"
            raise QuantizationError(f"{left} overflow float32 in the float model's calibration")


def require_finite_states(states: Sequence[np.ndarray], names: Mapping[str, str]) -> None:
    """Raise QuantizationError, naming the block, if its quantized form overflows on a sample."""
    if not all(np.isfinite(np.abs(x).max()) for x in states):
        left = f"{block_name(names)}: the hidden states that leave it"
        raise QuantizationError(f"{left} overflow float32 once it is quantized")


def block_name(names: Mapping[str, str]) -> str:
    """What the names of a block's linears begin with: model.layers.3."""
    start = commonprefix([*names.values()])  # noqa: RUF071  (not paths: names, by characters)
    return start.rstrip(".") or "block"


def calibrate(
    config: ModelConfig,
    weights: Weights,
    samples: Sequence[np.ndarray],
    progress: Progress = no_progress,
) -> list[ChannelAbsmax]:
    """xmax_j = max over tokens of |x_j|, float32 [K], at the input of every linear of every block.

    Source: get_act_scales of SmoothQuant's calibration.py,
    https://github.com/mit-han-lab/smoothquant.
    """
    hidden: Sequence[np.ndarray] = embed_samples(config, weights, samples)
    observed = []
    for block in progress(weights.blocks, "calibrate"):
        absmax, hidden = observe_block(config, block, hidden)
        observed.append(absmax)
    return observed
