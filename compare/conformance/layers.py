"""Level 2: every part of every block, each fed with what the reference feeds it.

So errors cannot add up, and the part that fails is the part that is wrong. In the order of
execution (trace.py says where the norms stand):

    norms   q k v   attention   o   norms   gate up   mlp   down   norms   the whole block

where `attention` is all between the norm and the input of `o` (projections, norms of queries and
keys, rotary, cache, mask, softmax) and `mlp` all between its norm and the input of `down`; for a
mixture of experts see mixtures.py. Before the blocks stands `embed`, behind them `unembed`.

Tolerances. Linears: the bounds of ops.py. Other parts: 1e-5 of the output's largest magnitude,
for exponentials, rotations and reductions differ by ulps from library to library; behind a
softmax 4e-5, for a score of magnitude s carries an error of a few s * eps, which the exponential
turns into a relative error of the weight (seen: 0.85e-5, where scores reach 50).

Where a part's output is quantized next, its codes may differ by one where x / scale lies within
1e-4 of a tie, never by two. Two things widen that. Where groups have their own scales the float
error is still that of the whole row, so 1e-4 is meant in units of the row's scale. And behind a
softmax it is 2e-3, for the reason above (seen: errors of 6e-4 of a scale).

A flipped code moves everything behind it, so a whole block with INT8 activations (or an INT8
cache, cached.py) has no sharp bound: it may be off by 10 % of its largest magnitude at its worst
element and by 0.1 % in the mean. That is enough for what is left to check there, how the parts are
put together.

The native kernels do several parts in one call. Each is made visible nevertheless, and what the
call does behind it must be equal bit for bit (fused.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from planish.compare.conformance.check import Check, check
from planish.compare.conformance.fused_calls import check_outputs, fused, identity, norm_part
from planish.compare.conformance.kv_cache import attention_over, check_codes
from planish.compare.conformance.module_checks import check_part, limit
from planish.compare.conformance.moe import check_mixture
from planish.compare.conformance.on_device import (
    backend_of,
    computed,
    is_native,
    normed,
    place,
    positions_of,
)
from planish.compare.conformance.ops import check_output
from planish.compare.conformance.trace import NormPlace, Seen, activations, norm_places
from planish.fast.model import transformer as fast_transformer
from planish.fast.model.backend import Backend
from planish.reference.linear import Linear
from planish.reference.model import transformer as reference_transformer
from planish.reference.model.config import ModelConfig
from planish.reference.model.rope import rotations
from planish.reference.model.weights import Block, Experts, Weights

BLOCK_TOLERANCE = 4e-5  # for a whole block in floats: its parts one behind the other
QUANTIZED_BLOCK_TOLERANCE = 0.1  # where codes may flip inside the block
QUANTIZED_BLOCK_MEAN = 1e-3


@dataclass(frozen=True)
class Case:
    """One block on both sides."""

    config: ModelConfig
    layer: int
    block: Block
    placed: Block
    native: bool

    @property
    def backend(self) -> Backend:
        return backend_of(self.native)

    @property
    def in_floats(self) -> bool:
        """Whether nothing is on a grid where a code could flip."""
        return activations(self.block) == {"float"} and self.config.kv_cache == "float32"

    def linears(self, names: tuple[str, ...]) -> dict[str, Linear]:
        """Some of the block's linears, by name."""
        return {name: part_of(self.block, name) for name in names}


def part_of(block: Any, name: str) -> Linear:
    """A linear of a block as it is stored, or as it is placed."""
    return getattr(block if name in (*"qkvo",) else block.mlp, name)


def check_block(
    config: ModelConfig, layer: int, block: Block, seen: Seen, native: bool = False
) -> Iterator[Check]:
    """All parts of one block in the order of execution, then the block."""
    case = Case(config, layer, block, place(block, native), native)
    first, second, third = norm_places(config, block, seen)
    for norm in first:
        yield from check_norm(case, norm)
    for part in ("q", "k", "v"):
        yield check_rows(case, part, seen)
    yield from check_attention(case, seen)
    yield check_rows(case, "o", seen)
    for norm in second:
        yield from check_norm(case, norm)
    if isinstance(block.mlp, Experts):
        share = BLOCK_TOLERANCE if case.in_floats else QUANTIZED_BLOCK_TOLERANCE
        placed: Any = case.placed.mlp
        yield from check_mixture(config, layer, block.mlp, placed, seen, share)
    else:
        yield from check_mlp(case, seen)
    for norm in third:
        yield from check_norm(case, norm)
    yield from check_whole(case, seen)


def check_norm(case: Case, place: NormPlace) -> Iterator[Check]:
    """One norm, and the codes of the linears that read it; natively these linears too."""
    part, given, expected = place.name, place.given, place.expected
    norm, linears = getattr(case.placed, part), case.linears(place.readers)
    readers = {name: part_of(case.placed, name) for name in linears}
    if not readers or case.config.norm_placement == "post":
        found = computed(fast_transformer.normalize, given[None], norm)[0]
        yield from check_part(case.layer, part, expected, found, linears, case.native)
        return
    found = norm_part(norm, readers, given)
    yield from check_part(case.layer, part, expected, found, linears, case.native)
    if fused(readers) and np.isfinite(found).all():
        n = normed(given, norm)
        outputs = computed(case.backend.project, n, tuple(readers.values()))
        for (name, linear), y in zip(linears.items(), outputs, strict=True):
            yield check_outputs(case.layer, f"{name} behind its norm", linear, found, y[0])


