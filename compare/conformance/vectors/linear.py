"""Check a kernel of your own: compare a function for one linear with the reference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from planish.compare.conformance.check import check
from planish.compare.conformance.vectors.cases import Case, linears
from planish.reference.errors import PlanishError

NUMBERS = "biuf"  # the kinds of dtype that a result may have
COMBINATIONS = (
    "bits 8 with activation float, per_token, per_tensor or static, or bits 4 with float,"
    " per_token or per_group"
)


@dataclass(frozen=True, kw_only=True)
class LinearInputs:
    """The inputs of a linear. T rows, K = in_features, N = out_features, G groups of inputs.

    x: float32 [T, K]
    codes: bits 8: int8 [N, K]; bits 4: uint8 [N, ceil(K / 2)], the even input in the low nibble
    scale: bits 8: float32 [N, 1] or [1, 1]; bits 4: float16 or float32 [N, G]
    zero_point: bits 4: uint8 [N, G], or None where it is 8 everywhere; bits 8: None
    bias: float32 [N], or None
    activation_scale: float32 [1], of `static` only
    activation: float, per_token, per_tensor, static or per_group (SPEC 2 and 4)
    group_size: inputs that share a scale, -1 for the whole row
    """

    x: np.ndarray
    codes: np.ndarray
    scale: np.ndarray
    zero_point: np.ndarray | None = None
    bias: np.ndarray | None = None
    activation_scale: np.ndarray | None = None
    bits: int
    activation: str
    group_size: int
    in_features: int
    out_features: int


class MismatchError(PlanishError):
    """A result that differs: `case`, and in it `index`, `wanted` and `got` of one element.

    The first that differs where all must be equal, else the one farthest from its tolerance.
    """

    case: str = ""
    index: tuple[int, ...] = ()
    wanted: float = 0.0
    got: float = 0.0


def check_linear(
    function: Callable[[LinearInputs], np.ndarray],
    *,
    bits: int | None = None,
    activation: str | None = None,
    seed: int = 0,
) -> int:
    """Call a function on every case of a linear; return how many cases there were.

    function(inputs) returns y [T, N]. `bits` (8 or 4) and `activation` (float, per_token,
    per_tensor, static, per_group) select the cases. Outputs must be equal bit for bit; with float
    activations each must be within the tolerance of K float32 additions in any order.

    Raises MismatchError for the first case that differs, PlanishError if no case is selected.
    """
    if seed < 0:
        raise PlanishError("bad value", name="seed", expected="0 or more", found=seed)
    count = 0
    for case in linears(seed):
        given: dict[str, Any] = {**case.inputs, **case.parameters}
        inputs = LinearInputs(**given)
        if bits in (None, inputs.bits) and activation in (None, inputs.activation):
            require_equal(case, {"y": _numbers(case, function(inputs))})
            count += 1
    if count == 0:
        found = f"bits {bits}, activation {activation}"
        raise PlanishError("no case", expected=COMBINATIONS, found=found)
    return count


def count_unequal(
    expected: np.ndarray, found: np.ndarray, tolerance: np.ndarray | np.float64
) -> str:
    """How many elements differ: one says an edge, many a formula."""
    error = np.abs(found.astype(np.float64) - expected)
    return f"{np.count_nonzero(~(error <= tolerance))} of {expected.size} elements differ"


def _numbers(case: Case, result: Any) -> np.ndarray:
    """What a function returned; raises PlanishError where it is no array of numbers."""
    try:
        found = np.asarray(result)
    except ValueError:  # rows of different lengths
        found = np.empty(0, object)
    if found.dtype.kind not in NUMBERS:
        expected, kind = "y, an array of numbers", type(result).__name__
        raise PlanishError("bad result", name=case.name, expected=expected, found=kind)
    return found


def require_equal(case: Case, found: dict[str, np.ndarray]) -> None:
    """Raise MismatchError for the first output that differs by more than its tolerance."""
    for key, expected in case.expected.items():
        tolerance = case.tolerance.get(key, np.float64(0))
        result = check(1, None, case.name, expected, found[key], tolerance)
        if result.agrees:
            continue
        if expected.shape != found[key].shape:
            wanted, got = list(expected.shape), list(found[key].shape)
            problem = f"{key} has the wrong shape"
            raise MismatchError(problem, name=case.name, expected=wanted, found=got)
        bound = f", at most {result.tolerance:.3g} apart" if result.tolerance else ""
        error = MismatchError(
            f"{key} at {list(result.index)} differs",
            name=case.name,
            expected=f"{result.expected:.9g}{bound}",
            found=f"{result.found:.9g}; {count_unequal(expected, found[key], tolerance)}",
        )
        error.case, error.index = case.name, result.index
        error.wanted, error.got = result.expected, result.found
        raise error
