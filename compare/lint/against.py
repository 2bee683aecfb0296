"""The error of each linear against the float model that it was quantized from.

    error = |W' - W| / |W|        Frobenius norms; W' as the checkpoint's own arithmetic gives it

Smoothing and AWQ fold factors of inputs, or of outputs, into the weights, so W' is another matrix
from the start. Where norms differ from the float model's, or the config says so, and the best
factors r of outputs and c of inputs take a fifth off the error,

    error = |W' - r W c| / |W'|,   r, c by alternating least squares

is given instead, and said. It is a little too small, as N + K factors are fitted to N K weights,
and it does not see a wrong scale of a whole row. The matrices are read some rows at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from planish.compare.lint.linear import StoredLinear, dequantize
from planish.compare.lint.names import float_entries
from planish.compare.lint.opened import GGUF, Opened
from planish.compare.lint.own import Place, find_places
from planish.reference.errors import CheckpointError, PlanishError
from planish.reference.files.checkpoint import Checkpoint
from planish.reference.files.floats import FLOATS, read_float
from planish.reference.files.formats.gguf import INTERLEAVED
from planish.reference.files.load import load_part
from planish.reference.files.safetensors import TensorEntry

AT_ONCE = 2**22  # weights of both matrices that are compared together
FOLDING = ("awq", "teq")  # methods of planish that fold factors
ROUNDING = 2.0**-7  # of norms in bfloat16
RESCALED = 0.8  # of the error is left: more than N + K factors take from rounding alone
STEPS = 3  # of alternating least squares: the error no longer changes in three digits
Parts = Callable[[], Iterator[tuple[slice, np.ndarray, np.ndarray]]]  # rows, W', W


@dataclass(frozen=True, kw_only=True)
class LinearError:
    """How far one linear is from the float model. rescaled: after the best factors."""

    prefix: str
    error: float
    rescaled: bool


@dataclass(frozen=True, kw_only=True)
class Original:
    """The float model, the places of its linears, and whether factors are folded into ours."""

    floats: Checkpoint
    places: Mapping[str, Place]
    factors: bool


def original_of(opened: Opened, floats: Checkpoint) -> Original:
    """What every linear of a checkpoint is compared with."""
    return Original(floats=floats, places=find_places(floats), factors=has_factors(opened, floats))


def has_factors(opened: Opened, floats: Checkpoint) -> bool:
    """Whether smoothing or AWQ folded factors into the weights: the config says so, or norms do."""
    config = opened.source.values
    if config.get("smoothing") or config.get("method") in FOLDING or config.get("alpha"):
        return True
    ours = float_entries(opened)
    return any(
        differ(ours[name].map(), norm.map())
        for name, norm in float_norms(floats).items()
        if name in ours and ours[name].shape == norm.shape
    )


def float_norms(floats: Checkpoint) -> dict[str, TensorEntry]:
    """The float tensors of one axis: norms and biases."""
    every = floats.entries.items()
    return {name: one for name, one in every if len(one.shape) == 1 and one.dtype in FLOATS}


def differ(ours: np.ndarray, theirs: np.ndarray) -> bool:
    """Whether two norms are different, by more than bfloat16 rounds."""
    with np.errstate(all="ignore"):
        a, b = ours.astype(np.float32), theirs.astype(np.float32)
        return bool((np.abs(a - b) > ROUNDING * np.abs(b)).any())


def measure(opened: Opened, linear: StoredLinear, original: Original) -> LinearError | str:
    """The error of a linear, or why it cannot be compared."""
    if linear.codes is None and linear.weights is None:
        return "cannot be read"
    try:
        w = read_weight(opened, linear, original)
    except PlanishError as problem:
        return problem.problem
    if w.shape != linear.shape:
        return f"has the shape {list(linear.shape)}, and {list(w.shape)} in the float model"
    return compare_weights(linear, w, original.factors)


def compare_weights(linear: StoredLinear, w: np.ndarray, factors: bool = False) -> LinearError:
    """The error against W, float32 [N, K]; factors: whether some may be folded in."""
    parts, prefix = split_rows(linear, w), linear.prefix
    ones = np.ones((len(w), 1)), np.ones((1, w.shape[1]))
    plain = relative(parts, *ones, of_float=True)
    if factors:
        fitted = relative(parts, *fit_factors(parts, w.shape), of_float=False)
        if fitted < RESCALED * plain:
            return LinearError(prefix=prefix, error=fitted, rescaled=True)
    return LinearError(prefix=prefix, error=plain, rescaled=False)


def split_rows(linear: StoredLinear, w: np.ndarray) -> Parts:
    """Some rows of W' and of W at a time; codes and scales are read once."""
    arrays = {
        name: np.asarray(compute())
        for name in ("codes", "scale", "zero", "offset", "weights")
        if callable(compute := getattr(linear, name))
    }
    step = max(AT_ONCE // max(w.shape[1], 1), 1)

    def cut(name: str, rows: slice) -> Callable[[], np.ndarray]:
        found = arrays[name]
        return lambda: found[rows] if len(found) > 1 else found

    def parts() -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
        for start in range(0, len(w), step):
            rows = slice(start, start + step)
            changes: dict[str, Any] = {name: cut(name, rows) for name in arrays}
            some = replace(linear, **changes)
            with np.errstate(all="ignore"):
                yield rows, dequantize(some), w[rows]

    return parts


def relative(parts: Parts, rows: np.ndarray, cols: np.ndarray, of_float: bool) -> float:
    """|W' - r W c| / |W|, or / |W'|; infinite where a number is not finite."""
    difference = size = 0.0
    with np.errstate(all="ignore"):
        for some, ours, w in parts():
            expected = rows[some] * w * cols
            difference += float(np.square(ours - expected).sum(dtype=np.float64))
            size += float(np.square(w if of_float else ours).sum(dtype=np.float64))
    error = np.sqrt(difference / size) if size else np.inf if difference else 0.0
    return float(error) if np.isfinite(error) else float("inf")


def fit_factors(parts: Parts, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """r [N, 1] and c [1, K] that make r W c nearest to W', float64; 1 where W has zeros only.

    c begins as the quotient of the columns' norms, which is near if the rows have factors, too.
    """
    rows, (above, below) = np.ones((shape[0], 1)), np.zeros((2, 1, shape[1]))
    for _, ours, w in parts():
        above += np.square(ours).sum(axis=0, keepdims=True)
        below += np.square(w).sum(axis=0, keepdims=True)
    cols = np.sqrt(divide(above, below))
    for _ in range(STEPS):
        above, below = np.zeros((2, 1, shape[1]))
        for some, ours, w in parts():
            rows[some] = quotient(ours * cols * w, np.square(cols * w), axis=1)
            above += (ours * (rows[some] * w)).sum(axis=0, keepdims=True)
            below += np.square(rows[some] * w).sum(axis=0, keepdims=True)
        cols = divide(above, below)
    return rows, cols


def quotient(above: np.ndarray, below: np.ndarray, axis: int) -> np.ndarray:
    return divide(above.sum(axis=axis, keepdims=True), below.sum(axis=axis, keepdims=True))


def divide(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """above / below, 1 where that is no number."""
    with np.errstate(all="ignore"):
        found = above / below
    return np.where(np.isfinite(found), found, 1.0)


def read_weight(opened: Opened, linear: StoredLinear, original: Original) -> np.ndarray:
    """The float model's W, float32 [N, K], rows in the order of the checkpoint's."""
    prefix, floats = linear.prefix, original.floats
    place = original.places.get(prefix)
    if place is not None:
        w = load_part(floats, place.part, place.layer, "weight", place.shape)
    elif f"{prefix}.weight" in floats.entries:
        w = read_float(floats, f"{prefix}.weight", linear.shape)
    else:
        raise CheckpointError("is not in the float model", path=floats.path, name=prefix)
    return w if opened.format != GGUF else in_file_order(opened, prefix, w, floats)


def in_file_order(opened: Opened, prefix: str, w: np.ndarray, floats: Checkpoint) -> np.ndarray:
    """The rows of q and k as llama.cpp interleaves them: the two halves of each head."""
    assert opened.gguf is not None
    heads = {"q_proj": floats.config.num_heads, "k_proj": floats.config.num_kv_heads}
    count = heads.get(prefix.rpartition(".")[2])
    if count is None or opened.gguf.keys.get("general.architecture") not in INTERLEAVED:
        return w
    halves = w.reshape(count, 2, -1, w.shape[1])
    found: np.ndarray = halves.swapaxes(1, 2).reshape(w.shape)
    return found


def require_float(floats: Checkpoint) -> None:
    """Raise CheckpointError for a model with quantized linears."""
    if floats.format is not None:
        raise CheckpointError(
            "is quantized", path=floats.path, expected="the float model of --against"
        )
