"""The number grids: how a float becomes an 8- or 4-bit code (SPEC 1, 2 and 4).

INT8, symmetric, 255 codes:

    scale = max(absmax, 1e-5) / 127        q = clip(rint(x / scale), -127, 127)        x ~ q * scale

INT4, groups of `group_size` inputs that share a scale and a zero point, codes 0..15:

    w ~ (q - zero_point) * scale           q = clip(rint(w / scale) + zero_point, 0, 15)

rint rounds half to even; x is divided by the scale and never multiplied by a reciprocal; a
scale is first rounded to the type in which it is stored, and the codes are computed with the
rounded scale. If float16 cannot hold some scale of a linear (a row of tiny weights has one), all
its scales are stored as float32 (store_scale). NaN and Inf are errors. Public tools differ, and
each rule below says how: the denominator (127 or 127.5, 7 or 7.5 or 8) alone moves one code in ten.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from planish.reference.errors import QuantizationError, RecipeError

INT8_MAX = 127
INT4_MAX = 15
SYMMETRIC_ZERO = 8  # the INT4 zero point of every group under a symmetric rule
SMALLEST_ABSMAX = np.float32(1e-5)
CACHED = 2**16  # weights that are quantized together
GROUP_SIZES = (-1, 32, 64, 128, 256, 512, 1024)


def require_finite(x: np.ndarray, name: str) -> None:
    """Raise QuantizationError naming the tensor if it holds NaN or Inf (SPEC 1.2)."""
    if not np.isfinite(x).all():
        index = tuple(int(i) for i in np.argwhere(~np.isfinite(x))[0])
        raise QuantizationError(
            "cannot be quantized",
            name=name,
            expected="finite values",
            found=f"{x[index]} at {index}",
        )


def int8_scale(absmax: np.ndarray | np.float32) -> np.ndarray:
    """scale = max(absmax, 1e-5) / 127, float32. Source: SmoothQuant's fake_quant.py."""
    largest = np.maximum(np.asarray(absmax, np.float32), SMALLEST_ABSMAX)
    scale: np.ndarray = largest / np.float32(INT8_MAX)
    return scale


