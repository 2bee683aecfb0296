"""Rules of zero points as GPTQ stores them, and of those that may be out of range.

Version 1 stores z - 1. A true zero of 0 has no such field: three programs store three things, all
of which look like 2^b - 1 (reference/files/formats/gptq.py has them).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from planish.compare.lint.linear import StoredLinear
from planish.compare.lint.opened import Opened
from planish.compare.lint.rules import Finding
from planish.reference.errors import PlanishError
from planish.reference.files.formats import autoround, gptq
from planish.reference.files.formats.stored import Source, linears_with


def check_gptq(opened: Opened) -> Iterator[Finding]:
    """Findings of the stored zero points of every linear in GPTQ's layout."""
    source = gptq_source(opened)
    if source is None:
        return
    for prefix in linears_with(source, "qzeros"):
        try:
            bits, _, rows = gptq.check_shapes(source, prefix)
        except PlanishError:  # said once, when the linear is read
            continue
        fields = gptq.stored_fields(source, prefix, bits, rows)  # [G, N]
        yield from check_fields(source, prefix, bits, fields)


def gptq_source(opened: Opened) -> Source | None:
    """What GPTQ's reader sees, also under AutoRound's config; None for other layouts."""
    source = opened.source
    if opened.format == "gptq":
        return source
    layout = autoround.LAYOUTS.get(str(source.values.get("packing_format", "auto_round")))
    if opened.format != "auto-round" or layout == "gemm":
        return None
    values = {**source.values, "checkpoint_format": layout or "gptq"}
    return replace(source, values=values)


def check_fields(source: Source, prefix: str, bits: int, fields: np.ndarray) -> Iterator[Finding]:
    """Findings of one linear's stored zero points, uint8 [G, N]."""
    middle, first = 2 ** (bits - 1), gptq.is_version_1(source)
    same = int(fields[0, 0]) if fields.min() == fields.max() else -1
    if same in (middle - 1, middle):
        if same != middle - first:
            label = "1" if first else "2"
            right = "2" if first else "1"
            detail = f"{same}, which is version {right}, and the config says version {label}"
            yield Finding(rule="zero-version", where=prefix, detail=detail)
        return
    wraps = int((fields == 2**bits - 1).sum())
    if first and wraps:
        detail = str(2**bits - 1)
        yield Finding(
            rule="zero-v1-wraps", where=prefix, count=wraps, total=fields.size, detail=detail
        )
    clamped = int((fields == 0).sum())
    if first and clamped and "auto-round" in gptq.made_by(source):
        total = fields.size
        yield Finding(rule="zero-v1-clamped", where=prefix, count=clamped, total=total)
    if first and source.values.get("quant_method") == "gptq" and not is_new_gptqmodel(source):
        detail = gptq.made_by(source) or "a program without a name"
        yield Finding(rule="zero-v1-asymmetric", where=prefix, detail=detail)


def is_new_gptqmodel(source: Source) -> bool:
    """Whether GPTQModel 0.9.0 or newer wrote it, whose loader then takes version 1."""
    found = re.match(r"gptqmodel:(\d{1,6})\.(\d{1,6})", gptq.made_by(source))
    return found is not None and (int(found[1]), int(found[2])) >= (0, 9)


def check_range(linear: StoredLinear) -> Iterator[Finding]:
    """Zero points that are no code, where they are stored one by one."""
    if not callable(linear.zero):
        return
    zero = linear.zero()
    outside = int(((zero < linear.low) | (zero > linear.high)).sum())
    if outside:
        detail = f"{linear.low}..{linear.high}"
        yield Finding(
            rule="zero-range", where=linear.prefix, count=outside, total=zero.size, detail=detail
        )
