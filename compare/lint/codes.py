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

    lowest: how many are the least code of the grid. dead: groups of zeros, bool [N, G]. ends: codes
    at the ends of the grid, dead groups left out, int [N, G].
    """

    total: int
    outside: int
    lowest: int
    dead: np.ndarray
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
    zero, outside, lowest = zero_codes(linear), 0, 0
    groups = num_groups(cols, linear.group_size)
    dead, ends = np.zeros((rows, groups), bool), np.zeros((rows, groups), np.int32)
    for start in range(0, rows, step):
        part = slice(start, start + step)
        some = codes[part]
        outside += int(((some < linear.low) | (some > linear.high)).sum())
        lowest += int((some == linear.low).sum())
        wide = expand(linear, zero[part] if len(zero) > 1 else zero)
        dead[part] = ~by_group(linear, some != wide).any(axis=2)
        ends[part] = by_group(linear, at_ends(linear, some)).sum(axis=2) * ~dead[part]
    return CodeCounts(total=rows * cols, outside=outside, lowest=lowest, dead=dead, ends=ends)


def zero_codes(linear: StoredLinear) -> np.ndarray:
    """The code of the weight 0 of each group, float64 [N, G] or [1, 1]; NaN where there is none."""
    if linear.offset is not None:
        with np.errstate(all="ignore"):
            return -linear.offset().astype(np.float64) / linear.scale().astype(np.float64)
    if callable(linear.zero):
        return linear.zero().astype(np.float64)
    return np.full((1, 1), float(linear.zero))


def by_group(linear: StoredLinear, mask: np.ndarray) -> np.ndarray:
    """[R, K] -> [R, G, g]; a short last group is filled with False."""
    size = mask.shape[1] if linear.group_size == -1 else linear.group_size
    padded = np.pad(mask, ((0, 0), (0, -mask.shape[1] % size)))
    return padded.reshape(len(mask), -1, size)


def expand(linear: StoredLinear, groups: np.ndarray) -> np.ndarray:
    """Values of groups [R, G] as one for each code, or [R, 1]."""
    if groups.shape[1] == 1:
        return groups
    return expand_groups(groups, linear.shape[1], linear.group_size)


def at_ends(linear: StoredLinear, codes: np.ndarray) -> np.ndarray:
    """Which codes are at an end of the grid; a symmetric grid may leave its least code out."""
    narrow = linear.offset is None and not callable(linear.zero)
    ends: np.ndarray = (codes <= linear.low + narrow) | (codes >= linear.high)
    return ends


def largest_share(linear: StoredLinear) -> float:
    """The share of codes at the ends that a group may have.

    Twice that of equally frequent codes, and twice what the largest weights of a group make.
    """
    cols = linear.shape[1]
    size = cols if linear.group_size == -1 else min(linear.group_size, cols)
    return float(4 / 2**linear.bits + 4 / size)


def clipped_rows(linear: StoredLinear, counts: CodeCounts) -> int:
    """How many rows have more at the ends in most of their groups: one may well be constant."""
    size = linear.shape[1] if linear.group_size == -1 else linear.group_size
    over = counts.ends > largest_share(linear) * min(size, linear.shape[1])
    return int((over.mean(axis=1) > 0.5).sum())


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
    if counts.dead.any():
        dead = int(counts.dead.sum())
        yield Finding(rule="group-dead", where=where, count=dead, total=counts.dead.size)
    clipped = clipped_rows(linear, counts)
    if clipped:
        share = f"more than {largest_share(linear):.0%} of the codes"
        rows = linear.shape[0]
        yield Finding(rule="code-saturated", where=where, count=clipped, total=rows, detail=share)


def range_of(linear: StoredLinear) -> str:
    """The range of codes as the format counts them: -8..7 for a symmetric grid around 0."""
    if linear.zero == 8 and linear.format == "int-quantized":
        return f"{linear.low - 8}..{linear.high - 8}"
    return f"{linear.low}..{linear.high}"
