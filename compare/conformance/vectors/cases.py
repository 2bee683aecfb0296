"""The cases: input arrays, expected arrays, and where a tolerance applies.

    grids       INT8 per tensor, per row and static; INT4 by each rule; zero rows, ties, tiny values
    packing     nibbles in the canonical order, and both layouts of tiles
    linears     W8A8, W8A16, W4A16, W4A8: groups of 32, 128 and the whole row, a partial last group,
                symmetric and with zero points, float16 and float32 scales
    cache       INT8 keys and values
    smoothing   the scale s of each input channel
    sampling    the token drawn from logits

Everything is drawn from a seed, so two runs write the same bytes. Integers, packed bytes, scales
and the outputs of linears with INT8 activations must be equal. Float activations may be summed in
any order (SPEC 4), so each of their outputs has a tolerance.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from planish.compare.conformance import kernels
from planish.compare.conformance.kernels import Kind, LinearSize
from planish.compare.conformance.ops import make_hard_rows
from planish.reference import grids, packing
from planish.reference.linear import Linear, quantized_weight
from planish.reference.quantize.smooth import smoothing_scale
from planish.reference.text.sampling import Sampling, sample, uniform

Arrays = dict[str, np.ndarray]
ROWS, OUTPUTS = 6, 33  # of each linear, besides 7 hard rows: they fill no tile and no block


@dataclass(frozen=True, kw_only=True)
class Case:
    """One question and its answer.

    compute: a formula or rule, for the README. tolerance: an array for each expected one that need
    not be equal.
    """

    name: str
    kind: str
    compute: str
    parameters: Mapping[str, Any]
    inputs: Arrays
    expected: Arrays
    tolerance: Arrays = field(default_factory=dict)


def all_cases(seed: int = 0) -> Iterator[Case]:
    """Every case, in the order in which a kernel is best built."""
    yield from int8_grids(seed)
    yield from int4_grids(seed)
    yield from packings(seed)
    yield from linears(seed)
    yield cache(seed)
    yield from smoothings(seed)
    yield from samplings(seed)


def int8_grids(seed: int) -> Iterator[Case]:
    """x [R, C] -> codes int8 [R, C] and scale: Gaussian rows and hard rows."""
    rng = np.random.default_rng((seed, 1))
    x = np.concatenate([rng.standard_normal((4, 75), np.float32), make_hard_rows(75)])
    for granularity in ("per_row", "per_tensor"):
        codes, scale = grids.quantize_int8(x, granularity)
        yield Case(
            name=f"int8-{granularity}",
            kind="grid",
            compute="scale = max(absmax, 1e-5) / 127; codes = clip(rint(x / scale), -127, 127)",
            parameters={"granularity": granularity},
            inputs={"x": x},
            expected={"codes": codes, "scale": scale},
        )
    static = np.full((1, 1), 0.0371, np.float32)
    yield Case(
        name="int8-static",
        kind="grid",
        compute="codes = clip(rint(x / scale), -127, 127) with the given scale",
        parameters={"granularity": "static"},
        inputs={"x": x, "scale": static},
        expected={"codes": grids.int8_codes(x, static)},
    )


def int4_grids(seed: int) -> Iterator[Case]:
    """w [N, K] -> scale and zero_point [N, G], codes 0..15 [N, K], by rule and group size."""
    rng = np.random.default_rng((seed, 2))
    w = rng.standard_normal((OUTPUTS, 300), np.float32)
    w[1], w[2, ::2], w[3, :40] = 0, 0, 0.25  # zeros, half zeros, equal magnitudes
    w[4, ::2] *= -1
    tiny = w.copy()
    tiny[5] *= np.float32(1e-9)  # scales that float16 cannot hold
    for rule in grids.INT4_RULES:
        for size in (32, 128, -1):
            yield int4_grid(f"int4-{rule}-g{spell_group_size(size)}", w, size, rule)
    yield int4_grid("int4-signed-g32-float32-scales", tiny, 32, "signed")


def int4_grid(name: str, w: np.ndarray, size: int, rule: str) -> Case:
    """One rule and one group size."""
    scale, zero = grids.int4_parameters(w, size, rule)
    return Case(
        name=name,
        kind="grid",
        compute="codes = clip(rint(w / scale) + zero_point, 0, 15); scale, zero_point by the rule",
        parameters={"rule": rule, "group_size": size},
        inputs={"w": w},
        expected={
            "scale": scale,
            "zero_point": zero,
            "codes": grids.int4_codes(w, scale, zero, size),
        },
    )


def spell_group_size(group_size: int) -> str:
    """32 -> 32, -1 -> row."""
    return "row" if group_size == -1 else str(group_size)


def packings(seed: int) -> Iterator[Case]:
    """Codes in every order; an odd number of inputs, outputs that fill no tile."""
    rng = np.random.default_rng((seed, 3))
    int8 = rng.integers(-127, 128, (OUTPUTS, 75)).astype(np.int8)
    int4 = rng.integers(0, 16, (OUTPUTS, 75)).astype(np.uint8)
    packed = packing.pack_nibbles(int4)
    orders = {
        "nibbles": ("packed", int4, packed),
        "tiles-int8": ("tiles", int8, packing.tile_int8(int8)),
        "tiles-int4": ("tiles", int4, packing.tile_int4(packed, 75)),
    }
    compute = {
        "nibbles": "byte j = codes[2j] | codes[2j + 1] << 4; the last high nibble of an odd K is 0",
        "tiles-int8": "byte [t, b, n, i] = codes[16t + n, 4b + i]; 0 beyond N and K",
        "tiles-int4": "byte [t, b, n, i] = codes[16t + n, 8b + i] | codes[.., 8b + 4 + i] << 4",
    }
    for name, (key, codes, expected) in orders.items():
        yield Case(
            name=f"packing-{name}",
            kind="packing",
            compute=compute[name],
            parameters={"out_features": OUTPUTS, "in_features": 75},
            inputs={"codes": codes},
            expected={key: expected},
        )


KINDS = (
    *(
        Kind(8, a, scales=s)
        for a in ("per_token", "per_tensor", "static")
        for s in kernels.SCALES[8]
    ),
    Kind(8, "float", scales="per_channel"),
    *(Kind(4, "float", size, "float16", zero) for size in (32, 128, -1) for zero in (False, True)),
    *(
        Kind(4, activation, size, "float16", zero)
        for activation in ("per_group", "per_token")
        for size in (32, 128, -1)
        for zero in (False, True)
    ),
    Kind(4, "per_group", 32, "float32", True),
)
FORMULAS = {
    (8, False): "y = (f32(sum_k xq wq) * a_scale) * scale, + bias",
    (8, True): "y = x Wt + bias, W = codes * scale",
    (4, True): "y = x Wt + bias, W = (codes - zero_point) * scale",
    "per_group": "y = sum over g ascending (f32(sum_k xq (q - z)) * scale[g]) * a_scale[g], + bias",
    "per_token": "y = (sum over g ascending f32(sum_k xq (q - z)) * scale[g]) * a_scale, + bias",
}
INPUTS = {8: 75, 32: 75, 128: 300, -1: 100}  # K; a last group of 32 or 128 is partial


def linears(seed: int) -> Iterator[Case]:
    """x [T, K] -> y [T, N] by each combination of grids."""
    for number, kind in enumerate(KINDS):
        rng = np.random.default_rng((seed, 4, number))
        inputs = INPUTS[8 if kind.bits == 8 else kind.group_size]
        shape = LinearSize(1, ROWS, inputs, OUTPUTS, bias=bool(number % 2), residual=False)
        linear = kernels.draw_linear(kind, shape, rng)
        x = draw_linear_rows(linear, shape, rng)
        expected, allowed = kernels.expect_outputs(x, linear, None)
        floats = kind.activation == "float"
        key = kind.activation if kind.bits == 4 and not floats else (kind.bits, floats)
        yield Case(
            name=name_linear(kind),
            kind="linear",
            compute=FORMULAS[key],
            parameters=describe_linear(linear),
            inputs={"x": x[0], **collect_linear_arrays(linear)},
            expected={"y": expected[0].astype(np.float32)},
            tolerance={"y": allowed[0].astype(np.float32)} if floats else {},
        )


def draw_linear_rows(linear: Linear, shape: LinearSize, rng: np.random.Generator) -> np.ndarray:
    """x [1, T, K]: random rows, and all hard ones unless all rows share a scale."""
    x = kernels.draw_rows(linear, shape, rng)
    if linear.activation == "per_tensor":
        return x
    return np.concatenate([x, make_hard_rows(shape.inputs, linear.activation_scale)[None]], axis=1)


def name_linear(kind: Kind) -> str:
    """w8a8-per_channel-static, w4a8-g32-per_group-zero_points, ..."""
    floats = kind.activation == "float"
    words = [f"w{kind.bits}a{16 if floats else 8}"]
    words += [kind.scales] if kind.bits == 8 else [f"g{spell_group_size(kind.group_size)}"]
    words += [] if floats else [kind.activation]
    words += ["zero_points"] if kind.zero_point else []
    words += ["float32_scales"] if kind.bits == 4 and kind.scales == "float32" else []
    return "-".join(words)


def describe_linear(linear: Linear) -> dict[str, Any]:
    """What a kernel must know besides the arrays."""
    weight = quantized_weight(linear)
    return {
        "bits": weight.scheme.bits,
        "in_features": weight.shape[1],
        "out_features": weight.shape[0],
        "group_size": weight.scheme.group_size,
        "activation": linear.activation,
    }


def collect_linear_arrays(linear: Linear) -> Arrays:
    """Canonical codes and scale; zero_point, bias and activation_scale where there are any."""
    weight = quantized_weight(linear)
    arrays = {"codes": weight.codes, "scale": weight.scale, "zero_point": weight.zero_point}
    arrays |= {"bias": linear.bias, "activation_scale": linear.activation_scale}
    return {name: array for name, array in arrays.items() if array is not None}


def cache(seed: int) -> Case:
    """Keys or values [T, heads, Hd] -> codes, and a scale for each token and head."""
    x = np.random.default_rng((seed, 5)).standard_normal((9, 3, 64), np.float32)
    x[2], x[3, 1] = 0, np.float32(1e-7)
    scale = grids.int8_scale(np.abs(x).max(axis=-1, keepdims=True))
    return Case(
        name="kv-cache-int8",
        kind="cache",
        compute="scale = max(absmax of a head, 1e-5) / 127;"
        " codes = clip(rint(x / scale), -127, 127)",
        parameters={"head_dim": 64},
        inputs={"x": x},
        expected={"codes": grids.int8_codes(x, scale), "scale": scale[..., 0]},
    )


SMOOTHING = (
    "s = max(1e-5, xmax ** alpha / wmax ** (1 - alpha)), 1 where xmax = 0;"
    " wmax = max(1e-5, the largest |w| of a column of w0 and w1)"
)


def smoothings(seed: int) -> Iterator[Case]:
    """absmax of activations and two weights that read them -> s [K]; powers are not exact."""
    rng = np.random.default_rng((seed, 6))
    xmax = np.exp(rng.uniform(-4, 4, 75)).astype(np.float32)
    xmax[3] = 0
    first, second = (rng.standard_normal((n, 75), np.float32) for n in (OUTPUTS, 16))
    first[:, 5] = second[:, 5] = 0  # the floor of wmax
    for alpha in (0.5, 0.85):
        s = smoothing_scale(xmax, [first, second], alpha)
        yield Case(
            name=f"smoothing-alpha{alpha}",
            kind="smoothing",
            compute=SMOOTHING,
            parameters={"alpha": alpha},
            inputs={"xmax": xmax, "w0": first, "w1": second},
            expected={"s": s},
            tolerance={"s": (4e-7 * np.abs(s)).astype(np.float32)},
        )


SAMPLINGS = {
    "greedy": Sampling(),
    "temperature": Sampling(temperature=0.8, seed=1),
    "top_k": Sampling(temperature=1.0, top_k=5, seed=2),
    "top_p": Sampling(temperature=1.3, top_p=0.9, seed=3),
}

DRAW = (
    "temperature 0: the largest logit. Else p = softmax(logits / temperature) of the top_k largest"
    " (0: of all), likeliest first; keep the fewest whose sum reaches top_p; the first of them at"
    " which the running sum exceeds u times the sum kept"
)


def samplings(seed: int) -> Iterator[Case]:
    """logits [B, V] and u [B] in 0..1 -> token [B]; ties go to the lowest id."""
    logits = np.random.default_rng((seed, 7)).standard_normal((16, 101), np.float32)
    logits[1, 40:60] = logits[1].max()  # equal, so the order decides
    for name, sampling in SAMPLINGS.items():
        rows = range(len(logits))
        tokens = [sample(logits[row], sampling, row) for row in rows]
        yield Case(
            name=f"sampling-{name}",
            kind="sampling",
            compute=DRAW,
            parameters={
                "temperature": sampling.temperature,
                "top_k": sampling.top_k,
                "top_p": sampling.top_p,
            },
            inputs={
                "logits": logits,
                "u": np.array([uniform(sampling.seed, row, 0) for row in rows]),
            },
            expected={"token": np.array(tokens, np.int64)},
        )
