"""Level 2 for native kernels: what one call does besides a linear.

A kernel normalizes a row (or takes silu(gate) * up), quantizes it, multiplies it with every
linear that reads it and adds the residual, and only the end can be seen from outside.
Two calls show it all. In the first the linear is replaced by one of ones and zeros that takes its
input in floats: what comes out is the row itself, exactly, and is judged as the portable form's is.
The second call is the linears themselves, fused: on the rows that were seen they must give what
the reference gives on these rows, bit for bit, so no tolerance can hide a wrong operand.
"""

from __future__ import annotations

import numpy as np

from planish.compare.conformance.check import Check, check
from planish.compare.conformance.tolerances import EPS, tolerance
from planish.compare.subject import Modules
from planish.reference import linear as reference_linear
from planish.reference.linear import Linear
from planish.reference.model.layers import Norm
from planish.reference.quantized import QuantizedWeight
from planish.reference.scheme import int8


def identity(size: int, native: bool = False) -> Linear:
    """A linear that hands its input on, exactly, so that what comes before it can be read.

    `native`: of INT8 codes, computed by a kernel that takes its activations in floats.
    """
    if not native:
        return Linear(np.eye(size, dtype=np.float32))
    codes, scale = np.eye(size, dtype=np.int8), np.ones((1, 1), np.float32)
    shape, scheme = (size, size), int8("per_tensor")
    return Linear(QuantizedWeight(codes=codes, scale=scale, scheme=scheme, shape=shape))


def normalized_rows(
    modules: Modules, norm: Norm, readers: dict[str, Linear], x: np.ndarray
) -> np.ndarray:
    """The rows that the linears after a norm read, for x [T, D]."""
    hand_on = identity(x.shape[1], modules.fuses(list(readers.values())))
    return modules.project(norm, [hand_on], x)[0]


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
    expected = reference_linear.linear(rows, linear)
    allowed = tolerance(rows, linear, native=True)
    if residual is not None:
        expected = residual + expected
        allowed = allowed + (linear.activation == "float") * EPS * np.abs(expected)
    return check(2, layer, part, expected, found, allowed)
