"""Calibration: the running absmax at the input of every linear, block by block.

SmoothQuant and static scales need to know how large each input channel of each linear gets on
real text. The samples' hidden states are carried through one block after another, so a model
larger than memory can be calibrated. Default as in the original: 512 samples of 512 tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from os.path import commonprefix
from typing import Any

import numpy as np

from planish.reference.errors import PromptError, QuantizationError, notice
from planish.reference.model.config import ModelConfig
from planish.reference.model.transformer import block_forward, embed, no_tap
from planish.reference.model.weights import Block, Weights

NUM_SAMPLES, SAMPLE_LENGTH = 512, 512

ChannelAbsmax = dict[str, np.ndarray]  # name of a linear in its block -> float32 [K]
Progress = Callable[..., Iterable[Any]]


def no_progress(items: Iterable[Any], description: str = "") -> Iterable[Any]:
    """A progress bar that shows nothing."""
    return items


def cut_samples(
    ids: Sequence[int], count: int = NUM_SAMPLES, length: int = SAMPLE_LENGTH
) -> list[np.ndarray]:
    """The first `count` windows of `length` tokens; fewer, with a notice, if the text has fewer.

    Raises PromptError if it has none.
    """
    if count < 1 or length < 1:
        found, expected = f"{count} of {length}", "at least 1 sample of 1 token"
        raise PromptError("bad value", name="calibration", expected=expected, found=found)
    windows = min(count, len(ids) // length)
    if windows == 0:
        raise PromptError(
            "is too short", name="calibration", expected=f"at least {length} tokens", found=len(ids)
        )
    if windows < count:
        samples = f"{windows} sample{'s' * (windows > 1)} of {length} tokens"
        notice(f"calibrating on {samples}: the text has no more")
    return [np.asarray(ids[i * length : (i + 1) * length]) for i in range(windows)]


def fingerprint(samples: Sequence[np.ndarray]) -> dict[str, Any]:
    """What a checkpoint records of its calibration: count, length and a hash of the token ids."""
    digest = hashlib.sha256(np.stack(samples).astype("<i4").tobytes()).hexdigest()
    return {"samples": len(samples), "length": len(samples[0]), "sha256": digest}


def embed_samples(
    config: ModelConfig, weights: Weights, samples: Sequence[np.ndarray]
) -> list[np.ndarray]:
    """Hidden states [T, D] that enter the first block."""
    return [embed(config, weights, tokens, np.arange(len(tokens))) for tokens in samples]


def run_block(
    config: ModelConfig,
    block: Block,
    x: np.ndarray,
    tap: Callable[[str, np.ndarray], None] = no_tap,
) -> np.ndarray:
    """One block over one whole sample [T, D], nothing cached."""
    nothing = np.zeros((0, config.num_kv_heads, config.head_dim), np.float32)
    return block_forward(config, block, x, np.arange(len(x)), (nothing, nothing), tap)[0]


def observe_block(
    config: ModelConfig,
    block: Block,
    hidden: Sequence[np.ndarray],
    names: Mapping[str, str] | None = None,
) -> tuple[ChannelAbsmax, list[np.ndarray]]:
    """Absmax per input channel of a block's linears, and the hidden states that leave it.

    Raises QuantizationError where the float model overflows on the samples. `names` says how the
    block's linears are called there.
    """
    absmax: ChannelAbsmax = {}
    called = names or {}

    def tap(name: str, x: np.ndarray) -> None:
        largest = np.abs(x).max(axis=0)
        _require_finite(largest, f"{called.get(name, name)}: the activations that it reads")
        absmax[name] = np.maximum(absmax[name], largest) if name in absmax else largest

    outputs, where = [], commonprefix([*called.values()]).rstrip(".") or "block"
    with np.errstate(all="ignore"):  # reported by name instead
        for x in hidden:
            outputs.append(run_block(config, block, x, tap))
            _require_finite(outputs[-1], f"{where}: the hidden states that leave it")
            squares = np.square(outputs[-1])  # of which a norm takes the mean
            _require_finite(squares, f"{where}: the squared hidden states that leave it")
    return absmax, outputs


def _require_finite(x: np.ndarray, what: str) -> None:
    if not np.isfinite(x).all():
        raise QuantizationError(f"{what} overflow float32 in the float model's calibration")


def calibrate(
    config: ModelConfig,
    weights: Weights,
    samples: Sequence[np.ndarray],
    progress: Progress = no_progress,
) -> list[ChannelAbsmax]:
    """xmax_j = max over tokens of |x_j| at the input of every linear of every block.

    Source: SmoothQuant's calibration.py (get_act_scales).
    """
    hidden, observed = embed_samples(config, weights, samples), []
    for block in progress(weights.blocks, "calibrate"):
        absmax, hidden = observe_block(config, block, hidden)
        observed.append(absmax)
    return observed
