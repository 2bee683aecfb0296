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


def check_scales(linear: StoredLinear, dtype: str | None) -> Iterator[Finding]:
    """Findings of a linear's scales and offsets. dtype: the model's, in config.json.

    A block of GGUF whose scale is 0 is a block of zeros, and its scale of scales may be denormal.
    """
    scale = (linear.file_scale or linear.scale)()
    where, total = linear.prefix, scale.size
    with np.errstate(all="ignore"):
        wide = np.abs(scale.astype(np.float64))
        negative = int((scale.astype(np.float64) < 0).sum())
    finite = np.isfinite(wide)
    counts = {"scale-not-finite": total - int(finite.sum())}
    if linear.format not in TYPES:
        counts["scale-zero"] = int((wide == 0).sum())
        small = (wide > 0) & (wide < SMALLEST.get(linear.scale_type, 0.0))
        counts["scale-denormal"] = int(small.sum())
        counts |= negatives(linear, negative)
    detail = NAMES.get(linear.scale_type, linear.scale_type)
    for rule, count in counts.items():
        if count:
            words = detail if rule == "scale-denormal" else ""
            yield Finding(rule=rule, where=where, count=count, total=total, detail=words)
    yield from check_offsets(linear)
    yield from check_rounding(linear, scale[finite], dtype)


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


def check_rounding(
    linear: StoredLinear, scale: np.ndarray, dtype: str | None
) -> Iterator[Finding]:
    """Scales that are other numbers in the type that config.json declares for the model."""
    if linear.format not in ROUNDED or dtype not in CAST:
        return
    with np.errstate(all="ignore"):
        other = scale.astype(np.float32).astype(CAST[dtype]).astype(np.float32)
    lost = int((other != scale.astype(np.float32)).sum())
    if lost:
        detail = f"{dtype}, the model's dtype ({NAMES.get(linear.scale_type)} in the file)"
        where, total = linear.prefix, scale.size
        yield Finding(rule="scale-rounded", where=where, count=lost, total=total, detail=detail)
