"""FP8 (DeepSeek, Qwen, compressed-tensors): a float model, which can be run and quantized.

    P.weight             float8 e4m3 [N, K]
    P.weight_scale_inv   float32 or bfloat16 [ceil(N / b), ceil(K / b)], or one number
    P.weight_scale       the same, also [N, 1], in compressed-tensors

w = weight * scale in float32, exact but for one rounding: despite its name, scale_inv multiplies.
Blocks at the edge are cut, not padded. A linear without its scale is refused: its numbers would be
wrong by orders of magnitude. Source: integrations/finegrained_fp8.py of transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from planish.reference.files.entries import require_entry
from planish.reference.files.floats import FLOATS
from planish.reference.files.formats.gptq import require_rank
from planish.reference.files.formats.stored import Source, Stored, linears_with

KINDS = ("weight", "weight_scale_inv", "weight_scale", "input_scale", "activation_scale")


def detect(values: Mapping[str, Any]) -> bool:
    """Whether quant_method is fp8."""
    return values.get("quant_method") in ("fp8", "fbgemm_fp8")


def made_by(source: Source) -> str:
    """The config names no program, but its quant_method."""
    return str(source.values["quant_method"])


def linears(source: Source) -> list[str]:
    """Every FP8 weight, with or without a scale."""
    found = linears_with(source, "weight")
    return [one for one in found if source.entries[f"{one}.weight"].dtype == "F8_E4M3"]


def read(source: Source, prefix: str) -> Stored:
    """One linear as float32; CheckpointError without its scale."""
    kind = "weight_scale_inv" if f"{prefix}.weight_scale_inv" in source.entries else "weight_scale"
    return read_scaled(source, prefix, kind)


def read_scaled(source: Source, prefix: str, kind: str) -> Stored:
    """weight * scale, the scale of a tensor, a row or a block."""
    weight = require_rank(source, f"{prefix}.weight", ("F8_E4M3",))
    name, (rows, cols) = f"{prefix}.{kind}", weight.shape
    found = source.entries.get(name)
    shape = (1,) if found is None or len(found.shape) not in (0, 1, 2) else found.shape
    scale = require_entry(source, name, FLOATS, shape)
    block = block_size(source, name, (rows, cols), shape)

    def dequantize() -> np.ndarray:
        wide = scale.map().astype(np.float32).reshape(shape if len(shape) == 2 else (-1, 1))
        wide = np.repeat(np.repeat(wide, block[0], axis=0)[:rows], block[1], axis=1)[:, :cols]
        with np.errstate(invalid="ignore", over="ignore"):  # load_float reports what is not finite
            w: np.ndarray = weight.map().astype(np.float32) * wide
        return w

    return Stored(shape=(rows, cols), codes=dequantize)


def block_size(
    source: Source, name: str, weight: tuple[int, int], scale: tuple[int, ...]
) -> tuple[int, int]:
    """Rows and columns that share a scale; CheckpointError if the shapes do not fit."""
    rows, cols = weight
    if scale in ((), (1,), (1, 1)):
        return rows, cols
    if scale in ((rows,), (rows, 1)):
        return 1, cols
    for block in declared_blocks(source):
        if scale == (-(-rows // block[0]), -(-cols // block[1])):
            return block
    expected = "one scale, one of each row, or of each block that the config declares"
    raise source.refuse(name, "wrong shape", expected, list(scale))


def declared_blocks(source: Source) -> list[tuple[int, int]]:
    """The block sizes in the config: weight_block_size, or block_structure of a group."""
    groups = source.values.get("config_groups")
    owners = groups.values() if isinstance(groups, dict) else ()
    weights = [one.get("weights") for one in owners if isinstance(one, dict)]
    found = [one.get("block_structure") for one in weights if isinstance(one, dict)]
    found.append(source.values.get("weight_block_size"))
    pairs = [tuple(one) for one in found if isinstance(one, list) and len(one) == 2]
    return [pair for pair in pairs if all(type(size) is int and size > 0 for size in pair)]
