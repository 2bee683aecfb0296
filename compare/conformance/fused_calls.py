"""Level 2 for the native kernels: what one call does besides a linear.

A kernel normalizes a row (or takes silu(gate) * up), quantizes it, multiplies it with every
linear that reads it and adds the residual, and none of that can be seen from outside but the end.
Two calls show it all. First the linear is replaced by one of ones and zeros that takes its input
in floats: what comes out is the row itself, exactly, and is judged as the portable form's is.
Then the linears themselves, fused: on the rows that were seen they must give what the reference
gives on these rows, bit for bit, and no tolerance is left in which a wrong operand could hide.
"""

from __future__ import annotations

import numpy as np

from planish.compare.conformance.check import Check, check
from planish.compare.conformance.on_device import backend_of, computed, normed, place
from planish.compare.conformance.tolerances import EPS, tolerance
from planish.fast.native import linear as native_linear
from planish.reference import linear as reference_linear
from planish.reference.linear import Linear
from planish.reference.model.layers import Norm
from planish.reference.quantized import QuantizedWeight
from planish.reference.scheme import int8


def identity(size: int, native: bool = False) -> Linear:
    """A placed linear that hands its input on, exactly: what stands before it can then be read.

    `native`: of INT8 codes in tiles, read by a kernel that takes its activations in floats.
    """
    if not native:
        return Linear(np.eye(size, dtype=np.float32))
    codes, scale = np.eye(size, dtype=np.int8), np.ones((1, 1), np.float32)
    shape, scheme = (size, size), int8("per_tensor")
    weight = QuantizedWeight(codes=codes, scale=scale, scheme=scheme, shape=shape)
    return place(Linear(weight), True)


def norm_part(norm: Norm, readers: dict[str, Linear], x: np.ndarray) -> np.ndarray:
    """The rows that the placed linears behind a norm read, for x [T, D]."""
    native = fused(readers)
    hand_on = identity(x.shape[1], native)
    return computed(backend_of(native).project, normed(x, norm), (hand_on,))[0][0]


def fused(readers: dict[str, Linear]) -> bool:
    """Whether one native call computes all these placed linears and what stands before them."""
    return native_linear.alike(list(readers.values()))


def check_outputs(
    layer: int,
    part: str,
    linear: Linear,
    rows: np.ndarray,
    found: np.ndarray,
    residual: np.ndarray | None = None,
) -> Check:
    """A native linear of the rows that were seen, and the residual [T, N] added last: equal.

    Where the linear is weight-only, within its bound.
    """
    expected, allowed = (
        reference_linear.linear(rows, linear),
        tolerance(rows, linear, native=True),
    )
    if residual is not None:
        expected = residual + expected
        allowed = allowed + (linear.activation == "float") * EPS * np.abs(expected)
    return check(2, layer, part, expected, found, allowed)
