"""Rules of g_idx, the group of each input: missing, trivial, undeclared, out of range."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from planish.compare.lint.opened import Opened
from planish.compare.lint.rules import Finding
from planish.compare.lint.zeros import gptq_source
from planish.reference.errors import PlanishError
from planish.reference.files.formats import gptq
from planish.reference.files.formats.stored import Source, grouping, linears_with

INTEGERS = ("I32", "I64")


def check_orders(opened: Opened) -> Iterator[Finding]:
    """Findings of g_idx in GPTQ's layout, and of weight_g_idx in compressed-tensors."""
    if opened.format == "compressed-tensors":
        for prefix in linears_with(opened.source, "weight_g_idx"):
            yield Finding(rule="order-compressed-tensors", where=prefix)
    source = gptq_source(opened)
    for prefix in () if source is None else linears_with(source, "qweight"):
        assert source is not None
        try:
            yield from check_order(source, prefix)
        except PlanishError:  # said once, when the linear is read
            continue


def check_order(source: Source, prefix: str) -> Iterator[Finding]:
    """Findings of one linear's g_idx; PlanishError for wrong shapes."""
    _, cols, _ = gptq.check_shapes(source, prefix)
    entry = source.entries.get(f"{prefix}.g_idx")
    if entry is None:
        if source.values.get("quant_method") == "gptq":
            yield Finding(rule="order-missing", where=prefix)
        return
    if entry.dtype not in INTEGERS or entry.shape != (cols,):
        return
    groups = source.entries[f"{prefix}.scales"].shape[0]
    ids = entry.map().astype(np.int64)
    outside = int(((ids < -groups) | (ids >= groups)).sum())
    if outside:
        yield Finding(rule="order-range", where=prefix, count=outside, total=cols)
        return
    size = grouping(source, prefix, cols, groups)["group_size"]
    declared = source.values.get("desc_act") is True or has_exceptions(source)
    plain = np.arange(cols) // (cols if size == -1 else size)
    if np.array_equal(np.where(ids < 0, ids + groups, ids), plain):
        detail = ", although desc_act is declared" if source.values.get("desc_act") is True else ""
        yield Finding(rule="order-trivial", where=prefix, detail=detail)
    elif not declared:
        yield Finding(rule="order-undeclared", where=prefix)


def has_exceptions(source: Source) -> bool:
    """Whether `dynamic` gives some linears another desc_act."""
    dynamic = source.values.get("dynamic")
    rules = dynamic.values() if isinstance(dynamic, dict) else ()
    return any(isinstance(rule, dict) and rule.get("desc_act") is True for rule in rules)
