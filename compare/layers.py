"""Level 2: every part of every block, each fed with what the reference feeds it.

So errors cannot add up, and the part that fails is the part that is wrong. In order:

    attention_norm   q k v   attention   o   mlp_norm   gate up   mlp   down   the whole block

where `attention` is all between the norm and the input of `o` (projections, rotary, cache,
mask, softmax) and `mlp` all between its norm and the input of `down`. Before the blocks stands
`embed`, behind them `unembed`.

Tolerances. Linears: the bounds of ops.py. Other parts: 1e-5 of the output's largest magnitude,
for exponentials, rotations and reductions differ by ulps from library to library; behind a
softmax 4e-5, for a score of magnitude s carries an error of a few s * eps, which the exponential
turns into a relative error of the weight (seen: 0.85e-5, where scores reach 50).

Where a part's output is quantized next, its codes may differ by one where x / scale lies within
1e-4 of a tie, never by two. Two things widen that. Where groups have their own scales the float
error is still that of the whole row, so 1e-4 is meant in units of the row's scale. And behind a
softmax it is 2e-3, for the reason above (seen: errors of 6e-4 of a scale).

A flipped code moves everything behind it, so a whole block with INT8 activations has no sharp
bound: it may be off by 10 % of its largest magnitude at its worst element and by 0.1 % in the
mean. That is enough for what is left to check there, how the parts are put together.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

import fast.layers
import fast.model
import fast.weights
import reference.linear
import reference.model
from compare.check import Check, check
from compare.ops import (
    NOTHING,
    activation_scales,
    computed,
    fast_codes,
    place,
    reference_codes,
    tolerance,
)
from reference.config import ModelConfig
from reference.grids import int8_scale
from reference.layers import rope_tables
from reference.linear import Linear
from reference.model import Block, Weights

FLOAT_TOLERANCE = 1e-5  # of the largest magnitude, for one part
SOFTMAX_TOLERANCE = 4e-5
BLOCK_TOLERANCE = 4e-5  # for a whole block in floats: its parts one behind the other
QUANTIZED_BLOCK_TOLERANCE = 0.1  # where codes may flip inside the block
QUANTIZED_BLOCK_MEAN = 1e-3
TIE = 1e-4  # in units of the row's activation scale
TIE_BEHIND_SOFTMAX = 2e-3

Past = tuple[np.ndarray, np.ndarray]


def trace_block(
    config: ModelConfig, block: Block, x: np.ndarray
) -> tuple[dict[str, np.ndarray], Past]:
    """The reference's block over hidden states x [T, D], and its keys and values.

    By name: the input of each linear; `x`; `attended` and `mixed`, the outputs of attention and
    MLP; `between`, what the MLP (or its norm) reads; `out`.
    """
    seen = {"x": x}
    nothing = np.zeros((0, config.num_kv_heads, config.head_dim), np.float32)

    def tap(name: str, value: np.ndarray) -> None:
        seen.setdefault(name, value)

    positions = np.arange(len(x))
    out, past = reference.model.block_forward(config, block, x, positions, (nothing, nothing), tap)
    seen["attended"] = reference.linear.linear(seen["o"], block.o)
    seen["mixed"] = reference.linear.linear(seen["down"], block.down)
    seen["between"] = x + seen["attended"] if config.norm_first else seen["up"]
    return {**seen, "out": out}, past


def check_block(
    config: ModelConfig, layer: int, block: Block, seen: dict[str, np.ndarray]
) -> Iterator[Check]:
    """All parts of one block in the order of execution, then the block."""
    placed = place(block)
    first, second = norm_inputs(config, seen)
    yield from check_norm(config, layer, "attention_norm", block, placed, *first)
    for part in ("q", "k", "v"):
        yield check_rows(layer, part, block, placed, seen)
    attended = attention_part(config, placed, seen["q"])
    yield from check_part(layer, "attention", seen["o"], attended, {"o": block.o})
    yield check_rows(layer, "o", block, placed, seen)
    yield from check_norm(config, layer, "mlp_norm", block, placed, *second)
    for part in ("up",) if block.gate is None else ("gate", "up"):
        yield check_rows(layer, part, block, placed, seen)
    inner = mlp_part(config, placed, seen["up"])
    yield from check_part(layer, "mlp", seen["down"], inner, {"down": block.down})
    yield check_rows(layer, "down", block, placed, seen)
    yield from check_whole(config, layer, block, placed, seen)


def limit(x: np.ndarray, share: float = FLOAT_TOLERANCE) -> float:
    """A share of the largest magnitude."""
    return share * float(np.abs(x).max()) + NOTHING


def norm_inputs(
    config: ModelConfig, seen: dict[str, np.ndarray]
) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """What each norm of a block reads and should give; norms stand before or behind their part."""
    if config.norm_first:
        return (seen["x"], seen["q"]), (seen["between"], seen["up"])
    first = seen["x"] + seen["attended"], seen["between"]
    return first, (seen["between"] + seen["mixed"], seen["out"])


def check_norm(
    config: ModelConfig,
    layer: int,
    part: str,
    block: Block,
    placed: Block,
    given: np.ndarray,
    expected: np.ndarray,
) -> Iterator[Check]:
    """One norm, and the codes of the linears that read it."""
    norm = getattr(placed, part)
    found = computed(fast.model.normalize, given[None], norm, config, static=(2,))[0]
    readers = {"attention_norm": ("q", "k", "v"), "mlp_norm": ("gate", "up")}[part]
    if not config.norm_first:
        readers = {"attention_norm": ("gate", "up"), "mlp_norm": ()}[part]
    linears = {name: getattr(block, name) for name in readers if getattr(block, name) is not None}
    yield from check_part(layer, part, expected, found, linears)


def check_part(
    layer: int, part: str, expected: np.ndarray, found: np.ndarray, readers: dict[str, Linear]
) -> Iterator[Check]:
    """A part's output in floats, and the codes that each linear reading it makes of it."""
    share = SOFTMAX_TOLERANCE if part == "attention" else FLOAT_TOLERANCE
    yield check(2, layer, part, expected, found, limit(expected, share))
    for name, linear in readers.items():
        if linear.activation != "float" and np.isfinite(found).all():
            yield check_flips(layer, f"{part}, codes for {name}", linear, expected, found)


