"""Rules of codes: values outside the grid, -128, clipped weights, groups of zeros, NaN in FP8."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from planish.compare.lint.linear import StoredLinear
from planish.compare.lint.rules import Finding
from planish.reference.grids import expand_groups, num_groups

AT_ONCE = 2**22  # codes that are looked at together


@dataclass(frozen=True, kw_only=True)
class CodeCounts:
    """What one pass over the codes of a linear counts.

    ends: codes at the ends of the grid by row, dead groups left out, int [N].
    """

    total: int
    outside: int
    lowest: int  # how many are the least code of the grid
    dead: int
    groups: int
    ends: np.ndarray

    @property
    def saturation(self) -> float:
        """The share of codes at the ends of the grid."""
        return float(self.ends.sum() / max(self.total, 1))


def count_codes(linear: StoredLinear) -> CodeCounts | None:
    """One pass over the codes, some rows at a time; None for FP8, which has none."""
    if linear.codes is None:
        return None
    codes, (rows, cols) = linear.codes(), linear.shape
    step = max(AT_ONCE // max(cols, 1), 1)
    zero = zero_codes(linear)
    outside = lowest = dead = 0
    ends = np.zeros(rows, np.int64)
    for start in range(0, rows, step):
        some = codes[start : start + step]
        outside += int(((some < linear.low) | (some > linear.high)).sum())
        lowest += int((some == linear.low).sum())
        gone = dead_groups(linear, some, zero[start : start + step] if len(zero) > 1 else zero)
        dead += int(gone.sum())
        extreme = at_ends(linear, some) & ~expand(linear, gone)
        ends[start : start + step] = extreme.sum(axis=1)
    groups = rows * num_groups(cols, linear.group_size)
    return CodeCounts(
        total=rows * cols, outside=outside, lowest=lowest, dead=dead, groups=groups, ends=ends
    )


def zero_codes(linear: StoredLinear) -> np.ndarray:
    """The code of the weight 0 of each group, float64 [N, G] or [1, 1]; NaN where there is none."""
    if linear.offset is not None:
        with np.errstate(all="ignore"):
            return -linear.offset().astype(np.float64) / linear.scale().astype(np.float64)
    if callable(linear.zero):
        return linear.zero().astype(np.float64)
    return np.full((1, 1), float(linear.zero))


def dead_groups(linear: StoredLinear, codes: np.ndarray, zero: np.ndarray) -> np.ndarray:
    """Which groups hold nothing but the code of 0, bool [R, G]."""
    wide = zero if zero.shape[1] == 1 else expand(linear, zero)
    nothing = codes == wide  # [R, K]
    size = linear.group_size
    if size == -1:
        dead: np.ndarray = nothing.all(axis=1, keepdims=True)
        return dead
    short = -codes.shape[1] % size
    padded = np.pad(nothing, ((0, 0), (0, short)), constant_values=True)
    return padded.reshape(len(codes), -1, size).all(axis=2)


def expand(linear: StoredLinear, groups: np.ndarray) -> np.ndarray:
    """Values of groups [R, G] as one for each code, or [R, 1]."""
    if linear.group_size == -1:
        return groups
    return expand_groups(groups, linear.shape[1], linear.group_size)


def at_ends(linear: StoredLinear, codes: np.ndarray) -> np.ndarray:
    """Which codes are at an end of the grid; a symmetric grid may leave its least code out."""
    narrow = linear.offset is None and not callable(linear.zero)
    ends: np.ndarray = (codes <= linear.low + narrow) | (codes >= linear.high)
    return ends


def largest_share(linear: StoredLinear) -> float:
    """The share of codes at the ends that a row may have.

    Twice that of equally frequent codes, and twice what the largest weights of each group make.
    """
    cols = linear.shape[1]
    size = cols if linear.group_size == -1 else min(linear.group_size, cols)
    return float(4 / 2**linear.bits + 4 / size)


def check_codes(linear: StoredLinear, counts: CodeCounts) -> Iterator[Finding]:
    """Findings of the codes of a linear."""
    where, scheme = linear.prefix, linear.scheme
    if counts.outside:
        yield Finding(
            rule="code-range",
            where=where,
            count=counts.outside,
            total=counts.total,
            detail=range_of(linear),
        )
    if counts.lowest and linear.low == -128:
        allowed = linear.format != "planish" or (scheme is not None and scheme.foreign)
        rule = "code-minus-128" if allowed else "code-minus-128-refused"
        yield Finding(rule=rule, where=where, count=counts.lowest, total=counts.total)
    if counts.dead:
        yield Finding(rule="group-dead", where=where, count=counts.dead, total=counts.groups)
    most = largest_share(linear)
    clipped = int((counts.ends > most * linear.shape[1]).sum())
    if clipped:
        share = f"more than {most:.0%} of the codes"
        rows = linear.shape[0]
        yield Finding(rule="code-saturated", where=where, count=clipped, total=rows, detail=share)


def range_of(linear: StoredLinear) -> str:
    """The range of codes as the format counts them: -8..7 for a symmetric grid around 0."""
    if linear.zero == 8 and linear.format == "int-quantized":
        return f"{linear.low - 8}..{linear.high - 8}"
    return f"{linear.low}..{linear.high}"
