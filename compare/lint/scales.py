"""Rules of scales and offsets: 0, NaN, infinite, denormal, negative, or rounded by a reader."""

from __future__ import annotations

from collections.abc import Iterator

import ml_dtypes
import numpy as np

from planish.compare.lint.linear import StoredLinear
from planish.compare.lint.rules import Finding
from planish.reference.files.formats.gguf_blocks import TYPES

SMALLEST = {"F16": 2.0**-14, "BF16": 2.0**-126, "F32": 2.0**-126}  # normal
NAMES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32"}
CAST = {"bfloat16": np.dtype(ml_dtypes.bfloat16), "float16": np.dtype(np.float16)}
ROUNDED = ("pack-quantized", "gptq", "awq")  # vLLM keeps their scales in the model's dtype


def check_scales(
    linear: StoredLinear, dtype: str | None = None, dead: np.ndarray | None = None
) -> Iterator[Finding]:
    """Findings of a linear's scales and offsets.

    dtype: the model's, in config.json. dead: groups of zeros, bool [N, G], whose scale may be
    denormal. A block of GGUF whose scale is 0 is a block of zeros, and its scale of scales is
    often denormal.
    """
    scale = (linear.file_scale or linear.scale)()
    with np.errstate(all="ignore"):
        wide = scale.astype(np.float64)
    finite, size = np.isfinite(wide), np.abs(wide)
    counts = {"scale-not-finite": scale.size - int(finite.sum())}
    if linear.format not in TYPES:
        small = (size > 0) & (size < SMALLEST.get(linear.scale_type, 0.0))
        live = True if dead is None or dead.shape != small.shape else ~dead
        counts |= {
            "scale-zero": int((size == 0).sum()),
            "scale-denormal": int((small & live).sum()),
        }
        counts |= negatives(linear, int((wide < 0).sum()))
    for rule, count in counts.items():
        if count:
            detail = type_name(linear) if rule == "scale-denormal" else ""
            where, total = linear.prefix, scale.size
            yield Finding(rule=rule, where=where, count=count, total=total, detail=detail)
    yield from check_offsets(linear)
    yield from check_rounding(linear, scale[finite], dtype)


def type_name(linear: StoredLinear) -> str:
    """The type of the scales in the file, as config.json would name it."""
    return NAMES.get(linear.scale_type, linear.scale_type)


def negatives(linear: StoredLinear, count: int) -> dict[str, int]:
    """The rule of negative scales: an error with INT8 inputs, nothing where offsets undo it."""
    if linear.offset is not None or linear.format == "planish":
        return {}
    inputs = linear.scheme is not None and linear.scheme.activation != "float"
    grouped = linear.group_size != -1
    return {"scale-negative-int8" if inputs and grouped else "scale-negative": count}


def check_offsets(linear: StoredLinear) -> Iterator[Finding]:
    """Offsets must be finite, and the scale of a static input positive too."""
    if linear.offset is not None:
        offset = linear.offset()
        bad = int((~np.isfinite(offset.astype(np.float64))).sum())
        if bad:
            where, total = linear.prefix, offset.size
            yield Finding(rule="offset-not-finite", where=where, count=bad, total=total)
    if linear.input_scale is not None:
        given = linear.input_scale().astype(np.float64)
        if not (np.isfinite(given) & (given > 0)).all():
            yield Finding(rule="scale-input", where=linear.prefix)


def check_rounding(linear: StoredLinear, scale: np.ndarray, dtype: str | None) -> Iterator[Finding]:
    """Scales that are other numbers in the type that config.json declares for the model."""
    if linear.format not in ROUNDED or dtype not in CAST:
        return
    with np.errstate(all="ignore"):
        other = scale.astype(np.float32).astype(CAST[dtype]).astype(np.float32)
    lost = int((other != scale.astype(np.float32)).sum())
    if lost:
        detail = f"{dtype}, the model's dtype ({type_name(linear)} in the file)"
        where, total = linear.prefix, scale.size
        yield Finding(rule="scale-rounded", where=where, count=lost, total=total, detail=detail)