def check_rows(case: Case, part: str, seen: Seen) -> Check:
    """One linear on every row that the reference gives it, as the model calls it."""
    linear, placed, x = part_of(case.block, part), part_of(case.placed, part), seen[part]
    if part in ("o", "down"):
        found = computed(case.backend.linear, x[None], placed)[0]
    else:
        found = computed(case.backend.project, normed(x), (placed,))[0][0]
    return check_output(case.layer, part, linear, x, found, is_native(placed), level=2)


def check_attention(case: Case, seen: Seen) -> Iterator[Check]:
    """All between the norm and `o`, over an empty cache; natively `o` and the residual too."""
    config, layer, o, x = case.config, case.layer, case.block.o, seen["q"]
    through = replace(case.placed, o=identity(o.weight.shape[1]))
    mixed, past = attend(case, through, x)
    expected = seen["o"]
    if config.kv_cache == "int8":
        yield from check_codes(config, layer, case.block, x, past)
        expected = attention_over(config, case.block, x, past)
    yield from check_part(layer, "attention", expected, mixed[0], {"o": o}, case.native)
    if is_native(case.placed.o) and np.isfinite(mixed).all():
        found, _ = attend(case, case.placed, x, seen["x"][None])
        part = "o and the residual behind attention"
        yield check_outputs(layer, part, o, mixed[0], found[0], seen["x"])


def attend(case: Case, block: Block, x: np.ndarray, residual: np.ndarray | None = None) -> Any:
    """The engine's attention of x [T, D] over an empty cache, and the cache that it leaves."""
    positions = np.arange(len(x), dtype=np.int32)[None]
    past = case.backend.empty_layer(case.config, 1, len(x))
    where = positions_of(positions, tables(case.config, len(x)))
    arguments = case.config, block, normed(x), where, past, case.backend, residual
    return computed(fast_transformer.attend, *arguments, static=(0, 5))


def check_mlp(case: Case, seen: Seen) -> Iterator[Check]:
    """Its linears, and all between its norm and `down`; natively `down` and the residual too."""
    mlp: Any = case.block.mlp
    for part in ("up",) if mlp.gate is None else ("gate", "up"):
        yield check_rows(case, part, seen)
    placed: Any = case.placed.mlp
    layer, down, x, native = case.layer, mlp.down, seen["n"], is_native(placed.down)
    through = replace(placed, down=identity(down.weight.shape[1], native))
    given = normed(x), case.backend
    inner = computed(fast_transformer.mlp, case.config, through, *given, static=(0, 3))[0]
    yield from check_part(layer, "mlp", seen["down"], inner, {"down": down}, case.native)
    if native and np.isfinite(inner).all():
        arguments = case.config, placed, *given, seen["x"][None]
        found = computed(fast_transformer.mlp, *arguments, static=(0, 3))
        part = "down and the residual behind the mlp"
        yield check_outputs(layer, part, down, inner, found[0], seen["x"])
    yield check_rows(case, "down", seen)


def tables(config: ModelConfig, length: int) -> Any:
    """The rotary tables, which the engine too takes from the reference."""
    return tuple(rotations(rope, np.arange(length), length) for rope in config.ropes)


def check_whole(case: Case, seen: Seen) -> Iterator[Check]:
    """The block as the model runs it: that its parts are put together as they should be."""
    expected, layer = seen["out"], case.layer
    index = np.arange(len(expected), dtype=np.int32)[None]
    where = positions_of(index, tables(case.config, len(expected)))
    given = seen["x"][None], where, case.backend
    found = computed(fast_transformer.run_block, case.config, case.placed, *given, static=(0, 4))[0]
    if case.in_floats:
        yield check(2, layer, "block", expected, found, limit(expected, BLOCK_TOLERANCE))
        return
    yield check(2, layer, "block", expected, found, limit(expected, QUANTIZED_BLOCK_TOLERANCE))
    mean = np.abs(found.astype(np.float64) - expected).mean(keepdims=True)
    bound = limit(expected, QUANTIZED_BLOCK_MEAN)
    yield check(2, layer, "block, mean error", np.zeros((1, 1)), mean, bound)


def check_ends(
    config: ModelConfig,
    weights: Weights,
    tokens: np.ndarray,
    last: np.ndarray,
    logits: np.ndarray,
    native: bool = False,
) -> Iterator[Check]:
    """Embeddings of tokens [T], and logits of the last hidden states [T, D]."""
    outer = place(replace(weights, blocks=()), native)
    positions = np.arange(len(tokens), dtype=np.int32)
    expected = reference_transformer.embed(config, weights, tokens, positions)
    backend = backend_of(native)
    given = tokens.astype(np.int32)[None], positions[None], backend
    found = computed(fast_transformer.embed, config, outer, *given, static=(0, 4))[0]
    yield check(2, None, "embed", expected, found, limit(expected))
    ends = config, outer, last[None], backend
    found = computed(fast_transformer.unembed, *ends, static=(0, 3))[0]
    yield check(2, None, "unembed", logits, found, limit(logits))
