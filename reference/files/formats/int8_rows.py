"""INT8 with one scale a row: torchao's Int8Tensor, and bitsandbytes' LLM.int8().

    torchao        P._weight_qdata int8 [N, K], P._weight_scale [N, 1] or [N, G],
                   P._weight_zero_point int8, zeros; also of 4-bit codes -8..7
    bitsandbytes   P.weight int8 [N, K], P.SCB float32 [N]: w = q * SCB / 127

Source: torchao 0.18, quantization/quantize_/workflows; bitsandbytes, functional.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from planish.reference.files.entries import require_entry
from planish.reference.files.floats import FLOATS
from planish.reference.files.formats.gptq import require_rank
from planish.reference.files.formats.stored import (
    Source,
    Stored,
    choose_scheme,
    grouping,
    linears_with,
    scale_type,
)

KINDS = (
    *("_weight_qdata", "_weight_scale", "_weight_zero_point"),
    *("weight", "SCB", "weight_format"),
)


def detect(values: Mapping[str, Any]) -> bool:
    """Whether quant_method is torchao, or bitsandbytes with 8 bits."""
    method = values.get("quant_method")
    eight = values.get("load_in_8bit", values.get("_load_in_8bit"))
    return method == "torchao" or (method == "bitsandbytes" and eight is True)


def made_by(source: Source) -> str:
    return str(source.values.get("quant_method", ""))


def linears(source: Source) -> list[str]:
    return linears_with(source, "_weight_qdata") + linears_with(source, "SCB")


def read(source: Source, prefix: str) -> Stored:
    """One linear; CheckpointError for codes with zero points or in a layout of GPUs."""
    if f"{prefix}.SCB" in source.entries:
        return read_bitsandbytes(source, prefix)
    codes = require_rank(source, f"{prefix}._weight_qdata", ("I8",))
    scale = require_rank(source, f"{prefix}._weight_scale", FLOATS)
    (rows, cols), groups = codes.shape, scale.shape[1]
    require_entry(source, f"{prefix}._weight_scale", FLOATS, (rows, groups))
    if 0 in (rows, cols, groups):
        raise source.refuse(prefix, "wrong shape", "weights", list(codes.shape))
    zeros = source.entries.get(f"{prefix}._weight_zero_point")
    if zeros is not None and zeros.map().any():
        expected, found = "zeros: symmetric codes", "zero points"
        raise source.refuse(f"{prefix}._weight_zero_point", "cannot be read", expected, found)
    fields = {"bits": 8, "activation": activation_of(source, groups)}
    fields |= grouping(source, prefix, cols, groups)
    if groups == 1:
        fields["full_range"] = True
    else:
        fields |= scale_type(source, f"{prefix}._weight_scale")
    wide = np.float16 if fields.get("scale_dtype") == "float16" else np.float32
    return Stored(
        scheme=choose_scheme(source, prefix, **fields),
        shape=(rows, cols),
        codes=codes.map,
        scale=lambda: scale.map().astype(wide),
    )


def activation_of(source: Source, groups: int) -> str:
    """per_token where the config quantizes inputs to INT8 and rows have one scale, else float."""
    named = str(source.values.get("quant_type"))
    return "per_token" if groups == 1 and "Int8DynamicActivationInt8Weight" in named else "float"


def read_bitsandbytes(source: Source, prefix: str) -> Stored:
    """One linear of LLM.int8(), as weights: inputs stay in floats, outliers among them."""
    codes = require_rank(source, f"{prefix}.weight", ("I8",))
    rows, cols = codes.shape
    scale = require_entry(source, f"{prefix}.SCB", FLOATS, (rows,))
    if 0 in (rows, cols):
        raise source.refuse(prefix, "wrong shape", "weights", list(codes.shape))
    return Stored(
        scheme=choose_scheme(source, prefix, bits=8, full_range=True),
        shape=(rows, cols),
        codes=codes.map,
        scale=lambda: (scale.map().astype(np.float32) / np.float32(127))[:, None],
    )
