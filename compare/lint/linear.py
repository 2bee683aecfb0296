"""One quantized linear as it is stored, whoever wrote it: what the rules look at.

The readers of reference/files/formats say how codes, scales and zero points are computed from the
file; they check shapes, and no values. One linear is in memory at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from planish.compare.lint.rules import Finding
from planish.reference.errors import PlanishError
from planish.reference.files.formats.stored import Compute, Stored
from planish.reference.grids import SYMMETRIC_ZERO, expand_groups
from planish.reference.packing import unpack_nibbles
from planish.reference.scheme import Scheme


@dataclass(frozen=True, kw_only=True)
class StoredLinear:
    """W [N, K] = (codes - zero) * scale, or codes * scale + offset.

    format: gptq, awq, pack-quantized, int-quantized, float-quantized, fp8, mlx, torchao, Q4_0, ...
    bits: of a code in the file. group_size: -1 for one scale a row (or tensor), 0 for FP8's blocks.
    low, high: the ends of the grid, in the domain of `codes`. codes: [N, K] integers, None where
    only scales are looked at. scale, zero, offset: [N, G], [N, 1] or [1, 1]. zero: a number if it
    is the same everywhere. scale_type: of the file, such as F16. order: the inputs' permutation.
    file_scale: scales as the file has them, if they are not `scale`: those of GGUF's blocks.
    weights: float32 [N, K], where the format has no scheme.
    """

    prefix: str
    format: str
    bits: int
    shape: tuple[int, int]
    scale: Compute
    scale_type: str
    group_size: int = -1
    scheme: Scheme | None = None
    low: int = 0
    high: int = 0
    codes: Compute | None = None
    zero: Compute | int = 0
    offset: Compute | None = None
    order: Compute | None = None
    input_scale: Compute | None = None
    file_scale: Compute | None = None
    weights: Compute | None = None


Readable = StoredLinear | Finding


def read_or_report(prefix: str, read: Callable[[str], StoredLinear]) -> Readable:
    """The linear, or the finding that says why it cannot be read."""
    try:
        return read(prefix)
    except PlanishError as problem:
        rule = "linear-unsupported" if is_unsupported(problem) else "linear-unreadable"
        return Finding(rule=rule, where=prefix, detail=describe(problem, prefix))


def is_unsupported(problem: PlanishError) -> bool:
    """Whether a linear may well be right, and planish has no arithmetic for it."""
    inputs = (problem.name or "").endswith("input_activations")
    return inputs or problem.problem.startswith("cannot be read")


def describe(problem: PlanishError, prefix: str) -> str:
    """An error without its path and the linear's name, so that those of many linears are one."""
    kind = (problem.name or "").removeprefix(prefix).lstrip(".")
    words = f"{kind}: {problem.problem}" if kind else problem.problem
    words += f"; expected {problem.expected}" if problem.expected is not None else ""
    words += f", found {problem.found}" if problem.found is not None else ""
    return words.replace(prefix, "it")


def on_grid(prefix: str, form: str, bits: int, stored: Stored, scale_type: str) -> StoredLinear:
    """The linear of a stored one that has a scheme. form, scale_type: as in StoredLinear."""
    scheme = stored.scheme
    assert scheme is not None and stored.scale is not None
    low, high, zero = ends_of(scheme, bits)
    return StoredLinear(
        prefix=prefix,
        format=form,
        bits=bits,
        shape=stored.shape,
        group_size=scheme.group_size,
        scheme=scheme,
        low=low,
        high=high,
        codes=_one_by_one(stored),
        scale=stored.scale,
        scale_type=scale_type,
        zero=zero if stored.zero_point is None else stored.zero_point,
        offset=stored.offset,
        order=stored.order,
        input_scale=stored.input_scale,
    )


def _one_by_one(stored: Stored) -> Compute:
    """The codes of a reader that may hand them over two a byte."""
    if not stored.packed:
        return stored.codes
    return lambda: unpack_nibbles(stored.codes(), stored.shape[1])


def ends_of(scheme: Scheme, bits: int) -> tuple[int, int, int]:
    """The least and the greatest code, and the zero point where none is stored."""
    half = 2 ** (bits - 1)
    if scheme.bits == 8 and not scheme.offset:
        return -half, half - 1, 0
    if scheme.symmetric:
        return SYMMETRIC_ZERO - half, SYMMETRIC_ZERO + half - 1, SYMMETRIC_ZERO
    return 0, 2 * half - 1, 0


def dequantize(linear: StoredLinear) -> np.ndarray:
    """W, float32 [N, K], inputs in the model's order."""
    if linear.weights is not None or linear.codes is None:
        assert linear.weights is not None
        return linear.weights()
    w = linear.codes().astype(np.float32)
    w -= _expand(linear, linear.zero() if callable(linear.zero) else linear.zero)
    w *= _expand(linear, linear.scale())
    if linear.offset is not None:
        w += _expand(linear, linear.offset())
    return w if linear.order is None else w[:, np.argsort(linear.order())]


def _expand(linear: StoredLinear, values: np.ndarray | int) -> np.ndarray | np.float32:
    """Values of groups as float32, one for each code or for each row."""
    if isinstance(values, int):
        return np.float32(values)
    wide = values.astype(np.float32)
    if linear.group_size == -1:
        return wide
    return expand_groups(wide, linear.shape[1], linear.group_size)
