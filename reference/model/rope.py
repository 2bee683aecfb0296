"""Rotary position embeddings, and how models scale them beyond their training length.

RoPE (Su et al. 2021, arXiv 2104.09864) rotates pair i of a head by the angle position * f_i, with
f_i = theta ** (-2i / dim) unless a scaling changes it. The scalings are those of transformers'
modeling_rope_utils:

    linear     f_i / factor                                   Chen et al. 2023, arXiv 2306.15595
    dynamic    theta grows with the sequence's length         "NTK-aware", bloc97 2023
    llama3     f_i / factor for slow pairs, f_i for fast ones Llama 3.1, arXiv 2407.21783
    yarn       a linear ramp between them, and cos and sin    Peng et al. 2023, arXiv 2309.00071
               are multiplied by attention_factor
    longrope   f_i / short_factor_i or / long_factor_i,       Ding et al. 2024, arXiv 2402.13753
               depending on the length

The fields of a scaling have the names of the keys in config.json.

dynamic and longrope depend on the length of the sequence when a token is computed. For a prompt
that is its whole length, however it is chunked; for a decoded token, its own position + 1. Cached
keys are not rotated again, as in transformers. (Its `generate` discards Phi-3's cache when a text
grows beyond the original length and recomputes everything; planish does not.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Interpolation:
    """Rope type `linear`. The original length does not affect the angles, only max_positions."""

    factor: float
    original_max_position_embeddings: int | None = field(default=None, compare=False)


@dataclass(frozen=True, kw_only=True)
class Dynamic:
    """Rope type `dynamic`."""

    factor: float
    original_max_position_embeddings: int


@dataclass(frozen=True, kw_only=True)
class Llama3:
    """Rope type `llama3`.

    With L = original_max_position_embeddings, pairs with a wavelength above L / low_freq_factor
    are scaled by the whole factor, those below L / high_freq_factor not at all.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


@dataclass(frozen=True, kw_only=True)
class Yarn:
    """Rope type `yarn`.

    Within the original length, pairs that make more than beta_fast rotations keep their frequency,
    and those that make fewer than beta_slow are scaled by the whole factor.
    """

    factor: float
    attention_factor: float  # multiplies cos and sin
    beta_fast: float
    beta_slow: float
    original_max_position_embeddings: int
    truncate: bool  # round the ends of the ramp to whole pairs


@dataclass(frozen=True, kw_only=True)
class LongRope:
    """Rope type `longrope`: one factor per pair, short_factor up to the original length."""

    short_factor: tuple[float, ...]  # [dim / 2]
    long_factor: tuple[float, ...]  # [dim / 2]
    attention_factor: float  # multiplies cos and sin
    original_max_position_embeddings: int


RopeScaling = Interpolation | Dynamic | Llama3 | Yarn | LongRope


@dataclass(frozen=True, kw_only=True)
class Rope:
    """Rotation of the first `dim` channels of each head.

    Pairs are (i, i + dim / 2), or the neighbours (2i, 2i + 1) if `interleaved`.
    """

    theta: float
    dim: int
    interleaved: bool = False
    scaling: RopeScaling | None = None

    @property
    def by_length(self) -> bool:
        """Whether the angles depend on the length of the sequence."""
        return isinstance(self.scaling, Dynamic | LongRope)


def frequencies(rope: Rope, length: int) -> np.ndarray:
    """f [dim / 2] for a sequence of `length` tokens; powers in float64, rounded once."""
    theta, scaling = rope.theta, rope.scaling
    if isinstance(scaling, Dynamic):
        theta = dynamic_theta(rope, scaling, length)
    power = np.power(theta, np.arange(0, rope.dim, 2) / rope.dim).astype(np.float32)
    if isinstance(scaling, LongRope):
        beyond = length > scaling.original_max_position_embeddings
        factors = scaling.long_factor if beyond else scaling.short_factor
        power = np.array(factors, np.float32) * power
    frequency: np.ndarray = np.float32(1) / power
    if isinstance(scaling, Interpolation):
        return frequency / np.float32(scaling.factor)
    if isinstance(scaling, Llama3):
        return llama3_frequencies(frequency, scaling)
    if isinstance(scaling, Yarn):
        return yarn_frequencies(frequency, rope, scaling)
    return frequency


