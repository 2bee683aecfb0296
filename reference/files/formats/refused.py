"""Formats of other programs that are recognized and not read, each with a reason and a remedy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from planish.reference.errors import ConfigError

FLOAT_MODEL = "take the float model, or let transformers dequantize this one and save it"
REFUSED = {
    "bitsandbytes": ("NF4 and FP4 are tables of 16 floats", FLOAT_MODEL),
    "hqq": ("HQQ packs halves of a weight and has float zero points", FLOAT_MODEL),
    "quanto": ("quanto's packed tensors have no stable layout", FLOAT_MODEL),
    "mxfp4": ("MXFP4 codes are floats of 4 bits", FLOAT_MODEL),
    "fp_quant": ("MXFP4 and NVFP4 codes are floats of 4 bits", FLOAT_MODEL),
    "modelopt": ("ModelOpt's scales are in a file of its own", FLOAT_MODEL),
    "aqlm": ("AQLM codes are indices of codebooks", FLOAT_MODEL),
    "quip": ("QuIP rotates the weights", FLOAT_MODEL),
    "higgs": ("HIGGS rotates the weights", FLOAT_MODEL),
    "spqr": ("SpQR has sparse outliers", FLOAT_MODEL),
    "vptq": ("VPTQ codes are indices of codebooks", FLOAT_MODEL),
    "eetq": ("EETQ's layout is that of a GPU kernel", FLOAT_MODEL),
    "bitnet": ("BitNet's linears normalize their input", FLOAT_MODEL),
}


def refuse_known(values: Mapping[str, Any], path: Path) -> None:
    """Raise ConfigError for a quant_method that planish knows and does not read."""
    method = values.get("quant_method")
    if isinstance(method, str) and method in REFUSED:
        why, remedy = REFUSED[method]
        name = "quantization_config.quant_method"
        problem = f"{method} cannot be read: {why}"
        raise ConfigError(problem, path=path, name=name, expected=remedy)
