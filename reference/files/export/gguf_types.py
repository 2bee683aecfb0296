"""Which type of GGUF holds a linear (the table in gguf.py), and a weight as blocks of it."""

from __future__ import annotations

import numpy as np

from planish.reference.files.export.codes import (
    refine,
    regrouped,
    signed_codes,
    unsigned_codes,
    zero_points,
)
from planish.reference.files.export.gguf_blocks import BLOCK, encode_q4_0, encode_q4_1, encode_q8_0
from planish.reference.files.export.protocol import CannotHoldError, Refusal, Shape
from planish.reference.grids import SYMMETRIC_ZERO
from planish.reference.quantized import QuantizedWeight
from planish.reference.scheme import Scheme


def refuse(scheme: Scheme, shape: Shape) -> Refusal | None:
    """Refuses INT8 inputs, act order, INT8 with offsets, groups of 16 and K not in blocks."""
    found = str(scheme)
    if scheme.activation != "float":
        nearest = "planish" if scheme.activation == "per_group" else "compressed-tensors"
        return Refusal(expected="inputs in float", found=found, nearest=nearest)
    if scheme.act_order:
        expected = "groups of neighbouring inputs"
        return Refusal(expected=expected, found=found, nearest="gptq_v2")
    if scheme.bits == 8 and scheme.offset:
        return Refusal(expected="INT8 without offsets", found=found, nearest="mlx")
    if shape[1] % BLOCK or (scheme.group_size != -1 and scheme.group_size % BLOCK):
        expected = f"a multiple of {BLOCK} inputs, in groups of as many"
        found = f"{shape[1]} inputs, {found}"
        return Refusal(expected=expected, found=found, nearest="planish")
    return None


def type_of(scheme: Scheme) -> str:
    """The type that holds a scheme: Q8_0, Q4_0 or Q4_1."""
    if scheme.bits == 8:
        return "Q8_0"
    return "Q4_0" if scheme.symmetric and not scheme.offset else "Q4_1"


def encode(weight: QuantizedWeight) -> np.ndarray:
    """The rows of blocks of a weight [N, K], uint8 [N, bytes]; CannotHoldError if inexact."""
    scheme, kind = weight.scheme, type_of(weight.scheme)
    weight = refine(weight, regrouped(scheme, BLOCK))
    scale = _exact(weight.scale, scheme, "scales")
    if kind == "Q8_0":
        return encode_q8_0(signed_codes(weight), scale)
    codes = unsigned_codes(weight)
    if kind == "Q4_0":
        if (zero_points(weight) != SYMMETRIC_ZERO).any():
            raise ValueError("zero points other than 8 under a symmetric scheme")
        return encode_q4_0(codes, scale)
    offset = weight.offset
    if offset is None:
        offset = -scale.astype(np.float32) * zero_points(weight).astype(np.float32)
    return encode_q4_1(codes, scale, _exact(offset, scheme, "offsets"))


def _exact(values: np.ndarray, scheme: Scheme, what: str) -> np.ndarray:
    """Scales or offsets as float16; CannotHoldError if one is rounded."""
    with np.errstate(over="ignore"):
        halves = values.astype(np.float16)
    lost = halves.astype(np.float32) != values.astype(np.float32)
    if lost.any():
        found = f"{lost.sum()} of {lost.size} {what} of {scheme} that are not"
        nearest = "compressed-tensors" if not scheme.offset else "mlx"
        expected = f"{what} that are exact in float16"
        raise CannotHoldError(Refusal(expected=expected, found=found, nearest=nearest))
    return halves
