"""AutoRound's own export: the layouts of GPTQ and AWQ under one config.

    packing_format            layout
    auto_round:auto_gptq      GPTQ, version 1, no g_idx
    auto_round:gptqmodel      GPTQ, version 2
    auto_round:auto_awq       AWQ gemm

Scales may be negative. `extra_config` gives some linears other bits, group sizes or zero points,
which the tensors show too, and leaves those of 16 bits in floats. Source: auto-round 0.16.1,
export/export_to_autoround/export.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from planish.reference.files.formats import awq, gptq
from planish.reference.files.formats.stored import Source, Stored, linears_with

KINDS = gptq.KINDS
LAYOUTS = {
    "auto_round:auto_gptq": "gptq",
    "auto_round": "gptq",
    "auto_round:gptqmodel": "gptq_v2",
    "auto_round:auto_awq": "gemm",
}


def detect(values: Mapping[str, Any]) -> bool:
    """Whether quant_method is auto-round."""
    return values.get("quant_method") in ("auto-round", "autoround", "intel/auto-round")


def made_by(source: Source) -> str:
    return f"auto-round {source.values.get('autoround_version', '')}".strip()


def linears(source: Source) -> list[str]:
    return linears_with(source, "qweight")


def read(source: Source, prefix: str) -> Stored:
    """One linear, as the packing format says; ConfigError for another one."""
    named = source.values.get("packing_format", "auto_round")
    if not isinstance(named, str) or named not in LAYOUTS:
        raise source.bad("packing_format", f"one of {', '.join(LAYOUTS)}", repr(named))
    layout = LAYOUTS[named]
    values = {**source.values, "checkpoint_format": layout, "version": layout}
    labelled = replace(source, values=values)
    return awq.read(labelled, prefix) if layout == "gemm" else gptq.read(labelled, prefix)