def check_flips(
    layer: int, part: str, linear: Linear, expected: np.ndarray, found: np.ndarray
) -> Check:
    """Codes that each side makes of its own floats: equal but at ties, where one off is right."""
    scales = activation_scales(expected, linear)
    row_scales = int8_scale(np.abs(expected).max(axis=1, keepdims=True))
    ratio = expected / scales
    distance = np.abs(ratio - np.floor(ratio) - np.float32(0.5))
    tie = TIE_BEHIND_SOFTMAX if part.startswith("attention,") else TIE
    allowed = np.where(distance < tie * np.maximum(1, row_scales / scales), 1.0, 0.5)
    codes, others = reference_codes(expected, linear)[0], fast_codes(found, linear)[0]
    flipped = int(np.sum(codes != others))
    return check(2, layer, part, codes, others, allowed, flipped)


def check_rows(
    layer: int, part: str, block: Block, placed: Block, seen: dict[str, np.ndarray]
) -> Check:
    """One linear on every row that the reference gives it, as the model calls it."""
    linear, x = getattr(block, part), seen[part]
    found = computed(fast.model.linear, x[None], getattr(placed, part))[0]
    expected = reference.linear.linear(x, linear)
    return check(2, layer, part, expected, found, tolerance(x, linear))


def identity(size: int) -> Linear:
    """A linear that hands its input on, exactly: what stands before it can then be read."""
    return Linear(np.eye(size, dtype=np.float32))


def attention_part(config: ModelConfig, block: Block, x: np.ndarray) -> np.ndarray:
    """The engine's input of `o` for x [T, D]: projections, rotary, cache, mask, softmax."""
    tokens, heads = len(x), config.num_heads * config.head_dim
    empty = np.zeros((1, config.num_kv_heads, tokens, config.head_dim), np.float32)
    block, positions = replace(block, o=identity(heads)), np.arange(tokens, dtype=np.int32)[None]
    arguments = x[None], positions, (empty, empty), tables(config, tokens)
    return computed(fast.model.attend, config, block, *arguments, static=(0,))[0][0]


def mlp_part(config: ModelConfig, block: Block, x: np.ndarray) -> np.ndarray:
    """The engine's input of `down` for x [T, D]."""
    block = replace(block, down=identity(config.intermediate_size))
    return computed(fast.model.mlp, config, block, x[None], static=(0,))[0]


def tables(config: ModelConfig, length: int) -> tuple[np.ndarray, np.ndarray] | None:
    """The rotary tables, which the engine too takes from the reference."""
    return None if config.rope is None else rope_tables(config, length)


def check_whole(
    config: ModelConfig, layer: int, block: Block, placed: Block, seen: dict[str, np.ndarray]
) -> Iterator[Check]:
    """The block as the model runs it: that its parts are put together as they should be."""
    expected, rotary = seen["out"], tables(config, len(seen["x"]))
    found = computed(fast.model.run_block, config, placed, seen["x"][None], rotary, static=(0,))
    linears = [value for value in vars(block).values() if isinstance(value, Linear)]
    if all(linear.activation == "float" for linear in linears):
        yield check(2, layer, "block", expected, found[0], limit(expected, BLOCK_TOLERANCE))
        return
    yield check(2, layer, "block", expected, found[0], limit(expected, QUANTIZED_BLOCK_TOLERANCE))
    mean = np.abs(found[0].astype(np.float64) - expected).mean(keepdims=True)
    bound = limit(expected, QUANTIZED_BLOCK_MEAN)
    yield check(2, layer, "block, mean error", np.zeros((1, 1)), mean, bound)


def check_ends(
    config: ModelConfig, weights: Weights, tokens: np.ndarray, last: np.ndarray, logits: np.ndarray
) -> Iterator[Check]:
    """Embeddings of tokens [T], and logits of the last hidden states [T, D]."""
    outer, positions = place(replace(weights, blocks=())), np.arange(len(tokens), dtype=np.int32)
    expected = reference.model.embed(config, weights, tokens, positions)
    given = tokens.astype(np.int32)[None], positions[None]
    found = computed(fast.model.embed, config, outer, *given, static=(0,))[0]
    yield check(2, None, "embed", expected, found, limit(expected))
    found = computed(fast.model.unembed, config, outer, last[None], static=(0,))[0]
    yield check(2, None, "unembed", logits, found, limit(logits))
