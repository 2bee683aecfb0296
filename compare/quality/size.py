"""Bits a weight: what a mixture stores for the linears that a recipe covers.

    bits = codes + scales + zero points, of all linears of the blocks and a quantized lm_head
    bits a weight = bits / number of their weights

A linear that stays in float counts with the bits of its floats. Routers, embeddings, norms, biases
and an lm_head in float are the same in every candidate and are not counted; nor is the padding of
tiles, nor the scales of INT4 that float16 cannot hold.
"""

from __future__ import annotations

from planish.compare.quality.mixture import Base, Key, Mixture
from planish.reference.grids import num_groups
from planish.reference.model.shapes import outer_shapes
from planish.reference.quantize.schemes import head_scheme
from planish.reference.scheme import Scheme

FLOAT_BITS = {"F32": 32, "BF16": 16, "F16": 16}


def bits_per_weight(mixture: Mixture) -> float:
    """The figure of the module's docstring."""
    sizes = mixture.base.sizes
    bits = sum(stored_bits(mixture, key) for key in sizes)
    head = head_scheme(mixture.base.source, mixture.base.recipe)
    weights = sum(rows * cols * count for rows, cols, count in sizes.values())
    if head is not None:
        rows, cols = outer_shapes(mixture.base.source.config)["head"]
        bits, weights = bits + scheme_bits(head, rows, cols), weights + rows * cols
    return bits / weights


def stored_bits(mixture: Mixture, key: Key) -> int:
    """What one linear, or all experts' gates, ups or downs, take."""
    rows, cols, count = mixture.base.sizes[key]
    return count * linear_bits(mixture.base, key, mixture.schemes[key], rows, cols)


def linear_bits(base: Base, key: Key, scheme: Scheme | None, rows: int, cols: int) -> int:
    """What one linear [rows, cols] takes under a scheme."""
    if scheme is not None:
        return scheme_bits(scheme, rows, cols)
    return rows * cols * float_bits(base, key)


def scheme_bits(scheme: Scheme, rows: int, cols: int) -> int:
    """Codes, scales and zero points of a linear [rows, cols]."""
    static = 32 if scheme.activation == "static" else 0
    if scheme.bits == 8:
        return 8 * rows * cols + 32 * (rows if scheme.granularity == "per_channel" else 1) + static
    scales = 16 if scheme.scale_dtype == "float16" else 32
    each = scales + (0 if scheme.symmetric else 8)
    return 4 * rows * cols + each * rows * num_groups(cols, scheme.group_size) + static


def float_bits(base: Base, key: Key) -> int:
    """Bits of a float: those of the source, or 32 if a method rescaled the weights."""
    layer, part = key
    if base.rescalings:
        return 32
    one = part.replace("experts.", "experts.0.")
    name = f"{base.source.stored_prefix(one, layer)}.weight"
    entry = base.source.entries.get(name)
    return 32 if entry is None else FLOAT_BITS.get(entry.dtype, 32)