def dynamic_theta(rope: Rope, scaling: Dynamic, length: int) -> float:
    """theta * (factor * length / L - (factor - 1)) ** (dim / (dim - 2)) beyond the length L."""
    original, factor = scaling.original_max_position_embeddings, scaling.factor
    if length <= original:
        return rope.theta
    growth = factor * length / original - (factor - 1)
    return rope.theta * float(growth ** (rope.dim / (rope.dim - 2)))


def llama3_frequencies(frequency: np.ndarray, scaling: Llama3) -> np.ndarray:
    """(1 - kept) f / factor + kept f; `kept` rises from 0 to 1 between the two wavelengths.

    It is linear in L / wavelength, the number of rotations within the original length.
    """
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    rotated = scaling.original_max_position_embeddings * frequency / np.float32(2 * math.pi)
    kept = np.clip((rotated - low) / (high - low), 0, 1).astype(np.float32)
    scaled: np.ndarray = (1 - kept) * frequency / np.float32(scaling.factor) + kept * frequency
    return scaled


def yarn_frequencies(frequency: np.ndarray, rope: Rope, scaling: Yarn) -> np.ndarray:
    """f (1 - ramp) + f / factor * ramp; the ramp rises from 0 to 1 over the pairs.

    It begins at the pair that makes beta_fast rotations within the original length and ends at
    the pair that makes beta_slow.
    """

    def pair(rotations: float) -> float:
        wavelength = scaling.original_max_position_embeddings / (rotations * 2 * math.pi)
        return rope.dim * math.log(wavelength) / (2 * math.log(rope.theta))

    low, high = pair(scaling.beta_fast), pair(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.dim - 1)
    high = high + 0.001 if low == high else high
    ramp = np.clip((np.arange(rope.dim // 2) - low) / (high - low), 0, 1).astype(np.float32)
    scaled: np.ndarray = frequency / np.float32(scaling.factor) * ramp + frequency * (1 - ramp)
    return scaled


def attention_factor(rope: Rope) -> float:
    """The factor by which cos and sin are multiplied."""
    scaling = rope.scaling
    return scaling.attention_factor if isinstance(scaling, Yarn | LongRope) else 1.0


def rotations(rope: Rope, positions: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """cos and sin [T, dim / 2] of positions [T] in a sequence of `length` tokens."""
    angle = positions.astype(np.float32)[:, None] * frequencies(rope, length)
    scale = np.float32(attention_factor(rope))
    return np.cos(angle) * scale, np.sin(angle) * scale


def decoding_rotations(rope: Rope, slots: int) -> tuple[np.ndarray, np.ndarray]:
    """cos and sin [slots, dim / 2] of decoded tokens, each the last of its sequence at the time."""
    positions = np.arange(slots)
    if not rope.by_length:
        return rotations(rope, positions, slots)
    rows = [rotations(rope, positions[p : p + 1], p + 1) for p in range(slots)]
    cos, sin = zip(*rows, strict=True)
    return np.concatenate(cos), np.concatenate(sin)


def rotate(x: np.ndarray, cos: np.ndarray, sin: np.ndarray, rope: Rope) -> np.ndarray:
    """Rotate the pairs of the first `dim` channels of x [T, heads, Hd]: cos, sin [T, dim / 2].

    A pair (a, b) becomes (a cos - b sin, b cos + a sin).
    """
    cos, sin = cos[:, None, :], sin[:, None, :]  # [T, 1, dim / 2]
    rotary, rest = (
        x[..., : rope.dim],
        x[..., rope.dim :],
    )
    if rope.interleaved:
        a, b = rotary[..., 0::2], rotary[..., 1::2]  # [T, heads, dim / 2] each
        rotated = np.stack([a * cos - b * sin, b * cos + a * sin], axis=-1)
        return np.concatenate([rotated.reshape(*x.shape[:-1], rope.dim), rest], axis=-1)
    a, b = np.split(rotary, 2, axis=-1)  # [T, heads, dim / 2] each
    return np.concatenate([a * cos - b * sin, b * cos + a * sin, rest], axis=-1)