def int8_codes(x: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """q = clip(rint(x / scale), -127, 127) as int8; symmetric, so q(-x) = -q(x).

    SmoothQuant's code lacks the clip (its issue 96): in half precision the division can round
    to 128.
    """
    codes: np.ndarray = np.clip(np.rint(x / scale), -INT8_MAX, INT8_MAX)
    return codes.astype(np.int8)


def int8_codes_around(x: np.ndarray, scale: np.ndarray, zero_point: np.ndarray) -> np.ndarray:
    """q = clip(rint(x / scale) + zero_point, -128, 127) as int8: x ~ (q - zero_point) * scale.

    Only for inputs of other programs' models (SPEC 4). The zero point is added after rounding, as
    vLLM's kernels do (csrc/quantization/w8a8/int8/scaled_quant.cu, static_scaled_int8_azp_quant).
    """
    nearest = np.rint(x / scale) + zero_point.astype(np.float32)
    codes: np.ndarray = np.clip(nearest, -INT8_MAX - 1, INT8_MAX)
    return codes.astype(np.int8)


def quantize_int8(
    x: np.ndarray, granularity: str, name: str = "x"
) -> tuple[np.ndarray, np.ndarray]:
    """Codes int8 [R, C] and scale of x [R, C].

    granularity: per_tensor -> scale [1, 1]; per_row -> scale [R, 1], which is per_token for
    activations [T, K] and per_channel for weights [N, K].
    """
    require_finite(x, name)
    axis = {"per_tensor": (0, 1), "per_row": (1,)}[granularity]
    scale = int8_scale(np.abs(x).max(axis=axis, keepdims=True))
    return int8_codes(x, scale), scale


def num_groups(in_features: int, group_size: int) -> int:
    """Number of groups along K; -1 is the whole row, and a partial last group counts."""
    return 1 if group_size == -1 else -(-in_features // group_size)


def to_groups(x: np.ndarray, group_size: int) -> np.ndarray:
    """[N, K] -> [N, G, g]; the last group is padded with zeros, which change no rule's result."""
    rows, cols = x.shape
    size = cols if group_size == -1 else group_size
    groups = num_groups(cols, group_size)
    if groups * size == cols:
        return x.reshape(rows, groups, size)
    padded = np.zeros((rows, groups * size), x.dtype)
    padded[:, :cols] = x
    return padded.reshape(rows, groups, size)


def cached_rows(w: np.ndarray) -> list[slice]:
    """Rows of w [N, K] that stay in a core's cache; NumPy then takes a third of the time."""
    count = max(1, CACHED // max(1, w.shape[1]))
    return [slice(start, start + count) for start in range(0, max(1, len(w)), count)]


def expand_groups(per_group: np.ndarray, in_features: int, group_size: int) -> np.ndarray:
    """[N, G] -> [N, K]: each group's value repeated over its inputs."""
    size = in_features if group_size == -1 else group_size
    return np.repeat(per_group, size, axis=1)[:, :in_features]


def _signed(groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """scale = m / -8, m the entry of largest magnitude (the first of equals), z = 8.

    m gets code 0, on the longer side of the grid; the scale may be negative.
    Source: AutoRound's symmetric int; llama.cpp's Q4_0, which rounds half up.
    """
    index = np.abs(groups).argmax(axis=2, keepdims=True)
    extreme = np.take_along_axis(groups, index, axis=2)[..., 0]
    return extreme / np.float32(-8), np.full(extreme.shape, SYMMETRIC_ZERO)


def _absmax(groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """scale = absmax / 7.5, z = 8. Source: compressed-tensors; GPTQ's symmetric quantizer."""
    scale = np.abs(groups).max(axis=2) / np.float32(7.5)
    return scale, np.full(scale.shape, SYMMETRIC_ZERO)


def _absmax7(groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """scale = absmax / 7, z = 8; code 0 is never used. Source: Intel Neural Compressor."""
    scale = np.abs(groups).max(axis=2) / np.float32(7)
    return scale, np.full(scale.shape, SYMMETRIC_ZERO)


def _minmax(groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """scale = (hi - lo) / 15 over a range that includes 0; z = rint(-lo / scale) comes later.

    Source: GPTQ's asymmetric quantizer, compressed-tensors, AutoRound. (AWQ's range need not
    include 0, so its zero point can saturate.) The second value returned is lo.
    """
    low, high = np.minimum(groups.min(axis=2), 0), np.maximum(groups.max(axis=2), 0)
    with np.errstate(over="ignore"):  # store_scale reports it, by row and group
        return (high - low) / np.float32(INT4_MAX), low


INT4_RULES: dict[str, Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]] = {
    "signed": _signed,
    "absmax": _absmax,
    "absmax7": _absmax7,
    "minmax": _minmax,
}
SYMMETRIC_RULES = tuple(rule for rule in INT4_RULES if rule != "minmax")


def store_scale(scale: np.ndarray, dtype: np.dtype, name: str) -> np.ndarray:
    """Round scales [N, G], none of them 0, to their storage type (SPEC 4).

    If one overflows or underflows to 0 in that type, all are returned as float32: that one as it
    is, the others with their rounded values, so that their codes do not change. A single dead row
    must not prevent a model from being quantized. Raises QuantizationError for a scale that
    overflows even float32.
    """
    with np.errstate(over="ignore"):
        stored = scale.astype(dtype)
    lost = ~np.isfinite(stored) | (stored == 0)
    if not lost.any():
        return stored
    if not np.isfinite(scale).all():
        row, group = (int(i) for i in np.argwhere(~np.isfinite(scale))[0])
        problem = f"row {row} group {group}: the scale overflows float32"
        raise QuantizationError(problem, name=name, expected="smaller weights")
    return np.where(lost, scale, stored.astype(np.float32))


def _require_choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    if value not in choices:
        expected = f"one of {', '.join(map(str, choices))}"
        raise RecipeError("unknown", name=name, expected=expected, found=repr(value))


def int4_parameters(
    w: np.ndarray,
    group_size: int,
    rule: str,
    scale_dtype: type | np.dtype = np.float16,
    name: str = "w",
) -> tuple[np.ndarray, np.ndarray]:
    """Scale [N, G] in its storage type and zero point uint8 [N, G] of w [N, K] by a rule.

    A group of zeros gets scale 1 and zero point 8 under every rule, and so does a group of weights
    of at most 15 * 2^-150, whose scale is 0 in float32. store_scale may choose float32.
    """
    _require_choice("rule", rule, tuple(INT4_RULES))
    _require_choice("group_size", group_size, GROUP_SIZES)
    w = w.astype(np.float32, copy=False)
    parts = [INT4_RULES[rule](to_groups(w[rows], group_size)) for rows in cached_rows(w)]
    scale, zero_or_low = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    if not np.isfinite(scale).all():  # as it is where a weight is not: no rule loses a NaN
        require_finite(w, name)
    empty = scale == 0
    scale = store_scale(np.where(empty, np.float32(1), scale), np.dtype(scale_dtype), name)
    if rule == "minmax":
        zero = np.clip(np.rint(-zero_or_low / scale.astype(np.float32)), 0, INT4_MAX)
    else:
        zero = zero_or_low
    return scale, np.where(empty, SYMMETRIC_ZERO, zero).astype(np.uint8)


def int4_codes(w: np.ndarray, scale: np.ndarray, zero: np.ndarray, group_size: int) -> np.ndarray:
    """q = clip(rint(w / scale) + z, 0, 15), uint8 [N, K], for scale and z [N, G]."""
    codes = np.empty(w.shape, np.uint8)
    for rows in cached_rows(w):
        per_group = (x[rows].astype(np.float32)[:, :, None] for x in (scale, zero))  # [n, G, 1]
        wide_scale, wide_zero = per_group
        q = to_groups(w[rows], group_size) / wide_scale  # [n, G, g]
        np.rint(q, out=q)
        q += wide_zero
        np.clip(q, 0, INT4_MAX, out=q)
        codes[rows] = q.reshape(len(q), -1)[:, : w.shape[1]]
    return codes
