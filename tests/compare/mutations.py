"""A subject that makes one mistake: some answers to one group of questions are changed.

A change is called with the original method, then with the judge's arguments:

    def late(step, tokens, positions, state):
        return step(tokens, positions + 1, state)

    change_part("steps", step=late)

Arguments and answers are NumPy arrays and the reference's types, so no change knows how the
engine is built, and every program stays compiled.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from planish.compare.conformance.kv_cache import (
    dequantize_slots,
    project_qkv,
    read_codes,
    static_scales,
)
from planish.compare.subject import Subject
from planish.reference import linear as reference_linear
from planish.reference.linear import Linear
from planish.reference.model import layers as reference_layers
from planish.reference.model.attention import (
    HeadCodes,
    exponentials,
    multiply_codes,
    quantize_heads,
    scale_weights,
)
from planish.reference.packing import pack_nibbles, unpack_nibbles
from planish.reference.quantized import QuantizedWeight, to_layout

Mutation = Callable[[Subject], Subject]


class Changed:
    """One of a subject's protocols with some methods replaced."""

    def __init__(self, part: Any, **changes: Callable[..., Any]):
        self._part = part
        for name, change in changes.items():
            setattr(self, name, partial(change, getattr(part, name)))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._part, name)


def change_part(part: str, **changes: Callable[..., Any]) -> Mutation:
    """Replace methods of one of a subject's protocols."""

    def mutation(subject: Subject) -> Subject:
        return replace(subject, **{part: Changed(getattr(subject, part), **changes)})

    return mutation


def store_as(change: Callable[[Linear], Linear]) -> Mutation:
    """Every linear is stored wrong, so that it is read back and computed wrong."""
    return change_part(
        "ops",
        weight=lambda weight, linear: weight(change(linear)),
        linear=lambda run, x, linear, *rest: run(x, change(linear), *rest),
    )


def compute_as(change: Callable[[Linear], Linear]) -> Mutation:
    """Every linear is stored right and computed wrong."""
    return change_part("ops", linear=lambda run, x, linear, *rest: run(x, change(linear), *rest))


def with_weight(**changes: Callable[[np.ndarray], np.ndarray]) -> Callable[[Linear], Linear]:
    """A linear with some arrays of its quantized weight changed, where it has them."""

    def change(linear: Linear) -> Linear:
        weight = linear.weight
        if not isinstance(weight, QuantizedWeight):
            return linear
        weight = to_layout(weight, "canonical")
        arrays = {name: getattr(weight, name) for name in changes}
        found = {name: changes[name](x) for name, x in arrays.items() if x is not None}
        return replace(linear, weight=replace(weight, **found))

    return change


def with_activation(linear: Linear, activation: str) -> Linear:
    """A linear that quantizes its input in another way, where its weight is quantized."""
    if not isinstance(linear.weight, QuantizedWeight):
        return linear
    scheme = replace(linear.weight.scheme, activation=activation)
    return replace(linear, weight=replace(linear.weight, scheme=scheme))


def without_bias(linear: Linear) -> Linear:
    return replace(linear, bias=None)


def swap_nibbles(codes: np.ndarray) -> np.ndarray:
    """Canonical INT4 codes with each pair of inputs exchanged."""
    pairs = unpack_nibbles(codes, 2 * codes.shape[1]).reshape(len(codes), -1, 2)
    return pack_nibbles(pairs[:, :, ::-1].reshape(len(codes), -1))


def of_config(method: str, change: Callable[[Any], Any]) -> Mutation:
    """A method of the modules that is given another config."""
    return change_part("modules", **{method: lambda run, config, *rest: run(change(config), *rest)})


def of_block(method: str, change: Callable[[Any], Any]) -> Mutation:
    """A method of the modules that is given another block (or MLP, or experts)."""

    def call(run: Any, config: Any, block: Any, *rest: Any) -> Any:
        return run(config, change(block), *rest)

    return change_part("modules", **{method: call})


def of_kind(change: Callable[[Any], dict[str, Any]]) -> Mutation:
    """Attention of another kind of layer."""
    return of_block("attend", lambda b: replace(b, kind=replace(b.kind, **change(b.kind))))


