"""Level 2 for native kernels: what one call does besides a linear.

A kernel normalizes a row (or computes silu(gate) * up), quantizes it, multiplies it with every
linear that reads it and adds the residual; only the final outputs are visible. Two calls reveal the
rest. In the first the linear is replaced by an identity matrix that takes its input in floats: the
output is the row itself, exactly, and is judged as the portable form's is. In the second call the
linears are the real ones: on the rows just seen they must equal the reference bit for bit, so no
tolerance can hide a wrong operand.
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


def identity_linear(size: int, native: bool = False) -> Linear:
    """A linear whose output is exactly its input, so that the input becomes visible.

    native: with INT8 codes, computed by a kernel that takes its activations in floats.
    """
    if not native:
        return Linear(np.eye(size, dtype=np.float32))
    codes, scale = np.eye(size, dtype=np.int8), np.ones((1, 1), np.float32)
    shape, scheme = (size, size), int8("per_tensor")
    return Linear(QuantizedWeight(codes=codes, scale=scale, scheme=scheme, shape=shape))


def read_normalized_rows(
    modules: Modules, norm: Norm, readers: dict[str, Linear], x: np.ndarray
) -> np.ndarray:
    """The normalized rows [T, D] of x [T, D], as the linears after a norm read them."""
    pass_through = identity_linear(x.shape[1], modules.fuses(list(readers.values())))
    return modules.project(norm, [pass_through], x)[0]


def check_outputs(
    layer: int,
    part: str,
    linear: Linear,
    rows: np.ndarray,
    found: np.ndarray,
    residual: np.ndarray | None = None,
) -> Check:
    """A native linear on the rows just seen, and the residual [T, N] added last: equal.

    A weight-only linear must be within its tolerance.
    """
    expected = reference_linear.linear(rows, linear)
    allowed = tolerance(rows, linear, native=True)
    if residual is not None:
        expected = residual + expected
        allowed = allowed + (linear.activation == "float") * EPS * np.abs(expected)
    return check(2, layer, part, expected, found, allowed)
