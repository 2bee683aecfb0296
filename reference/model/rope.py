"""Rotary positions and the ways in which models stretch them beyond their training length.

Pair i of a head is turned by the angle position * f_i, f_i = theta ** (-2i / dim) as a rule.
Su et al. 2021. The stretched kinds are those of transformers' modeling_rope_utils:

    linear     f_i / factor                                   Chen et al. 2023
    dynamic    theta grows with the sequence's length         "NTK-aware", bloc97 2023
    llama3     slow pairs / factor, fast ones kept            Llama 3.1
    yarn       the same with a linear ramp, and a scale       Peng et al. 2023
    longrope   f_i / short_i or / long_i, by the length       Ding et al. 2024

dynamic and longrope depend on the sequence's length when a token is computed: of a prompt, its
whole length, whatever the chunks; of a token that is decoded, its own position + 1. What is
cached is not turned again, as in transformers' cache. (Its generate empties Phi-3's cache when a
text grows over `original`, and computes it all anew; we do not.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Interpolation:
    factor: float
    original: int | None = field(default=None, compare=False)  # for its reach, not for its angles


@dataclass(frozen=True, kw_only=True)
class Dynamic:
    factor: float
    original: int  # positions of the training


@dataclass(frozen=True, kw_only=True)
class Llama3:
    factor: float
    low: float  # wavelengths above original / low are stretched, those below original / high kept
    high: float
    original: int


@dataclass(frozen=True, kw_only=True)
class Yarn:
    factor: float
    magnitude: float  # of cos and sin
    fast: float  # turns within `original` above which a pair is kept,
    slow: float  # and below which it is stretched by the whole factor
    original: int
    truncate: bool  # the ramp's ends are whole pairs


@dataclass(frozen=True, kw_only=True)
class LongRope:
    short: tuple[float, ...]  # [dim / 2], up to `original` positions
    long: tuple[float, ...]
    magnitude: float
    original: int


Stretch = Interpolation | Dynamic | Llama3 | Yarn | LongRope


@dataclass(frozen=True, kw_only=True)
class Rope:
    """Rotary positions of the first `dim` entries of each head.

    Pairs are (i, i + dim / 2), or neighbours (2i, 2i + 1) where `interleaved`.
    """

    theta: float
    dim: int
    interleaved: bool = False
    stretch: Stretch | None = None

    @property
    def by_length(self) -> bool:
        """Whether angles depend on the sequence's length."""
        return isinstance(self.stretch, Dynamic | LongRope)


def frequencies(rope: Rope, length: int) -> np.ndarray:
    """f [dim / 2] for a sequence of `length` tokens; powers in float64, rounded once."""
    theta, stretch = rope.theta, rope.stretch
    if isinstance(stretch, Dynamic) and length > stretch.original:
        growth = stretch.factor * length / stretch.original - (stretch.factor - 1)
        theta *= growth ** (rope.dim / (rope.dim - 2))
    power = np.power(theta, np.arange(0, rope.dim, 2) / rope.dim).astype(np.float32)
    if isinstance(stretch, LongRope):
        factors = stretch.long if length > stretch.original else stretch.short
        return np.float32(1) / (np.array(factors, np.float32) * power)
    frequency = np.float32(1) / power
    if isinstance(stretch, Interpolation):
        return frequency / np.float32(stretch.factor)
    if isinstance(stretch, Llama3):
        return llama3_frequencies(frequency, stretch)
    if isinstance(stretch, Yarn):
        return yarn_frequencies(frequency, rope, stretch)
    return frequency


def llama3_frequencies(frequency: np.ndarray, stretch: Llama3) -> np.ndarray:
    """Between the two wavelengths a mixture, linear in the turns within `original`."""
    turns = stretch.original * frequency / np.float32(2 * math.pi)  # original / wavelength
    kept = np.clip((turns - stretch.low) / (stretch.high - stretch.low), 0, 1).astype(np.float32)
    return (1 - kept) * frequency / np.float32(stretch.factor) + kept * frequency


def yarn_frequencies(frequency: np.ndarray, rope: Rope, stretch: Yarn) -> np.ndarray:
    """A ramp over the pairs, from the one that turns `fast` times to the one that turns `slow`."""

    def pair(turns: float) -> float:
        wavelength = stretch.original / (turns * 2 * math.pi)
        return rope.dim * math.log(wavelength) / (2 * math.log(rope.theta))

    low, high = pair(stretch.fast), pair(stretch.slow)
    if stretch.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.dim - 1)
    high = high + 0.001 if low == high else high
    ramp = np.clip((np.arange(rope.dim // 2) - low) / (high - low), 0, 1).astype(np.float32)
    return frequency / np.float32(stretch.factor) * ramp + frequency * (1 - ramp)


def magnitude(rope: Rope) -> float:
    """What cos and sin are multiplied with."""
    stretch = rope.stretch
    return stretch.magnitude if isinstance(stretch, Yarn | LongRope) else 1.0


def rotations(rope: Rope, positions: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """cos and sin [T, dim / 2] of positions [T] in a sequence of `length` tokens."""
    angle = positions.astype(np.float32)[:, None] * frequencies(rope, length)
    scale = np.float32(magnitude(rope))
    return np.cos(angle) * scale, np.sin(angle) * scale


def decoding_rotations(rope: Rope, slots: int) -> tuple[np.ndarray, np.ndarray]:
    """cos and sin [slots, dim / 2] of tokens each computed when it was its sequence's last."""
    positions = np.arange(slots)
    if not rope.by_length:
        return rotations(rope, positions, slots)
    rows = [rotations(rope, positions[p : p + 1], p + 1) for p in range(slots)]
    cos, sin = zip(*rows, strict=True)
    return np.concatenate(cos), np.concatenate(sin)


def rotate(x: np.ndarray, cos: np.ndarray, sin: np.ndarray, rope: Rope) -> np.ndarray:
    """Turn the pairs of the first `dim` entries of x [T, heads, Hd] by cos and sin [T, dim / 2]."""
    cos, sin = cos[:, None, :], sin[:, None, :]  # [T, 1, dim / 2]
    turned, rest = x[..., : rope.dim], x[..., rope.dim :]
    if rope.interleaved:
        a, b = turned[..., 0::2], turned[..., 1::2]  # [T, heads, dim / 2] each
        turned = np.stack([a * cos - b * sin, b * cos + a * sin], axis=-1)
        return np.concatenate([turned.reshape(*x.shape[:-1], rope.dim), rest], axis=-1)
    a, b = np.split(turned, 2, axis=-1)
    return np.concatenate([a * cos - b * sin, b * cos + a * sin, rest], axis=-1)