def sharper(kind: Any) -> dict[str, Any]:
    """Scores a ten-thousandth too large."""
    return {"score_divisor": kind.score_divisor / 1.0001}


def other_pairs(config: Any) -> Any:
    """Rotary pairs of neighbours for those of halves, and the reverse."""
    ropes = [replace(rope, interleaved=not rope.interleaved) for rope in config.ropes]
    return replace(config, ropes=tuple(ropes))


def shift_mask(shift: int) -> Mutation:
    """Attention in which a token at position p reads what one at p + shift may read."""

    def attend(run: Any, config: Any, block: Any, x: np.ndarray, residual: Any = None) -> Any:
        _, slots = run(config, block, x)
        q, k, v = project_qkv(config, block, x)
        mask = reference_layers.causal_mask(np.arange(len(x)) + shift, len(x), block.kind.window)
        with np.errstate(invalid="ignore"):
            scores = block.kind.score_divisor, config.alibi, config.score_cap
            mixed = reference_layers.attention(q, k, v, mask, *scores)
        return reference_linear.linear(mixed, block.o), slots

    return change_part("modules", attend=attend)


def write_slots(change: Callable[..., Any]) -> Mutation:
    """Attention that gives the right output and writes other slots."""

    def attend(run: Any, *arguments: Any) -> Any:
        y, slots = run(*arguments)
        return y, tuple(change(*map(np.array, slots)))

    return change_part("modules", attend=attend)


def read_as(change: Callable[..., Any]) -> Mutation:
    """Attention that writes the right slots and reads others."""

    def attend(run: Any, config: Any, block: Any, x: np.ndarray, residual: Any = None) -> Any:
        _, slots = run(config, block, x)
        keys, values = (a[0].swapaxes(0, 1)[: len(x)] for a in dequantize_slots(change(*slots)))
        mask = reference_layers.causal_mask(np.arange(len(x)), len(x), block.kind.window)
        q = project_qkv(config, block, x)[0]
        mixed = reference_layers.attention(q, keys, values, mask, block.kind.score_divisor)
        return reference_linear.linear(mixed, block.o), slots

    return change_part("modules", attend=attend)


def keep(x: Any) -> Any:
    return x


def attend_codes_as(
    queries: Callable[[HeadCodes], HeadCodes] = keep,
    keys: Callable[[HeadCodes], HeadCodes] = keep,
    rounding: Callable[[np.ndarray], np.ndarray] = np.rint,
    config: Callable[[Any], Any] = keep,
    normalized: bool = False,
) -> Mutation:
    """INT8 attention that writes the right slots and computes with other codes, scales or caps."""
    change = config

    def attend(run: Any, config: Any, block: Any, x: np.ndarray, residual: Any = None) -> Any:
        _, slots = run(config, block, x)
        found, v = read_codes(config, block, slots, len(x))
        q = quantize_heads(project_qkv(config, block, x)[0], static_scales(config, block)[0])
        mask = reference_layers.causal_mask(np.arange(len(x)), len(x), block.kind.window)
        scores = block.kind.score_divisor, config.alibi, change(config).score_cap
        e = exponentials(queries(q), keys(found), mask, *scores)
        total = e.sum(axis=-1, keepdims=True)
        w, p_scale = scale_weights(e, v)
        p8 = rounding(w / p_scale / (total if normalized else 1))
        p_scale = p_scale * total if normalized else p_scale
        mixed = multiply_codes(p8, v.codes.transpose(1, 0, 2)[:, None]) * p_scale / total
        mixed = (mixed * v.scale if v.static else mixed).transpose(2, 0, 1, 3)
        return reference_linear.linear(mixed.reshape(len(x), -1), block.o), slots

    return change_part("modules", attend=attend)


def with_nan(run: Any, *arguments: Any) -> Any:
    """NaN in the first entry of an answer, or of the first of several."""
    y = run(*arguments)
    several = isinstance(y, list)
    first = np.array(y[0] if several else y)
    first[(0,) * first.ndim] = np.nan
    return [first, *y[1:]] if several else first
