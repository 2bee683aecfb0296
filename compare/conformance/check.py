"""One comparison: an expected array, a found array, and the tolerance of each element."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

MOST_STEPS = 1000  # float32 steps; a larger distance is not reported in steps


@dataclass(frozen=True, kw_only=True)
class Check:
    """The outcome of one comparison, described by its worst element.

    worst: the largest |found - expected| / tolerance; above 1 the check fails. NaN or Inf in the
    found array always fails.
    """

    level: int
    layer: int | None
    part: str
    index: tuple[int, ...]
    expected: float
    found: float
    tolerance: float
    worst: float
    max_error: float
    ulps: float
    cosine: float
    off_by_one: int = 0
    detail: str = ""

    @property
    def agrees(self) -> bool:
        return self.worst <= 1

    def __str__(self) -> str:
        where = f"level {self.level}, " + ("" if self.layer is None else f"layer {self.layer}, ")
        return f"{where}{self.part} at {list(self.index)}: {self.describe()}{self.detail}"

    def describe(self) -> str:
        """Both values, their difference and the tolerance."""
        text = f"expected {self.expected:.9g}, found {self.found:.9g}"
        if not np.isfinite(self.found):
            return text
        error = abs(self.found - self.expected)
        steps = f" ({self.ulps:.3g} float32 steps)" if 0 < self.ulps < MOST_STEPS else ""
        allowed = f"at most {self.tolerance:.3g} is allowed" if self.tolerance else "must be equal"
        return f"{text}; off by {error:.3g}{steps}, {allowed}"

    def as_dict(self) -> dict[str, Any]:
        """JSON without NaN or Inf: such values become strings."""
        values = {**asdict(self), "index": list(self.index), "agrees": self.agrees}
        return {
            k: str(v) if isinstance(v, float) and not np.isfinite(v) else v
            for k, v in values.items()
        }


def ulp_distance(a: float, b: float) -> float:
    """The distance of two values in float32 steps."""
    if not (np.isfinite(a) and np.isfinite(b)):
        return float("inf")
    return abs(a - b) / float(np.spacing(np.float32(max(abs(a), abs(b), 1e-38))))


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Cosine of the angle between two arrays as vectors; 1 where both are zero."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    length = np.sqrt((a * a).sum() * (b * b).sum())
    return 1.0 if length == 0 else float((a * b).sum() / length)


def check(
    level: int,
    layer: int | None,
    part: str,
    expected: np.ndarray,
    found: np.ndarray,
    tolerance: np.ndarray | float,
    off_by_one: int = 0,
) -> Check:
    """Compare elementwise; arrays of different shapes, or empty ones, never agree.

    part: the module or array, for the report. off_by_one: codes that differ by one at a tie.
    """
    expected, found = np.asarray(expected), np.asarray(found)
    if expected.shape != found.shape or expected.size == 0:
        return report_wrong_shape(level, layer, part, expected, found)
    difference, allowed, relative = measure_difference(expected, found, tolerance)
    index = np.unravel_index(int(relative.argmax()), relative.shape)
    a, b = float(expected[index]), float(found[index])
    return Check(
        level=level,
        layer=layer,
        part=part,
        index=tuple(int(i) for i in index),
        expected=a,
        found=b,
        tolerance=float(allowed[index]),
        worst=float(relative[index]),
        max_error=float(difference.max()),
        ulps=ulp_distance(a, b),
        cosine=cosine(expected, found) if np.isfinite(found).all() else float("nan"),
        off_by_one=off_by_one,
    )


def measure_difference(
    expected: np.ndarray, found: np.ndarray, tolerance: np.ndarray | float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """|found - expected|, infinite where it is no number; what is allowed; their ratio. float64."""
    difference = np.abs(found.astype(np.float64) - expected)
    difference = np.where(np.isfinite(difference), difference, np.inf)
    allowed = np.broadcast_to(np.asarray(tolerance, np.float64), difference.shape)
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = np.where(difference == 0, 0.0, difference / allowed)
    return difference, allowed, relative


def report_wrong_shape(
    level: int, layer: int | None, part: str, expected: np.ndarray, found: np.ndarray
) -> Check:
    """A check that fails because the shapes differ."""
    inf = float("inf")
    return Check(
        level=level,
        layer=layer,
        part=part,
        index=(),
        expected=0.0,
        found=0.0,
        tolerance=0.0,
        worst=inf,
        max_error=inf,
        ulps=inf,
        cosine=0.0,
        detail=f"; expected the shape {list(expected.shape)}, found {list(found.shape)}",
    )
